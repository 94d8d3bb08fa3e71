// One mounted file system: the session with the kernel, its threads, and the translation between
// FUSE requests and the Vfs. The only code that knows libfuse.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fuse/vfs/vfs.h"

namespace millrace::adapter {

struct MountOptions {
  std::string mountpoint;
  std::string source_text;  // The device column of /proc/mounts.
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint32_t file_mode = 0444;
  uint32_t directory_mode = 0555;
  bool allow_other = true;
  bool passthrough = true;  // Asked for where the kernel and our rights allow it.
  // How deep the file systems of the cache may be stacked for passthrough: 1, or 2 when a tier is
  // on an overlayfs (a container's root). At 2 nothing can be stacked on the mount itself.
  uint32_t backing_stack_depth = 1;
  size_t threads = 8;
  // Pages the kernel reads ahead; bdi attribute, needs root. One request carries at most 1 MiB.
  uint32_t read_ahead_kib = 4096;
  // How long the kernel may believe that a name does not exist. Names that exist are believed
  // until the tree says otherwise.
  absl::Duration negative_timeout = absl::Seconds(60);
};

// The requests counted, by the "op" label of millrace_fuse_requests_total.
inline constexpr std::array<const char*, 11> kOperations = {
    "lookup",  "forget",  "getattr",    "open",   "read", "release",
    "opendir", "readdir", "releasedir", "statfs", "xattr"};
using OperationCounts = std::array<std::atomic<uint64_t>, kOperations.size()>;

// What the kernel granted.
struct Features {
  bool passthrough = false;
  bool without_open = false;  // May answer OPEN with ENOSYS.
  bool read_ahead_raised = false;
  uint32_t protocol_minor = 0;
};

class Mount {
 public:
  virtual ~Mount() = default;

  // Mounts and starts to answer. Returns when the mount answers a stat of its root.
  // `make_vfs` is called once, before the first request, with what the Vfs needs from here: the
  // registry of backing files (null without passthrough).
  // `capacity` tells statfs the cache's size: capacity and used, in bytes.
  struct Capacity {
    uint64_t capacity_bytes = 0;
    uint64_t used_bytes = 0;
    uint64_t files = 0;
  };
  static absl::StatusOr<std::unique_ptr<Mount>> Create(
      const MountOptions& options,
      absl::AnyInvocable<std::unique_ptr<vfs::Vfs>(vfs::BackingFiles*)> make_vfs,
      absl::AnyInvocable<Capacity()> capacity);

  virtual vfs::Vfs& vfs() = 0;
  virtual Features features() const = 0;
  virtual const OperationCounts& operations() const = 0;

  // Returns when the file system was unmounted (by anybody) or a signal asked to end.
  virtual void Wait() = 0;
  // Ends Wait. Safe from any thread.
  virtual void Stop() = 0;
};

}  // namespace millrace::adapter
