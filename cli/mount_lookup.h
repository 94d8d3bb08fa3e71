// From what a user typed to a mount of this user and paths inside it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/mount_table.h"
#include "common/control/run_directory.h"

namespace millrace::cli {

// The living mount at `mountpoint`, with its daemon's socket. Errors tell apart: no such mount, a
// mount of something else, a mount of another user, a mount whose daemon died.
absl::StatusOr<control::FoundMount> FindLivingMount(absl::string_view mountpoint);

// Paths inside the mount, without slashes at their ends: an absolute path must lie below
// `mountpoint`; a relative one is taken below `cwd` where that is inside the mount, else below the
// mountpoint. InvalidArgument names the path that leaves the mount.
absl::StatusOr<std::vector<std::string>> PathsInside(absl::string_view mountpoint,
                                                     absl::string_view cwd,
                                                     const std::vector<std::string>& paths);

// The current directory; "/" when it cannot be told (it was removed).
std::string CurrentDirectory();

}  // namespace millrace::cli
