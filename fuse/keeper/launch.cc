#include "fuse/keeper/launch.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

extern char** environ;

namespace millrace::keeper {
namespace {

// A program on a dead network disk must not stop the keeper for ever.
constexpr int kExecTimeoutMs = 30'000;
constexpr int kEndTimeoutMs = 1000;
constexpr int kFirstFreeFd = 3;

// What a child that failed says through the pipe.
struct Failure {
  char step[56];
  int error;
};

// Everything the child needs, laid out before the fork: it must not allocate.
struct Plan {
  int program = -1;
  int failure_pipe = -1;
  std::vector<std::pair<int, int>> descriptors;  // Copies of ours above all numbers, by number.
  std::vector<int> open;                         // What stays open, ascending.
  std::vector<char*> argv;
  std::string oom_score_adj;
  const Identity* identity = nullptr;
};

// libc's wrappers of these change all threads of a process, with locks and signals that mean
// nothing in a forked child; the system calls change the caller.
long SetGroups() { return syscall(SYS_setgroups, 0, nullptr); }
long SetGids(uint32_t gid) { return syscall(SYS_setresgid, gid, gid, gid); }
long SetUids(uint32_t uid) { return syscall(SYS_setresuid, uid, uid, uid); }

// One set of capabilities as capset(2) takes it.
struct Capabilities {
  uint64_t effective = 0;
  uint64_t permitted = 0;
  uint64_t inheritable = 0;
};
constexpr uint64_t kReadSearch = uint64_t{1} << CAP_DAC_READ_SEARCH;

__user_cap_header_struct CapabilityHeader() { return {_LINUX_CAPABILITY_VERSION_3, 0}; }

bool GetCapabilities(Capabilities* capabilities) {
  __user_cap_header_struct header = CapabilityHeader();
  __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};
  if (syscall(SYS_capget, &header, data) != 0) return false;
  const auto join = [](uint32_t low, uint32_t high) { return low | uint64_t{high} << 32; };
  capabilities->effective = join(data[0].effective, data[1].effective);
  capabilities->permitted = join(data[0].permitted, data[1].permitted);
  capabilities->inheritable = join(data[0].inheritable, data[1].inheritable);
  return true;
}

bool SetCapabilities(const Capabilities& capabilities) {
  __user_cap_header_struct header = CapabilityHeader();
  __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};
  for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; ++i) {
    data[i].effective = static_cast<uint32_t>(capabilities.effective >> (32 * i));
    data[i].permitted = static_cast<uint32_t>(capabilities.permitted >> (32 * i));
    data[i].inheritable = static_cast<uint32_t>(capabilities.inheritable >> (32 * i));
  }
  return syscall(SYS_capset, &header, data) == 0;
}

// EINVAL: the kernel has no more than those before.
bool DropBoundingSet() {
  for (unsigned long capability = 0; capability < 64; ++capability) {
    if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0) return errno == EINVAL && capability > 0;
  }
  return true;
}

// --- The child: async-signal-safe from here...
// ----------------------------------------------------

[[noreturn]] void Fail(int pipe, const char* step) {
  Failure failure = {};
  failure.error = errno;
  for (size_t i = 0; step[i] != '\0' && i + 1 < sizeof(failure.step); ++i) {
    failure.step[i] = step[i];
  }
  // Less than PIPE_BUF: all or nothing. Without a reader there is nobody to tell.
  [[maybe_unused]] const ssize_t written = write(pipe, &failure, sizeof(failure));
  _exit(127);
}

void ResetSignals() {
  struct sigaction action = {};
  action.sa_handler = SIG_DFL;
  // Those that cannot be set (SIGKILL, SIGSTOP, the C library's own) are at their default.
  for (int signal = 1; signal <= SIGRTMAX; ++signal) sigaction(signal, &action, nullptr);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

// Closes from `first` to `last`, both included. False leaves errno.
bool CloseRange(unsigned first, unsigned last) {
  if (first > last || syscall(SYS_close_range, first, last, 0) == 0) return true;
  // Before Linux 5.9, or below a filter that does not know the call.
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
  const rlim_t end = std::min<rlim_t>(limit.rlim_cur, rlim_t{last} + 1);
  for (rlim_t fd = first; fd < end; ++fd) close(static_cast<int>(fd));
  return true;
}

bool CloseOthers(const std::vector<int>& open) {
  unsigned next = 0;
  for (const int fd : open) {
    const auto number = static_cast<unsigned>(fd);
    if (number > next && !CloseRange(next, number - 1)) return false;
    next = number + 1;
  }
  return CloseRange(next, std::numeric_limits<int>::max());
}

// As many as the user of the keeper may have: the new one might not be allowed to ask for them.
bool RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
  limit.rlim_cur = limit.rlim_max;
  return setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

void SetOomScore(const std::string& text) {
  // Not worth a mount: without privilege the old score may be the least that is allowed.
  const int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  [[maybe_unused]] const ssize_t written = write(fd, text.data(), text.size());
  close(fd);
}

[[noreturn]] void RunChild(const Plan& plan) {
  const int pipe = plan.failure_pipe;
  ResetSignals();
  if (setsid() < 0) Fail(pipe, "setsid");
  SetOomScore(plan.oom_score_adj);
  for (const auto& [copy, number] : plan.descriptors) {
    if (dup2(copy, number) < 0) Fail(pipe, "dup2");
  }
  if (!CloseOthers(plan.open)) Fail(pipe, "closing descriptors");
  if (!RaiseDescriptorLimit()) Fail(pipe, "raising the limit of open files");
  if (plan.identity != nullptr) {
    if (const char* const step = AssumeIdentity(*plan.identity); step != nullptr) Fail(pipe, step);
  }
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) Fail(pipe, "no_new_privs");
  syscall(SYS_execveat, plan.program, "", plan.argv.data(), environ, AT_EMPTY_PATH);
  Fail(pipe, "exec");
}

// --- ... to here
// ----------------------------------------------------------------------------------

// A copy of `fd` at `floor` or above, closed by an exec.
absl::StatusOr<base::UniqueFd> CopyAbove(int fd, int floor) {
  base::UniqueFd copy(fcntl(fd, F_DUPFD_CLOEXEC, floor));
  if (!copy.valid()) return base::ErrnoStatus(errno, absl::StrCat("copying descriptor ", fd));
  return copy;
}

// The child's word, or OK when the program runs.
absl::Status Await(int pipe, const std::string& name) {
  Failure failure = {};
  pollfd waited = {pipe, POLLIN, 0};
  int ready = 0;
  do {
    ready = poll(&waited, 1, kExecTimeoutMs);
  } while (ready < 0 && errno == EINTR);
  if (ready == 0) {
    return absl::DeadlineExceededError(absl::StrCat("cannot start ", name,
                                                    ": its file could not be read within ",
                                                    kExecTimeoutMs / 1000, " s"));
  }
  ssize_t size = 0;
  do {
    size = read(pipe, &failure, sizeof(failure));
  } while (size < 0 && errno == EINTR);
  if (size < 0) return base::ErrnoStatus(errno, "reading what a child says");
  if (size == 0) return absl::OkStatus();  // Closed by the exec, or by an early death: see pidfd.
  failure.step[sizeof(failure.step) - 1] = '\0';
  return base::ErrnoStatus(failure.error, absl::StrCat("cannot start ", name, ": ", failure.step));
}

absl::StatusOr<pid_t> Fork(const Plan& plan) {
  // No handler of ours may run in the child.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t pid = fork();
  if (pid == 0) RunChild(plan);
  const int error = errno;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) return base::ErrnoStatus(error, "fork");
  return pid;
}

// Not longer than it takes a process that can end: one that hangs in a dead disk stays a zombie.
void EndChild(const Child& child) {
  kill(child.pid, SIGKILL);
  pollfd waited = {child.pidfd.get(), POLLIN, 0};
  poll(&waited, 1, kEndTimeoutMs);
  waitpid(child.pid, nullptr, child.pidfd.valid() ? WNOHANG : 0);
}

}  // namespace

const char* AssumeIdentity(const Identity& identity) {
  Capabilities capabilities;
  if (!GetCapabilities(&capabilities)) return "capget";
  // First, while the bounding set allows it: what is to be ambient must be inheritable.
  capabilities.inheritable = identity.read_search ? kReadSearch : 0;
  if (!SetCapabilities(capabilities)) return "capset of the inheritable set";
  if (!DropBoundingSet()) return "dropping the bounding set";
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0) return "clearing ambient";
  // Or else the change of the user ids takes what is to be kept.
  if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0) return "keepcaps";
  if (SetGroups() != 0) return "setgroups";
  if (SetGids(identity.gid) != 0) return "setresgid";
  if (SetUids(identity.uid) != 0) return "setresuid";
  if (prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) != 0) return "keepcaps";
  const uint64_t kept = identity.read_search ? kReadSearch : 0;
  if (!SetCapabilities({.effective = kept, .permitted = kept, .inheritable = kept})) {
    return "capset";
  }
  // Ambient is the set that an exec of an ordinary file passes on.
  if (identity.read_search &&
      prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH, 0, 0) != 0) {
    return "raising ambient";
  }
  return nullptr;
}

absl::StatusOr<Child> Launch(const LaunchOptions& options) {
  const std::string name = options.arguments.empty() ? "" : options.arguments.front();
  if (name.empty() || options.program_fd < 0) {
    return absl::InvalidArgumentError("no program to start");
  }
  Plan plan;
  plan.oom_score_adj = absl::StrCat(options.oom_score_adj);
  plan.identity = options.identity.has_value() ? &*options.identity : nullptr;
  std::vector<std::string> arguments = options.arguments;
  for (std::string& argument : arguments) plan.argv.push_back(argument.data());
  plan.argv.push_back(nullptr);

  std::vector<std::pair<int, int>> descriptors = options.descriptors;
  const base::UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null.valid()) return base::ErrnoStatus(errno, "/dev/null");
  for (int fd = 0; fd < kFirstFreeFd; ++fd) {
    const auto is_fd = [fd](const std::pair<int, int>& each) { return each.second == fd; };
    if (std::none_of(descriptors.begin(), descriptors.end(), is_fd)) {
      descriptors.emplace_back(null.get(), fd);
    }
  }
  int floor = kFirstFreeFd;
  for (const auto& [ours, number] : descriptors) {
    if (number < 0) return absl::InvalidArgumentError("a negative descriptor");
    floor = std::max(floor, number + 1);
  }
  // All of them first move out of the way of the numbers they get. Also what stays open until the
  // exec: it must not be overwritten.
  std::vector<base::UniqueFd> copies;
  for (const auto& [ours, number] : descriptors) {
    ASSIGN_OR_RETURN(base::UniqueFd copy, CopyAbove(ours, floor));
    plan.descriptors.emplace_back(copy.get(), number);
    plan.open.push_back(number);
    copies.push_back(std::move(copy));
  }
  ASSIGN_OR_RETURN(const base::UniqueFd program, CopyAbove(options.program_fd, floor));
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return base::ErrnoStatus(errno, "pipe");
  const base::UniqueFd read_end(ends[0]);
  base::UniqueFd write_end(ends[1]);
  ASSIGN_OR_RETURN(write_end, CopyAbove(write_end.get(), floor));
  plan.program = program.get();
  plan.failure_pipe = write_end.get();
  plan.open.push_back(plan.program);
  plan.open.push_back(plan.failure_pipe);
  std::sort(plan.open.begin(), plan.open.end());

  Child child;
  ASSIGN_OR_RETURN(child.pid, Fork(plan));
  // Our child, and not reaped: the number is still its own.
  child.pidfd = base::UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, child.pid, 0)));
  absl::Status status =
      child.pidfd.valid() ? absl::OkStatus() : base::ErrnoStatus(errno, "pidfd_open");
  write_end.Reset();
  if (status.ok()) status = Await(read_end.get(), name);
  if (!status.ok()) {
    EndChild(child);
    return status;
  }
  return child;
}

}  // namespace millrace::keeper
