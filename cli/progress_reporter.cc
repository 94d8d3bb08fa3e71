#include "cli/progress_reporter.h"

#include <unistd.h>

#include <cstdio>

#include "cli/progress_bar.h"
#include "common/base/clock.h"

namespace millrace::cli {
namespace {

// Between two plain lines: a log shall show that it goes on, not be filled.
constexpr absl::Duration kPlainInterval = absl::Seconds(5);
constexpr absl::Duration kJsonInterval = absl::Seconds(1);

}  // namespace

ProgressReporter::ProgressReporter(bool json, absl::string_view things)
    : json_(json), things_(things), line_(STDOUT_FILENO), last_(base::RealClock()->Monotonic()) {}

void ProgressReporter::Show(const control::WarmProgress& progress, const base::Json& line) {
  if (!json_ && line_.enabled()) {
    line_.Show(ProgressLine(progress, things_, TerminalColumns(STDOUT_FILENO) - 1));
    return;
  }
  const absl::Duration now = base::RealClock()->Monotonic();
  if (now - last_ < (json_ ? kJsonInterval : kPlainInterval)) return;
  last_ = now;
  printf("%s\n", json_ ? base::JsonLine(line).c_str() : ProgressText(progress, things_).c_str());
  fflush(stdout);
}

}  // namespace millrace::cli
