// Who keeps a mount busy.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace millrace::cli {

struct MountUser {
  pid_t pid = 0;
  std::string command;
  std::string how;  // "has /data/a open", "works in /data", "maps /data/a".
};

// Processes with an open file, a working or root directory, or a mapped file below `mountpoint`,
// the first use of each, at most `max`. Only processes this user may look into; `except` (the
// daemon) is left out. Reads /proc alone, never the mount.
std::vector<MountUser> FindMountUsers(absl::string_view mountpoint, pid_t except, size_t max);

// "1234 python3 (has /data/a open), 77 bash (works in /data)".
std::string DescribeUsers(const std::vector<MountUser>& users);

}  // namespace millrace::cli
