// millrace mount: starts the keeper of a mount and waits until the mount answers.
//
// The keeper knows the options (fuse/options/options.h); this command only hands them over, so
// there is one parser and one help text.
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/commands.h"
#include "cli/keeper_process.h"
#include "cli/terminal.h"
#include "common/base/clock.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/control/ready.h"
#include "common/control/run_directory.h"

namespace millrace::cli {
namespace {

// Shorter waits need no explanation.
constexpr absl::Duration kQuiet = absl::Seconds(2);
constexpr absl::Duration kTick = absl::Milliseconds(200);
constexpr absl::Duration kExitGrace = absl::Seconds(10);
constexpr size_t kLogLines = 20;

bool HasOption(const Arguments& arguments, absl::string_view name) {
  for (const std::string& argument : arguments) {
    if (argument == "--") return false;
    if (argument == name || argument == absl::StrCat(name, "=true")) return true;
  }
  return false;
}

std::string ReadAll(int fd) {
  std::string text(16384, '\0');
  const ssize_t size = pread(fd, text.data(), text.size(), 0);
  text.resize(static_cast<size_t>(std::max<ssize_t>(size, 0)));
  return text;
}

// Waits for the daemon's last word, showing that it waits.
class ReadyWait {
 public:
  explicit ReadyWait(const StartedKeeper* keeper) : keeper_(keeper) {}

  // kReady or kFailed. Unavailable when the daemon died without a word; Cancelled by a signal.
  absl::StatusOr<control::ReadyMessage> Run() {
    const absl::Duration start = base::RealClock()->Monotonic();
    for (int tick = 0;; ++tick) {
      if (Interrupted().load()) return absl::CancelledError("interrupted");
      pollfd waited = {keeper_->ready.get(), POLLIN, 0};
      const int ready = poll(&waited, 1, static_cast<int>(absl::ToInt64Milliseconds(kTick)));
      const absl::Duration elapsed = base::RealClock()->Monotonic() - start;
      if (elapsed >= kQuiet) {
        line_.Show(absl::StrCat(std::string(1, SpinnerAt(tick)), " waiting for the store, ",
                                absl::ToInt64Seconds(elapsed), " s (Ctrl-C gives up)"));
      }
      if (ready <= 0) continue;
      ASSIGN_OR_RETURN(const bool more, Fill());
      while (true) {
        const size_t newline = buffer_.find('\n');
        if (newline == std::string::npos) break;
        ASSIGN_OR_RETURN(control::ReadyMessage message,
                         control::ParseReadyLine(buffer_.substr(0, newline)));
        buffer_.erase(0, newline + 1);
        if (message.kind != control::ReadyMessage::Kind::kLog) return message;
        log_path_ = message.log_path;
      }
      if (!more) return absl::UnavailableError("the daemon died before the mount answered");
    }
  }

  // What the daemon left to read, indented.
  std::string LastWords() const {
    std::string words;
    for (const absl::string_view line :
         absl::StrSplit(ReadAll(keeper_->output.get()), '\n', absl::SkipEmpty())) {
      absl::StrAppend(&words, "  ", line, "\n");
    }
    if (!log_path_.empty()) absl::StrAppend(&words, control::LogTail(log_path_, kLogLines));
    return words;
  }

  const std::string& log_path() const { return log_path_; }

 private:
  // False at the end of the pipe.
  absl::StatusOr<bool> Fill() {
    char chunk[16384];
    const ssize_t size = read(keeper_->ready.get(), chunk, sizeof(chunk));
    if (size < 0 && errno == EINTR) return true;
    if (size < 0) return base::ErrnoStatus(errno, "the daemon's pipe");
    buffer_.append(chunk, static_cast<size_t>(size));
    return size > 0;
  }

  const StartedKeeper* const keeper_;
  StatusLine line_{STDERR_FILENO};
  std::string buffer_;
  std::string log_path_;
};

// Nothing of a mount that was given up may stay behind.
void StopKeeper(pid_t pid) {
  kill(pid, SIGTERM);
  if (WaitForExit(pid, kExitGrace)) return;
  kill(pid, SIGKILL);
  WaitForExit(pid, kExitGrace);
}

}  // namespace

int MountInBackground(const std::string& program, const Arguments& arguments) {
  NoteInterrupts();
  absl::StatusOr<StartedKeeper> keeper = StartKeeper(program, arguments);
  if (!keeper.ok()) return Report(keeper.status());
  absl::StatusOr<control::ReadyMessage> message = absl::UnknownError("");
  std::string last_words;
  std::string log_path;
  {
    ReadyWait wait(&*keeper);
    message = wait.Run();
    if (!message.ok()) last_words = wait.LastWords();
    log_path = wait.log_path();
  }
  if (absl::IsCancelled(message.status())) {
    StopKeeper(keeper->pid);
    return Report(
        absl::CancelledError("interrupted before the mount answered; nothing is mounted"));
  }
  if (!message.ok()) {
    StopKeeper(keeper->pid);
    Report(absl::UnavailableError(absl::StrCat(
        message.status().message(), log_path.empty() ? "" : absl::StrCat("; its log is ", log_path),
        last_words.empty() ? "" : "; its last words:")));
    fputs(last_words.c_str(), stderr);
    return 1;
  }
  if (message->kind == control::ReadyMessage::Kind::kFailed) {
    WaitForExit(keeper->pid, kExitGrace);
    // The error says it all; the log of a mount that never was would only confuse. Does nothing
    // when the run directory serves a living mount.
    if (!log_path.empty()) control::RemoveStale({log_path.substr(0, log_path.rfind('/'))});
    fprintf(stderr, "millrace: %s\n", message->error.c_str());
    return message->exit_code;
  }
  fputs(control::FormatSummary(message->summary).c_str(), stdout);
  return 0;
}

int MountMain(const Arguments& arguments) {
  const absl::StatusOr<std::string> program = FindProgram("millrace-keeper");
  if (!program.ok()) return Report(program.status());
  if (HasOption(arguments, "--foreground") || HasOption(arguments, "--help") ||
      HasOption(arguments, "-h")) {
    return Report(ExecProgram(*program, arguments));
  }
  return MountInBackground(*program, arguments);
}

}  // namespace millrace::cli
