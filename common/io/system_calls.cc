#include "common/io/system_calls.h"

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#include "absl/container/inlined_vector.h"
#include "common/base/errno_status.h"

namespace millrace::io {

absl::StatusOr<absl::optional<size_t>> ReadCached(int fd, uint64_t offset,
                                                  absl::Span<char> buffer) {
  size_t done = 0;
  // A short count means either the end of the file or that the rest is not in memory: only another
  // call tells them apart.
  while (done < buffer.size()) {
    iovec piece{buffer.data() + done, buffer.size() - done};
    const ssize_t n = preadv2(fd, &piece, 1, static_cast<off_t>(offset + done), RWF_NOWAIT);
    if (n > 0) {
      done += static_cast<size_t>(n);
      continue;
    }
    if (n == 0) break;
    if (errno == EINTR) continue;
    if (errno == EAGAIN) return absl::optional<size_t>();
    if (errno == EOPNOTSUPP || errno == ENOSYS) {
      // A file system without RWF_NOWAIT. The refused call costs some 100 ns; remembering it would
      // need an fstat per read to know the file system, which costs more.
      absl::StatusOr<size_t> all = ReadFully(fd, offset, buffer);
      if (!all.ok()) return all.status();
      return absl::optional<size_t>(*all);
    }
    return base::ErrnoStatus(errno, "preadv2");
  }
  return absl::optional<size_t>(done);
}

absl::StatusOr<size_t> ReadFully(int fd, uint64_t offset, absl::Span<char> buffer) {
  size_t done = 0;
  while (done < buffer.size()) {
    const ssize_t n =
        pread(fd, buffer.data() + done, buffer.size() - done, static_cast<off_t>(offset + done));
    if (n == 0) break;
    if (n > 0) {
      done += static_cast<size_t>(n);
    } else if (errno != EINTR) {
      return base::ErrnoStatus(errno, "pread");
    }
  }
  return done;
}

absl::Status WriteFully(int fd, uint64_t offset, absl::Span<const char> data) {
  size_t done = 0;
  while (done < data.size()) {
    const ssize_t n =
        pwrite(fd, data.data() + done, data.size() - done, static_cast<off_t>(offset + done));
    if (n >= 0) {
      done += static_cast<size_t>(n);
    } else if (errno != EINTR) {
      return base::ErrnoStatus(errno, "pwrite");
    }
  }
  return absl::OkStatus();
}

absl::Status WritePiecesFully(int fd, uint64_t offset, Pieces pieces) {
  absl::InlinedVector<iovec, 16> rest;
  for (const absl::Span<const char> piece : pieces) {
    rest.push_back({const_cast<char*>(piece.data()), piece.size()});
  }
  for (size_t at = 0; at < rest.size();) {
    const int count = static_cast<int>(std::min<size_t>(rest.size() - at, IOV_MAX));
    const ssize_t n = pwritev(fd, &rest[at], count, static_cast<off_t>(offset));
    if (n < 0) {
      if (errno != EINTR) return base::ErrnoStatus(errno, "pwritev");
      continue;
    }
    offset += static_cast<uint64_t>(n);
    size_t done = static_cast<size_t>(n);
    for (; at < rest.size() && done >= rest[at].iov_len; ++at) done -= rest[at].iov_len;
    if (done == 0) continue;
    rest[at] = {static_cast<char*>(rest[at].iov_base) + done, rest[at].iov_len - done};
  }
  return absl::OkStatus();
}

absl::Status SyncData(int fd) {
  while (fdatasync(fd) != 0) {
    if (errno != EINTR) return base::ErrnoStatus(errno, "fdatasync");
  }
  return absl::OkStatus();
}

}  // namespace millrace::io
