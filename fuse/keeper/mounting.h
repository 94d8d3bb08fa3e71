// The mount itself: made with the kernel's own call by root, with fusermount3 by everybody else.
//
// Stateless. Nothing here asks the mounted file system anything, but where said: it may hang.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/mount_table.h"
#include "common/base/unique_fd.h"

namespace millrace::keeper {

struct MountRequest {
  std::string mountpoint;
  std::string source_text;  // The device column of /proc/mounts.
  bool allow_other = false;
  // The kernel compares owner, group and mode with the caller before each step of a path. Not
  // needed where everybody may read everything: the daemon then answers access(2), the one
  // question that is left.
  bool check_permissions = true;
};

// Mounts read-only and returns the device. Blocks for a system call, or a run of fusermount3.
absl::StatusOr<base::UniqueFd> MountFuse(const MountRequest& request);

// Mounts in the place of our mount on top at the mountpoint, and detaches that: programs keep what
// they have open of it. For root on Linux 6.5 there is no moment without a mount.
absl::StatusOr<base::UniqueFd> ReplaceFuse(const MountRequest& request);

// The options of fusermount3, with what would end the source's text escaped.
std::string FusermountOptions(const MountRequest& request);

// The mount of ours that is on top at `mountpoint`; nullopt when there is none.
std::optional<base::MountEntry> FindMillraceMount(const std::string& mountpoint);

// Raises what the kernel reads ahead on this mount; false where that is not allowed (root only).
// After INIT was answered: that sets it.
bool RaiseReadAhead(const base::MountEntry& mount, unsigned kib);

// True if nobody serves the mount at `mountpoint` any more (ENOTCONN). Asks the mount, from a
// thread that is left behind when there is no answer in time: then somebody does.
bool IsMountDead(const std::string& mountpoint, absl::Duration timeout);

}  // namespace millrace::keeper
