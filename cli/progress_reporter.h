// Shows progress in the way standard output asks for: a bar on a terminal, lines in a log, JSON for
// a program. Not thread-safe.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cli/terminal.h"
#include "common/base/json.h"
#include "common/control/protocol.h"

namespace millrace::cli {

class ProgressReporter {
 public:
  // `things` as in progress_bar.h.
  ProgressReporter(bool json, absl::string_view things);

  // As often as there is news. `line` is the progress as JSON shows it.
  void Show(const control::WarmProgress& progress, const base::Json& line);
  // Takes the bar away, for what is printed next.
  void Clear() { line_.Clear(); }

 private:
  const bool json_;
  const std::string things_;
  StatusLine line_;
  absl::Duration last_;
};

}  // namespace millrace::cli
