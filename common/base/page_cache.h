// What of a file is in the page cache.
#pragma once

#include <cstdint>

#include "absl/types/optional.h"

namespace millrace::base {

// Pages of the file's range that are in the page cache, those included that are on their way from
// the disk; size 0: to the end of the file. The file's own pages: over a passthrough file, mincore
// would count those of the backing file. nullopt where the kernel cannot say (before Linux 6.5), or
// does not want to: the file must be the caller's own or writable.
absl::optional<uint64_t> CachedPages(int fd, uint64_t offset, uint64_t size);

// Pages that [offset, offset + size) touches.
uint64_t PagesOf(uint64_t offset, uint64_t size);

}  // namespace millrace::base
