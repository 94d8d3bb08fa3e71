// A session that the daemon opens and mounts itself.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "fuse/adapter/mount.h"

namespace millrace::daemon {

struct DirectSession {
  adapter::Session session;
  std::unique_ptr<vfs::BackingFiles> backing;
};

absl::StatusOr<DirectSession> MountDirectly(const std::string& mountpoint,
                                            const std::string& source, bool allow_other);
void UnmountDirectly(const std::string& mountpoint);

}  // namespace millrace::daemon
