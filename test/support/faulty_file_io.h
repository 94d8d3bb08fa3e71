// A FileIo that goes wrong on demand, in front of one that works: a full disk, a bad sector, a
// disk that lies. Thread-safe; plans may change while it is used.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>

#include "common/base/mutex.h"
#include "common/io/file_io.h"

namespace millrace::testing {

class FaultyFileIo : public io::FileIo {
 public:
  // What goes wrong. Numbers count from when the plan is set.
  struct Plan {
    // Writes that would exceed this many bytes in all fail with ENOSPC, and write what still fits.
    uint64_t space_bytes = std::numeric_limits<uint64_t>::max();
    // From which write or read on they fail (0: the first), how many, and with which errno.
    uint64_t write_fails_from = std::numeric_limits<uint64_t>::max();
    uint64_t write_fails_count = std::numeric_limits<uint64_t>::max();
    uint64_t read_fails_from = std::numeric_limits<uint64_t>::max();
    uint64_t read_fails_count = std::numeric_limits<uint64_t>::max();
    int error = 5;  // EIO
    // From which read on one byte is flipped.
    uint64_t read_corrupts_from = std::numeric_limits<uint64_t>::max();
    bool sync_fails = false;
    // ReadNow answers "not in memory", so that Read is asked.
    bool nothing_in_memory = false;
  };

  // `base` must outlive this.
  explicit FaultyFileIo(io::FileIo* base) : base_(base) {}

  void Set(const Plan& plan);
  void Heal() { Set(Plan()); }
  uint64_t faults() const;

  absl::StatusOr<absl::optional<size_t>> ReadNow(int fd, uint64_t offset,
                                                 absl::Span<char> buffer) override;
  void Read(int fd, uint64_t offset, absl::Span<char> buffer, io::ReadDone done) override;
  absl::Status Write(int fd, uint64_t offset, absl::Span<const char> data) override;
  absl::Status Sync(int fd) override;

 private:
  enum class Verdict { kFine, kFail, kCorrupt };
  Verdict JudgeRead(int* error);

  io::FileIo* const base_;
  mutable base::Mutex mutex_;
  Plan plan_ ABSL_GUARDED_BY(mutex_);
  uint64_t writes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t reads_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t written_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t faults_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace millrace::testing
