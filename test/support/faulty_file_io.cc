#include "test/support/faulty_file_io.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "common/base/errno_status.h"

namespace millrace::testing {

void FaultyFileIo::Set(const Plan& plan) {
  base::MutexLock lock(&mutex_);
  plan_ = plan;
  writes_ = reads_ = written_ = 0;
}

uint64_t FaultyFileIo::faults() const {
  base::MutexLock lock(&mutex_);
  return faults_;
}

FaultyFileIo::Verdict FaultyFileIo::JudgeRead(int* error) {
  base::MutexLock lock(&mutex_);
  const uint64_t number = reads_++;
  if (number >= plan_.read_fails_from && number - plan_.read_fails_from < plan_.read_fails_count) {
    ++faults_;
    *error = plan_.error;
    return Verdict::kFail;
  }
  if (number < plan_.read_corrupts_from) return Verdict::kFine;
  ++faults_;
  return Verdict::kCorrupt;
}

absl::StatusOr<absl::optional<size_t>> FaultyFileIo::ReadNow(int fd, uint64_t offset,
                                                             absl::Span<char> buffer) {
  {
    base::MutexLock lock(&mutex_);
    if (plan_.nothing_in_memory) return absl::optional<size_t>();
  }
  int error = 0;
  const Verdict verdict = JudgeRead(&error);
  if (verdict == Verdict::kFail) return base::ErrnoStatus(error, "injected");
  absl::StatusOr<absl::optional<size_t>> got = base_->ReadNow(fd, offset, buffer);
  if (verdict == Verdict::kCorrupt && !buffer.empty()) buffer[buffer.size() / 2] ^= 1;
  return got;
}

void FaultyFileIo::Read(int fd, uint64_t offset, absl::Span<char> buffer, io::ReadDone done) {
  int error = 0;
  const Verdict verdict = JudgeRead(&error);
  if (verdict == Verdict::kFail) {
    std::move(done)(base::ErrnoStatus(error, "injected"));
    return;
  }
  base_->Read(fd, offset, buffer,
              [buffer, verdict, done = std::move(done)](absl::StatusOr<size_t> got) mutable {
                if (verdict == Verdict::kCorrupt && !buffer.empty()) {
                  buffer[buffer.size() / 2] ^= 1;
                }
                std::move(done)(std::move(got));
              });
}

absl::Status FaultyFileIo::Write(int fd, uint64_t offset, absl::Span<const char> data) {
  uint64_t fits = data.size();
  int error = 0;
  {
    base::MutexLock lock(&mutex_);
    const uint64_t number = writes_++;
    if (number >= plan_.write_fails_from &&
        number - plan_.write_fails_from < plan_.write_fails_count) {
      fits = 0;
      error = plan_.error;
    } else if (data.size() > plan_.space_bytes - std::min(written_, plan_.space_bytes)) {
      fits = plan_.space_bytes - std::min(written_, plan_.space_bytes);
      error = ENOSPC;
    }
    written_ += fits;
    if (error != 0) ++faults_;
  }
  if (fits > 0) {
    absl::Status status = base_->Write(fd, offset, data.subspan(0, fits));
    if (!status.ok()) return status;
  }
  return error == 0 ? absl::OkStatus() : base::ErrnoStatus(error, "injected");
}

absl::Status FaultyFileIo::Sync(int fd) {
  {
    base::MutexLock lock(&mutex_);
    if (plan_.sync_fails) return base::ErrnoStatus(EIO, "injected");
  }
  return base_->Sync(fd);
}

}  // namespace millrace::testing
