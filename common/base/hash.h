// Stable hashes: the same on every machine, in every version. They name cache files and nodes, so
// changing one orphans every cache on disk.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "absl/strings/string_view.h"

namespace millrace::base {

// XXH3 (xxhash 0.8) of the parts, each preceded by its length, so that ("ab","c") != ("a","bc").
uint64_t StableHash64(std::initializer_list<absl::string_view> parts);

// 128 bits as 32 lower-case hexadecimal digits: names of cache files.
std::string StableHashHex(std::initializer_list<absl::string_view> parts);

// XXH3 of `text` under a seed, for tables whose keys somebody else chooses.
uint64_t SeededHash64(absl::string_view text, uint64_t seed);

// XXH3, 128 bits, of bytes that are to be told from other bytes.
struct Hash128 {
  uint64_t low = 0;
  uint64_t high = 0;

  friend bool operator==(const Hash128&, const Hash128&) = default;
};
Hash128 ContentHash128(absl::string_view bytes);

}  // namespace millrace::base
