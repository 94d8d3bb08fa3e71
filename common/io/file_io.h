// Reads and writes of cache files: the one door through which the cache touches a disk, so that
// tests can put a failing disk behind it.
//
// All implementations are safe for concurrent use. Descriptors stay the caller's and must stay
// open until the call's end (for Read: until `done` ran).
#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/optional.h"
#include "absl/types/span.h"

namespace millrace::io {

// The bytes read: fewer than asked only at the end of the file.
using ReadDone = absl::AnyInvocable<void(absl::StatusOr<size_t>) &&>;

using Pieces = absl::Span<const absl::Span<const char>>;

class FileIo {
 public:
  virtual ~FileIo() = default;

  // Reads only what is in memory already (preadv2 with RWF_NOWAIT): nullopt when the read would
  // have to wait for a disk. A file system that cannot tell (old tmpfs) is read at once.
  virtual absl::StatusOr<absl::optional<size_t>> ReadNow(int fd, uint64_t offset,
                                                         absl::Span<char> buffer) = 0;

  // Reads without blocking the caller. `done` runs exactly once, on any thread, perhaps before
  // Read returns. REQUIRES: `buffer` stays valid until then.
  virtual void Read(int fd, uint64_t offset, absl::Span<char> buffer, ReadDone done) = 0;

  // Writes all of `data` at `offset`; blocks. The errno is a payload of the status (ENOSPC, EIO).
  virtual absl::Status Write(int fd, uint64_t offset, absl::Span<const char> data) = 0;

  // The same for data in several pieces, which follow each other in the file.
  virtual absl::Status WritePieces(int fd, uint64_t offset, Pieces pieces) {
    for (const absl::Span<const char> piece : pieces) {
      if (absl::Status status = Write(fd, offset, piece); !status.ok()) return status;
      offset += piece.size();
    }
    return absl::OkStatus();
  }

  // Flushes the file's data to its device.
  virtual absl::Status Sync(int fd) = 0;
};

// Blocking reads on a small pool of threads: where the kernel has no io_uring or forbids it.
std::unique_ptr<FileIo> NewPosixFileIo(int threads);

// One ring, one thread that reaps it. Unavailable when io_uring cannot be set up, with the likely
// cause (seccomp, sysctl kernel.io_uring_disabled, RLIMIT_MEMLOCK) in the message.
absl::StatusOr<std::unique_ptr<FileIo>> NewUringFileIo(unsigned entries);

}  // namespace millrace::io
