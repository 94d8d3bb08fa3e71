#include "fuse/keeper/death.h"

#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/file_text.h"

namespace millrace::keeper {
namespace {

constexpr size_t kFileMax = 256 * 1024;

// include/uapi/linux/pidfd.h of Linux 6.15, which distributions' headers do not have yet.
struct PidfdInfo {
  uint64_t mask;
  uint64_t cgroupid;
  uint32_t pid, tgid, ppid;
  uint32_t ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
  int32_t exit_code;
};
static_assert(sizeof(PidfdInfo) == 64);
constexpr uint64_t kPidfdInfoExit = uint64_t{1} << 3;
constexpr unsigned long kPidfdGetInfo = _IOWR(0xFF, 11, PidfdInfo);

Exit FromWaitStatus(int status) {
  if (WIFEXITED(status)) return {Exit::How::kStatus, WEXITSTATUS(status)};
  if (WIFSIGNALED(status)) return {Exit::How::kSignal, WTERMSIG(status)};
  return {};
}

uint64_t MachineOomKills() {
  return ParseOomKills(base::ReadTextFile("/proc/vmstat", kFileMax).value_or(""));
}

}  // namespace

Exit ReapExit(int pidfd) {
  siginfo_t info = {};
  int result;
  while ((result = waitid(P_PIDFD, static_cast<id_t>(pidfd), &info, WEXITED | WNOHANG)) < 0 &&
         errno == EINTR) {
  }
  if (result == 0 && info.si_pid != 0) {
    return {info.si_code == CLD_EXITED ? Exit::How::kStatus : Exit::How::kSignal, info.si_status};
  }
  PidfdInfo of_stranger = {};
  of_stranger.mask = kPidfdInfoExit;
  if (ioctl(pidfd, kPidfdGetInfo, &of_stranger) == 0 && (of_stranger.mask & kPidfdInfoExit) != 0) {
    return FromWaitStatus(of_stranger.exit_code);
  }
  return {};
}

std::string DescribeExit(const Exit& exit) {
  switch (exit.how) {
    case Exit::How::kStatus:
      return absl::StrCat("exited with status ", exit.number);
    case Exit::How::kSignal:
      return absl::StrCat("killed by signal ", exit.number, " (", strsignal(exit.number), ")");
    case Exit::How::kUnknown:
      break;
  }
  return "ended";
}

std::string OomFileOf(absl::string_view proc_cgroup) {
  for (const absl::string_view line : absl::StrSplit(proc_cgroup, '\n')) {
    // hierarchy:controllers:path; version 2 is hierarchy 0 without controllers.
    const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    bool memory = false;
    for (const absl::string_view controller : absl::StrSplit(fields[1], ',')) {
      memory |= controller == "memory";
    }
    const bool unified = fields[0] == "0" && fields[1].empty();
    if (!memory && !unified) continue;
    const absl::string_view root = memory ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup";
    const absl::string_view file = memory ? "/memory.oom_control" : "/memory.events";
    std::string path(fields[2]);
    while (true) {
      const std::string candidate = absl::StrCat(root, path == "/" ? "" : path, file);
      if (access(candidate.c_str(), R_OK) == 0) return candidate;
      const size_t slash = path.rfind('/');
      if (slash == std::string::npos || path.empty()) break;
      path.resize(slash);
    }
  }
  return "";
}

uint64_t ParseOomKills(absl::string_view text) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    uint64_t count = 0;
    if (words.size() == 2 && words[0] == "oom_kill" && absl::SimpleAtoi(words[1], &count)) {
      return count;
    }
  }
  return 0;
}

OomKills ReadOomKills(pid_t pid) {
  OomKills kills;
  kills.cgroup =
      OomFileOf(base::ReadTextFile(absl::StrCat("/proc/", pid, "/cgroup"), kFileMax).value_or(""));
  if (!kills.cgroup.empty()) {
    kills.in_cgroup = ParseOomKills(base::ReadTextFile(kills.cgroup, kFileMax).value_or(""));
  }
  kills.on_machine = MachineOomKills();
  return kills;
}

bool KilledForMemory(const Exit& exit, const OomKills& before, const OomKills& after) {
  if (exit.how != Exit::How::kSignal || exit.number != SIGKILL) return false;
  // A cgroup counts every kill in it, whoever ran out of memory. The machine's count has those of
  // strangers too: only where there is nothing better (moved to another cgroup meanwhile).
  if (!after.cgroup.empty() && before.cgroup == after.cgroup) {
    return after.in_cgroup > before.in_cgroup;
  }
  return after.on_machine > before.on_machine;
}

}  // namespace millrace::keeper
