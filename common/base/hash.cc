#include "common/base/hash.h"

#include <xxhash.h>

#include "absl/strings/str_format.h"

namespace millrace::base {
namespace {

// Parts are short (paths, versions): one buffer costs less than a streaming state.
std::string Join(std::initializer_list<absl::string_view> parts) {
  std::string joined;
  for (const absl::string_view part : parts) {
    const uint64_t size = part.size();
    for (int byte = 0; byte < 8; ++byte) joined.push_back(static_cast<char>(size >> (8 * byte)));
    joined.append(part.data(), part.size());
  }
  return joined;
}

}  // namespace

uint64_t StableHash64(std::initializer_list<absl::string_view> parts) {
  const std::string joined = Join(parts);
  return XXH3_64bits(joined.data(), joined.size());
}

std::string StableHashHex(std::initializer_list<absl::string_view> parts) {
  const std::string joined = Join(parts);
  const XXH128_hash_t hash = XXH3_128bits(joined.data(), joined.size());
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

uint64_t SeededHash64(absl::string_view text, uint64_t seed) {
  return XXH3_64bits_withSeed(text.data(), text.size(), seed);
}

Hash128 ContentHash128(absl::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.low64, hash.high64};
}

}  // namespace millrace::base
