// Which workers hold which part of a file: rendezvous hashing, computed by everybody alike from the
// list of members, so that nobody needs to be asked.
//
// A file of up to one extent is placed whole; a larger one extent by extent. The score of a member
// for an extent is -weight / ln(h), h in (0, 1) from a hash of both (weighted rendezvous hashing;
// Schindelhauer and Schomaker 2005): the highest is the owner, the next ones hold the replicas and
// take over when it is away. Adding or removing a member moves only its own share.
//
//   e = StableHash64(source, path, extent as 8 bytes)        common/base/hash.h; numbers are
//   m = StableHash64(e as 8 bytes, member's id)              little-endian
//   h = (m / 2^11, rounded down, + 0.5) / 2^53
//
// Pure; safe on any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace millrace::pool {

inline constexpr uint64_t kExtentSizeDefault = 64 << 20;

struct PlacedMember {
  std::string id;         // Welcome::worker.
  uint64_t weight = 1;    // Bytes of capacity; 0 counts as 1.
  bool draining = false;  // Never an owner; ranked behind all others, to be asked for what it has.
};

using Ranking = absl::InlinedVector<size_t, 8>;  // Indexes of members, best first.

// All members in their order for the extent.
Ranking Rank(absl::Span<const PlacedMember> members, absl::string_view source,
             absl::string_view path, uint64_t extent);

// The extent that `offset` lies in. A file that is not larger than one extent has only extent 0.
inline uint64_t ExtentOf(uint64_t offset, uint64_t extent_size) { return offset / extent_size; }

}  // namespace millrace::pool
