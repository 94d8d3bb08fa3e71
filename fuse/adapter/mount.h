// One mounted file system: the session with the kernel, its threads, and the translation between
// FUSE requests and the Vfs. The only code that knows libfuse.
//
// A session outlives the process that serves it: the device is opened, mounted and held by another
// one, and what was said at its beginning (INIT) is saved, so that a successor can go on where this
// one died. Nothing here mounts or unmounts.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/unique_fd.h"
#include "fuse/vfs/vfs.h"

namespace millrace::adapter {

struct MountOptions {
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint32_t file_mode = 0444;
  uint32_t directory_mode = 0555;
  bool passthrough = true;  // Asked for where the kernel and the session's rights allow it.
  // How deep the file systems of the cache may be stacked for passthrough: 1, or 2 when a tier is
  // on an overlayfs (a container's root). At 2 nothing can be stacked on the mount itself.
  uint32_t backing_stack_depth = 1;
  // Threads that answer requests. The kernel wakes them in turn, and they wait for no disk and no
  // store: more than the processors can run only get in each other's way.
  size_t threads = std::clamp<size_t>(2 * std::thread::hardware_concurrency(), 4, 16);
  // What the kernel reads ahead at most; it takes the bdi attribute of whoever mounted to get
  // there. One request carries at most 1 MiB.
  uint32_t read_ahead_kib = 4096;
  // How long the kernel may believe that a name does not exist. Names that exist are believed
  // until the tree says otherwise.
  absl::Duration negative_timeout = absl::Seconds(60);
  // Requests come through io_uring, where the kernel allows it. They die with this process, and no
  // successor can take the session over: it must end with this process.
  bool uring = false;
};

// What a mount is served through, from whoever holds it.
struct Session {
  base::UniqueFd device;  // /dev/fuse, mounted.
  // The INIT request of the session, as its first server received it; empty: this is the first.
  std::string saved_init;
  // Called once in a new session, with INIT, before it is answered. An error ends Create.
  absl::AnyInvocable<absl::Status(absl::string_view init)> save_init;
  vfs::BackingFiles* backing = nullptr;  // Null: no passthrough. Must outlive the mount.
};

// Whether MountOptions::uring may be asked for: libfuse 3.18 as it was released loses requests that
// are answered by another thread than the ring's (its issue 1443), as most slow ones are here.
bool HasUring();

// The requests counted, by the "op" label of millrace_fuse_requests_total.
inline constexpr std::array<const char*, 12> kOperations = {
    "lookup",  "forget",  "getattr",    "open",   "read",  "release",
    "opendir", "readdir", "releasedir", "statfs", "xattr", "access"};
using OperationCounts = std::array<std::atomic<uint64_t>, kOperations.size()>;

// What the kernel granted.
struct Features {
  bool passthrough = false;
  bool without_open = false;  // May answer OPEN with ENOSYS.
  bool direct = false;        // Files that by-pass the page cache can be mapped all the same.
  bool uring = false;
  uint32_t protocol_minor = 0;
};

class Mount {
 public:
  virtual ~Mount() = default;

  // Starts to answer. Returns in a new session when INIT was answered, in a taken over one when
  // the kernel was told to send again what the predecessor left unanswered.
  // `make_vfs` is called once, before the first request, with what the Vfs needs from here: the
  // registry of backing files (null without passthrough), and what the kernel can do.
  // `capacity` tells statfs the cache's size: capacity and used, in bytes.
  struct Capacity {
    uint64_t capacity_bytes = 0;
    uint64_t used_bytes = 0;
    uint64_t files = 0;
  };
  using MakeVfs =
      absl::AnyInvocable<std::unique_ptr<vfs::Vfs>(vfs::BackingFiles*, const Features&)>;
  static absl::StatusOr<std::unique_ptr<Mount>> Create(const MountOptions& options, Session session,
                                                       MakeVfs make_vfs,
                                                       absl::AnyInvocable<Capacity()> capacity);

  virtual vfs::Vfs& vfs() = 0;
  virtual Features features() const = 0;
  virtual const OperationCounts& operations() const = 0;

  // Returns when the file system was unmounted (by anybody) or a signal asked to end.
  virtual void Wait() = 0;
  // Ends Wait. Safe from any thread.
  virtual void Stop() = 0;

  // Hands the session over to a successor: takes no more requests, waits up to `timeout` until
  // those it took are answered, and lets go of device and ledger. Nothing that this process does
  // afterwards reaches the kernel or the successor. Ends Wait. False when requests were left; the
  // successor gets them sent again. REQUIRES: not features().uring.
  virtual bool Detach(absl::Duration timeout) = 0;
};

}  // namespace millrace::adapter
