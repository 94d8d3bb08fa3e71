// What a worker sends when it is asked for an index: 64 bytes that say what follows, and the bytes
// of an index or a delta. format.md has them one by one.
//
// Threads. Values and pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/hash.h"

namespace millrace::index {

inline constexpr size_t kAnswerHeadSize = 64;
inline constexpr char kAnswerMagic[8] = {'M', 'R', 'L', 'I', 'X', 'A', 'N', 'S'};

enum class AnswerKind : uint32_t { kUnchanged = 0, kIndex = 1, kDelta = 2 };

struct AnswerHead {
  AnswerKind kind = AnswerKind::kUnchanged;
  uint64_t version = 0;   // Of the worker's index: what the client has afterwards.
  base::Hash128 content;  // Likewise.
  // Since the listing began that last found what the index says, in milliseconds. Infinite: not
  // known (a worker that has just started).
  absl::Duration age = absl::InfiniteDuration();
  uint64_t bytes = 0;  // That follow.
};

std::string EncodeAnswerHead(const AnswerHead& head);
// DataLoss for what is none. `bytes` are kAnswerHeadSize long.
absl::StatusOr<AnswerHead> DecodeAnswerHead(absl::string_view bytes);

}  // namespace millrace::index
