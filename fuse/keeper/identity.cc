#include "fuse/keeper/identity.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/base/errno_status.h"
#include "common/base/file_text.h"
#include "common/base/paths.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace millrace::keeper {
namespace {

constexpr char kPasswdPath[] = "/etc/passwd";
constexpr size_t kPasswdSizeMax = 16 << 20;
constexpr size_t kStatusSizeMax = 1 << 20;
// As proc(5) writes it.
constexpr uint64_t kReadSearchOnly = uint64_t{1} << CAP_DAC_READ_SEARCH;
// A path on a dead network disk answers nothing; then it counts as out of reach.
constexpr absl::Duration kProbeTimeout = absl::Seconds(10);

// A thing the daemon must get at.
struct Need {
  std::string path;
  int mode;          // As for access(2).
  std::string name;  // For people: "the key file /root/key".
};

// What a child that became the user found.
struct Probe {
  bool possible = false;  // We may become that user.
  std::string obstacle;   // Why not.
  // The first need that is out of reach.
  std::optional<size_t> unreachable;
};

// The answer: kReachable for the user, then a byte a need; or a zero and the step that failed.
constexpr char kReachable = 1;
constexpr char kUnreachable = 2;

[[noreturn]] void RunProbe(const Identity& identity, const std::vector<Need>& needs, int pipe) {
  const auto say = [pipe](const char* text, size_t size) {
    [[maybe_unused]] const ssize_t written = write(pipe, text, size);
  };
  if (const char* const step = AssumeIdentity(identity); step != nullptr) {
    say("", 1);  // The zero.
    say(step, strlen(step));
    _exit(1);
  }
  say(&kReachable, 1);
  for (const Need& need : needs) {
    const bool reachable = access(need.path.c_str(), need.mode) == 0;
    say(reachable ? &kReachable : &kUnreachable, 1);
  }
  _exit(0);
}

// All that comes through the pipe until its end or the deadline.
std::string ReadAnswer(int pipe) {
  const absl::Time deadline = absl::Now() + kProbeTimeout;
  std::string answer;
  char buffer[256];
  for (;;) {
    const absl::Duration left = deadline - absl::Now();
    pollfd waited = {pipe, POLLIN, 0};
    if (left <= absl::ZeroDuration()) return answer;
    if (poll(&waited, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1) < 0 &&
        errno != EINTR) {
      return answer;
    }
    if (waited.revents == 0) continue;
    const ssize_t size = read(pipe, buffer, sizeof(buffer));
    if (size == 0 || (size < 0 && errno != EINTR)) return answer;
    if (size > 0) answer.append(buffer, static_cast<size_t>(size));
  }
}

absl::StatusOr<Probe> ProbeAs(const Identity& identity, const std::vector<Need>& needs) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return base::ErrnoStatus(errno, "pipe");
  const base::UniqueFd read_end(ends[0]);
  base::UniqueFd write_end(ends[1]);
  const pid_t pid = fork();
  if (pid < 0) return base::ErrnoStatus(errno, "fork");
  if (pid == 0) RunProbe(identity, needs, write_end.get());
  write_end.Reset();
  const std::string answer = ReadAnswer(read_end.get());
  kill(pid, SIGKILL);
  // It ended, or hangs in a disk and becomes a zombie of ours.
  for (int i = 0; i < 100 && waitpid(pid, nullptr, WNOHANG) == 0; ++i) poll(nullptr, 0, 10);

  Probe probe;
  if (answer.empty() || answer.front() != kReachable) {
    probe.obstacle = answer.empty() ? "no answer" : answer.substr(1);
    return probe;
  }
  probe.possible = true;
  for (size_t i = 0; i < needs.size() && !probe.unreachable.has_value(); ++i) {
    if (i + 1 >= answer.size() || answer[i + 1] != kReachable) probe.unreachable = i;
  }
  return probe;
}

// The nearest directory above `path` that is there: those below it will be made, for all to enter.
std::string DirectoryAbove(const std::string& path) {
  std::string above = path;
  for (;;) {
    const size_t slash = above.rfind('/');
    if (slash == std::string::npos || slash == 0) return "/";
    above.resize(slash);
    struct stat found;
    if (stat(above.c_str(), &found) == 0) return above;
  }
}

std::vector<Need> NeedsOf(const IdentityRequest& request) {
  std::vector<Need> needs;
  for (const std::string& file : request.files) {
    // Whoever reads it says that it is missing.
    if (access(file.c_str(), F_OK) != 0) continue;
    needs.push_back({file, R_OK, absl::StrCat("the file ", file)});
  }
  for (const std::string& tier : request.tiers) {
    const std::string path = base::ResolvePath(tier);
    needs.push_back({DirectoryAbove(path), X_OK, absl::StrCat("the cache ", path)});
  }
  return needs;
}

struct User {
  std::string name;
  Identity identity;
};

absl::StatusOr<User> WantedUser(const std::string& wanted) {
  const absl::StatusOr<std::string> passwd = base::ReadTextFile(kPasswdPath, kPasswdSizeMax);
  const std::string text = passwd.value_or("");
  if (!wanted.empty()) {
    absl::StatusOr<Identity> identity = FindUser(wanted, text);
    if (!identity.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--user ", wanted, ": ", kPasswdPath,
                       " has no such user; name one that it has, or give a number"));
    }
    return User{wanted, *identity};
  }
  if (const absl::StatusOr<Identity> identity = FindUser(kSystemUser, text); identity.ok()) {
    return User{kSystemUser, *identity};
  }
  return User{"nobody", {.uid = kNobody, .gid = kNobody}};
}

// A worker's socket is a directory entry of its owner and a group: to connect is to write to it.
void JoinGroupOf(const std::string& socket, User* user) {
  struct stat found;
  if (stat(socket.c_str(), &found) != 0 || !S_ISSOCK(found.st_mode)) return;
  const bool for_group = (found.st_mode & S_IWGRP) != 0 && (found.st_mode & S_IWOTH) == 0;
  if (!for_group || found.st_gid == 0 || found.st_gid == user->identity.gid ||
      user->identity.uid == 0) {
    return;
  }
  user->identity.gid = found.st_gid;
  absl::StrAppend(&user->name, " in the group of ", socket);
}

// The same with the capability, if the keeper has it to give.
absl::StatusOr<bool> CanReadSearch(Identity identity) {
  identity.read_search = true;
  ASSIGN_OR_RETURN(const Probe probe, ProbeAs(identity, {}));
  return probe.possible;
}

absl::StatusOr<IdentityChoice> ChooseOfUnprivileged(const std::string& wanted) {
  const uint32_t uid = geteuid();
  if (!wanted.empty()) {
    const absl::StatusOr<User> user = WantedUser(wanted);
    RETURN_IF_ERROR(user.status());
    if (user->identity.uid != uid) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--user ", wanted, ": only root can start a daemon as another user; leave it out"));
    }
  }
  return IdentityChoice{std::nullopt, absl::StrCat("user ", uid, ", as this command")};
}

}  // namespace

absl::StatusOr<Identity> FindUser(absl::string_view name, absl::string_view passwd) {
  uint32_t number = 0;
  // The highest number means "leave it" to the kernel.
  const bool is_number = absl::SimpleAtoi(name, &number) && number != UINT32_MAX;
  for (const absl::string_view line : absl::StrSplit(passwd, '\n')) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, ':');
    Identity identity;
    if (fields.size() < 4 || !absl::SimpleAtoi(fields[2], &identity.uid) ||
        !absl::SimpleAtoi(fields[3], &identity.gid)) {
      continue;
    }
    if (fields[0] == name || (is_number && identity.uid == number)) return identity;
  }
  if (is_number) return Identity{.uid = number, .gid = number};
  return absl::NotFoundError(absl::StrCat("no user ", name));
}

absl::StatusOr<IdentityChoice> ChooseIdentity(const IdentityRequest& request) {
  if (geteuid() != 0) return ChooseOfUnprivileged(request.user);
  ASSIGN_OR_RETURN(User user, WantedUser(request.user));
  if (!request.socket.empty()) JoinGroupOf(request.socket, &user);
  const std::vector<Need> needs = NeedsOf(request);
  ASSIGN_OR_RETURN(Probe probe, ProbeAs(user.identity, needs));
  if (!probe.possible) {
    if (!request.user.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("--user ", user.name,
                                                     ": root may not become that user here (",
                                                     probe.obstacle, "); leave the option out"));
    }
    // Root of a container that lacks CAP_SETUID or CAP_SETPCAP, or of a user namespace in which
    // nobody is not mapped.
    return IdentityChoice{std::nullopt,
                          absl::StrCat("root, with the privileges of this command, which may not "
                                       "become ",
                                       user.name, " (", probe.obstacle, ")")};
  }
  std::string reason;
  if (!request.sources.empty()) {
    reason = absl::StrCat("the source ", request.sources.front());
  } else if (probe.unreachable.has_value()) {
    reason = needs[*probe.unreachable].name;
  } else {
    return IdentityChoice{user.identity, absl::StrCat(user.name, ", without privileges")};
  }
  ASSIGN_OR_RETURN(user.identity.read_search, CanReadSearch(user.identity));
  if (user.identity.read_search) {
    return IdentityChoice{user.identity,
                          absl::StrCat(user.name, ", may read all files because of ", reason)};
  }
  // Containers are commonly made without this capability. Root without any can at least read what
  // is root's.
  Identity root;
  ASSIGN_OR_RETURN(probe, ProbeAs(root, {}));
  if (!probe.possible) root = user.identity;
  return IdentityChoice{
      root, absl::StrCat(probe.possible ? "root" : user.name, ", without privileges; ", reason,
                         " may need CAP_DAC_READ_SEARCH, which this container lacks")};
}

std::string DescribeIdentity(const Identity& identity) {
  return absl::StrCat("user ", identity.uid,
                      identity.read_search ? ", may read all files" : ", without privileges");
}

absl::StatusOr<std::optional<Identity>> IdentityOf(pid_t daemon) {
  if (geteuid() != 0) return std::nullopt;
  const std::string path = absl::StrCat("/proc/", daemon, "/status");
  ASSIGN_OR_RETURN(const std::string status, base::ReadTextFile(path, kStatusSizeMax));
  Identity identity;
  uint64_t capabilities = 0;
  int found = 0;
  for (const absl::string_view line : absl::StrSplit(status, '\n')) {
    const std::vector<absl::string_view> fields =
        absl::StrSplit(line, absl::ByAnyChar(":\t"), absl::SkipEmpty());
    if (fields.size() < 2) continue;
    // Real, effective, saved: a daemon has three times the same.
    found += (fields[0] == "Uid" && absl::SimpleAtoi(fields[1], &identity.uid)) ||
             (fields[0] == "Gid" && absl::SimpleAtoi(fields[1], &identity.gid)) ||
             (fields[0] == "CapPrm" && absl::SimpleHexAtoi(fields[1], &capabilities));
  }
  if (found != 3) return absl::InternalError(absl::StrCat(path, " is not what proc(5) says"));
  identity.read_search = capabilities == kReadSearchOnly;
  if (identity.uid == 0 && capabilities != 0 && !identity.read_search) return std::nullopt;
  return identity;
}

}  // namespace millrace::keeper
