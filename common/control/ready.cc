#include "common/control/ready.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"

namespace millrace::control {

std::string FormatSummary(const ReadySummary& summary) {
  std::string text = absl::StrCat("Mounted ", summary.mountpoint, "\n");
  size_t width = 0;
  for (const auto& [label, value] : summary.facts) width = std::max(width, label.size());
  for (const auto& [label, value] : summary.facts) {
    absl::StrAppend(&text, "  ", label, std::string(width - label.size() + 2, ' '), value, "\n");
  }
  for (const std::string& warning : summary.warnings) {
    absl::StrAppend(&text, "  warning: ", warning, "\n");
  }
  return text;
}

ReadyNotifier::ReadyNotifier(int fd) : pipe_(fd), has_pipe_(fd >= 0) {
  // Programs the daemon starts (fusermount3) must not keep the command waiting.
  if (has_pipe_) fcntl(fd, F_SETFD, FD_CLOEXEC);
}

absl::Status ReadyNotifier::LogTo(const std::string& path) {
  if (!has_pipe_) return absl::OkStatus();
  const base::UniqueFd log(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!log.valid()) return base::ErrnoStatus(errno, absl::StrCat("cannot open the log ", path));
  fflush(stdout);
  if (dup2(log.get(), STDOUT_FILENO) < 0 || dup2(log.get(), STDERR_FILENO) < 0) {
    return base::ErrnoStatus(errno, path);
  }
  Send({{"log", path}});
  return absl::OkStatus();
}

void ReadyNotifier::Ready(const ReadySummary& summary) {
  if (std::exchange(ended_, true)) return;
  if (!has_pipe_) {
    fputs(FormatSummary(summary).c_str(), stdout);
    fflush(stdout);
    return;
  }
  base::Json facts = base::Json::array();
  for (const auto& [label, value] : summary.facts) facts.push_back({label, value});
  Send({{"ready", true},
        {"summary",
         {{"mountpoint", summary.mountpoint},
          {"facts", std::move(facts)},
          {"warnings", summary.warnings}}}});
  pipe_.Reset();
}

int ReadyNotifier::Failed(const absl::Status& status) {
  const int exit_code = base::ExitCode(status);
  if (std::exchange(ended_, true)) return exit_code;
  const std::string error = base::ErrorText(status);
  if (!has_pipe_) {
    fprintf(stderr, "millrace: %s\n", error.c_str());
    return exit_code;
  }
  Send({{"ready", false}, {"exit_code", exit_code}, {"error", error}});
  pipe_.Reset();
  return exit_code;
}

void ReadyNotifier::Send(const base::Json& line) {
  const std::string text = base::JsonLine(line) + "\n";
  absl::string_view left = text;
  while (!left.empty()) {
    const ssize_t size = write(pipe_.get(), left.data(), left.size());
    // The command was killed: the mount goes on without an audience (SIGPIPE is ignored by main).
    if (size < 0 && errno != EINTR) return;
    if (size > 0) left.remove_prefix(size);
  }
}

absl::StatusOr<ReadyMessage> ParseReadyLine(absl::string_view line) {
  ASSIGN_OR_RETURN(const base::Json json, base::ParseJson(line));
  ReadyMessage message;
  if (base::JsonField(json, "ready").is_null()) {
    message.kind = ReadyMessage::Kind::kLog;
    message.log_path = base::JsonString(json, "log");
    return message;
  }
  if (!base::JsonBool(json, "ready")) {
    message.kind = ReadyMessage::Kind::kFailed;
    message.exit_code = base::JsonUnsigned(json, "exit_code") == 2 ? 2 : 1;
    message.error = base::JsonString(json, "error");
    return message;
  }
  message.kind = ReadyMessage::Kind::kReady;
  const base::Json& summary = base::JsonField(json, "summary");
  message.summary.mountpoint = base::JsonString(summary, "mountpoint");
  for (const base::Json& fact : base::JsonField(summary, "facts")) {
    if (fact.is_array() && fact.size() == 2 && fact[0].is_string() && fact[1].is_string()) {
      message.summary.facts.emplace_back(fact[0].get_ref<const std::string&>(),
                                         fact[1].get_ref<const std::string&>());
    }
  }
  for (const base::Json& warning : base::JsonField(summary, "warnings")) {
    if (warning.is_string()) message.summary.warnings.push_back(warning);
  }
  return message;
}

}  // namespace millrace::control
