// CRC32C (Castagnoli, RFC 3720): the checksum of cached blocks and journal records.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"

namespace millrace::base {

// The CRC of `data` appended to bytes whose CRC is `crc` (0 for none). Uses the processor's
// instruction where there is one (SSE 4.2, ARMv8 CRC), a table otherwise; same result.
uint32_t Crc32c(uint32_t crc, absl::string_view data);

// The table version, for the test that compares the two.
uint32_t Crc32cPortable(uint32_t crc, absl::string_view data);

}  // namespace millrace::base
