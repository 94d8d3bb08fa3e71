// The blocking system calls that all implementations of FileIo share: whole transfers, EINTR
// retried, the errno kept in the status. Stateless.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/optional.h"
#include "absl/types/span.h"
#include "common/io/file_io.h"

namespace millrace::io {

// See FileIo::ReadNow.
absl::StatusOr<absl::optional<size_t>> ReadCached(int fd, uint64_t offset, absl::Span<char> buffer);

// Reads until `buffer` is full or the file ends.
absl::StatusOr<size_t> ReadFully(int fd, uint64_t offset, absl::Span<char> buffer);

// See FileIo::Write, WritePieces and Sync.
absl::Status WriteFully(int fd, uint64_t offset, absl::Span<const char> data);
absl::Status WritePiecesFully(int fd, uint64_t offset, Pieces pieces);
absl::Status SyncData(int fd);

}  // namespace millrace::io
