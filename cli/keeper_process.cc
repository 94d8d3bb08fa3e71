#include "cli/keeper_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/control/ready.h"

extern char** environ;

namespace millrace::cli {
namespace {

// The descriptor of the pipe in the keeper: the first after the standard ones.
constexpr int kReadyFd = 3;

std::vector<char*> Argv(std::vector<std::string>* words) {
  std::vector<char*> argv;
  for (std::string& word : *words) argv.push_back(word.data());
  argv.push_back(nullptr);
  return argv;
}

}  // namespace

absl::StatusOr<std::string> FindProgram(absl::string_view name) {
  char self[PATH_MAX];
  const ssize_t size = readlink("/proc/self/exe", self, sizeof(self));
  if (size <= 0) return base::ErrnoStatus(errno, "/proc/self/exe");
  const std::string path(self, static_cast<size_t>(size));
  const std::string program = absl::StrCat(path.substr(0, path.rfind('/') + 1), name);
  if (access(program.c_str(), X_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat("the program ", program,
                     " is missing; it belongs beside millrace: build or install "
                     "both (./dev build)"));
  }
  return program;
}

absl::Status ExecProgram(const std::string& program, const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {program};
  words.insert(words.end(), arguments.begin(), arguments.end());
  execv(program.c_str(), Argv(&words).data());
  return base::ErrnoStatus(errno, absl::StrCat("cannot start ", program));
}

absl::StatusOr<StartedKeeper> StartKeeper(const std::string& program,
                                          const std::vector<std::string>& arguments) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return base::ErrnoStatus(errno, "pipe");
  StartedKeeper started;
  started.ready = base::UniqueFd(ends[0]);
  base::UniqueFd write_end(ends[1]);
  // Dup2 of a descriptor onto itself would keep it close-on-exec, and the others must not be
  // overwritten before they are used: move all of them out of the way.
  write_end = base::UniqueFd(fcntl(write_end.get(), F_DUPFD_CLOEXEC, kReadyFd + 1));
  const base::UniqueFd memory(memfd_create("millrace-output", MFD_CLOEXEC));
  started.output = base::UniqueFd(fcntl(memory.get(), F_DUPFD_CLOEXEC, kReadyFd + 1));
  if (!write_end.valid() || !started.output.valid()) return base::ErrnoStatus(errno, "memfd");

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, started.output.get(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, started.output.get(), STDERR_FILENO);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), kReadyFd);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  // A session of its own: neither Ctrl-C nor the end of the terminal reaches the mount. What a
  // shell or nohup set for this command (ignored signals) is not for the daemon.
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  sigset_t signals;
  sigemptyset(&signals);
  posix_spawnattr_setsigmask(&attributes, &signals);
  for (const int signal : {SIGINT, SIGTERM, SIGQUIT, SIGPIPE, SIGHUP}) sigaddset(&signals, signal);
  posix_spawnattr_setsigdefault(&attributes, &signals);

  // First, so that it stands before a "--" of the user.
  std::vector<std::string> words = {program, absl::StrCat("--ready-fd=", kReadyFd)};
  words.insert(words.end(), arguments.begin(), arguments.end());
  const int failed = posix_spawn(&started.pid, program.c_str(), &actions, &attributes,
                                 Argv(&words).data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (failed != 0) return base::ErrnoStatus(failed, absl::StrCat("cannot start ", program));
  return started;
}

absl::Status StartAdopting(const std::string& program, const std::string& mountpoint) {
  ASSIGN_OR_RETURN(const StartedKeeper keeper,
                   StartKeeper(program, {absl::StrCat("--adopt=", mountpoint)}));
  // The pipe ends with the keeper's last word, or with the keeper.
  std::string said;
  char chunk[4096];
  for (ssize_t size; (size = read(keeper.ready.get(), chunk, sizeof(chunk))) != 0;) {
    if (size > 0) said.append(chunk, static_cast<size_t>(size));
    if (size < 0 && errno != EINTR) return base::ErrnoStatus(errno, "the keeper's pipe");
  }
  for (const absl::string_view line : absl::StrSplit(said, '\n', absl::SkipEmpty())) {
    ASSIGN_OR_RETURN(const control::ReadyMessage message, control::ParseReadyLine(line));
    if (message.kind == control::ReadyMessage::Kind::kReady) return absl::OkStatus();
    if (message.kind == control::ReadyMessage::Kind::kFailed) {
      return absl::UnavailableError(message.error);
    }
  }
  return absl::UnavailableError(absl::StrCat("the keeper of ", mountpoint, " died at its start"));
}

bool WaitForExit(pid_t pid, absl::Duration timeout) {
  const base::UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (process.valid()) {
    pollfd waited = {process.get(), POLLIN, 0};
    poll(&waited, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout)));
  }
  return waitpid(pid, nullptr, WNOHANG) == pid;
}

}  // namespace millrace::cli
