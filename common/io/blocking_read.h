// A read that waits, for background work that has a thread to spare. Stateless.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/io/file_io.h"

namespace millrace::io {

// FileIo::Read, with the caller blocked until it is done.
absl::StatusOr<size_t> ReadAndWait(FileIo& file_io, int fd, uint64_t offset,
                                   absl::Span<char> buffer);

}  // namespace millrace::io
