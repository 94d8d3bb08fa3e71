// What a daemon died of, as far as the kernel tells.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "fuse/keeper/session_state.h"

namespace millrace::keeper {

// How a process ended.
struct Exit {
  enum class How { kUnknown, kStatus, kSignal } how = How::kUnknown;
  int number = 0;  // The exit status, or the signal.

  bool IsStatus(int status) const { return how == How::kStatus && number == status; }
};

// Reaps a process that ended and says how. One that is not our child (a daemon that was adopted)
// cannot be reaped; the kernel tells since Linux 6.15.
Exit ReapExit(int pidfd);

// "killed by signal 11 (Segmentation fault)", "exited with status 1".
std::string DescribeExit(const Exit& exit);

// How often the kernel killed for want of memory, where this process counts: in its memory cgroup
// (v1 or v2), and in the whole machine. Zero where it cannot be read.
struct OomKills {
  std::string cgroup;  // The file that was read.
  uint64_t in_cgroup = 0;
  uint64_t on_machine = 0;
};
OomKills ReadOomKills(pid_t pid);

// The file of /sys/fs/cgroup that counts for a process with this /proc/PID/cgroup; empty: none.
// The directories of a container are what it sees of the machine's: the nearest one that exists.
std::string OomFileOf(absl::string_view proc_cgroup);
// The line "oom_kill N" of memory.events or memory.oom_control.
uint64_t ParseOomKills(absl::string_view text);

// True if a SIGKILL between the two looks was most likely the kernel's, for want of memory.
bool KilledForMemory(const Exit& exit, const OomKills& before, const OomKills& after);

}  // namespace millrace::keeper
