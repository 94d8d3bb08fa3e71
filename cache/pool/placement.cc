#include "cache/pool/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/base/hash.h"

namespace millrace::pool {
namespace {

// The 8 bytes of a number as the hash takes them: little-endian, as everything that travels.
absl::string_view BytesOf(const uint64_t& number) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
  return {reinterpret_cast<const char*>(&number), sizeof(number)};
}

double Score(uint64_t extent_hash, const PlacedMember& member) {
  const uint64_t hash = base::StableHash64({BytesOf(extent_hash), member.id});
  // The upper 53 bits: all that a double keeps. The half keeps it off both ends.
  const double h = (static_cast<double>(hash >> 11) + 0.5) * 0x1p-53;
  return -static_cast<double>(std::max<uint64_t>(member.weight, 1)) / std::log(h);
}

}  // namespace

Ranking Rank(absl::Span<const PlacedMember> members, absl::string_view source,
             absl::string_view path, uint64_t extent) {
  const uint64_t extent_hash = base::StableHash64({source, path, BytesOf(extent)});
  absl::InlinedVector<double, 8> scores(members.size());
  for (size_t i = 0; i < members.size(); ++i) scores[i] = Score(extent_hash, members[i]);
  Ranking ranking(members.size());
  std::iota(ranking.begin(), ranking.end(), size_t{0});
  std::sort(ranking.begin(), ranking.end(), [&](size_t a, size_t b) {
    if (members[a].draining != members[b].draining) return members[b].draining;
    if (scores[a] != scores[b]) return scores[a] > scores[b];
    return members[a].id < members[b].id;
  });
  return ranking;
}

}  // namespace millrace::pool
