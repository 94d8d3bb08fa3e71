#include "common/io/blocking_read.h"

#include <utility>

#include "absl/types/optional.h"
#include "common/base/mutex.h"

namespace millrace::io {

absl::StatusOr<size_t> ReadAndWait(FileIo& file_io, int fd, uint64_t offset,
                                   absl::Span<char> buffer) {
  base::Mutex mutex;
  base::CondVar arrived;
  absl::optional<absl::StatusOr<size_t>> result;
  file_io.Read(fd, offset, buffer, [&](absl::StatusOr<size_t> got) {
    base::MutexLock lock(&mutex);
    result = std::move(got);
    // Under the lock: the waiter may destroy the condition as soon as it can go on.
    arrived.NotifyOne();
  });
  base::MutexLock lock(&mutex);
  while (!result.has_value()) arrived.Wait(&mutex);
  return *std::move(result);
}

}  // namespace millrace::io
