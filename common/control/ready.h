// How a daemon tells the command that started it: "the mount answers", or why it does not.
//
// The command gives the daemon the write end of a pipe (--ready-fd). The daemon writes lines of
// JSON:
//   {"log": PATH}                                  from now on it logs there (optional)
//   {"ready": true, "summary": {…}}                 the last line: it serves
//   {"ready": false, "exit_code": 1|2, "error": …}  the last line: it is about to exit
// The end of the pipe without a last line means that the daemon died.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/json.h"
#include "common/base/unique_fd.h"

namespace millrace::control {

// What the command shows once the mount answers.
struct ReadySummary {
  std::string mountpoint;
  // Label and text, in the order they are shown: {"sources", "train=s3://…"}, {"tiers", "…"}, ….
  std::vector<std::pair<std::string, std::string>> facts;
  std::vector<std::string> warnings;
};

// The lines a person sees: "Mounted /data", then the facts in a column.
std::string FormatSummary(const ReadySummary& summary);

// The daemon's end. Without a pipe (--foreground) it prints what the command would have printed.
// Not thread-safe.
class ReadyNotifier {
 public:
  // `fd` < 0: no pipe. Takes ownership; sets close-on-exec.
  explicit ReadyNotifier(int fd);

  // Sends standard output and standard error to the file (appended, 0600) and tells the command.
  // With no pipe does nothing: a foreground daemon keeps its terminal.
  absl::Status LogTo(const std::string& path);

  // The pipe, for a process that goes on in this one's place; this one says nothing more.
  base::UniqueFd Release() {
    ended_ = true;
    return std::move(pipe_);
  }

  // Each ends the conversation; further calls do nothing.
  void Ready(const ReadySummary& summary);
  // Returns the exit code, for `return notifier.Failed(status);` in main.
  int Failed(const absl::Status& status);

 private:
  void Send(const base::Json& line);

  base::UniqueFd pipe_;
  const bool has_pipe_;
  bool ended_ = false;
};

// The command's end: one line taken apart.
struct ReadyMessage {
  enum class Kind { kLog, kReady, kFailed } kind = Kind::kFailed;
  std::string log_path;
  ReadySummary summary;
  int exit_code = 1;
  std::string error;
};
absl::StatusOr<ReadyMessage> ParseReadyLine(absl::string_view line);

}  // namespace millrace::control
