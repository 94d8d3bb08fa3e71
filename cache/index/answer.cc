#include "cache/index/answer.h"

#include <cstring>
#include <limits>

#include "common/base/crc32c.h"

namespace millrace::index {
namespace {

constexpr uint32_t kAnswerFormat = 1;
constexpr uint64_t kAgeUnknown = std::numeric_limits<uint64_t>::max();
constexpr size_t kCrcOffset = kAnswerHeadSize - 4;

template <typename T>
void Put(size_t offset, T value, std::string* bytes) {
  std::memcpy(bytes->data() + offset, &value, sizeof(value));
}

template <typename T>
T Take(size_t offset, absl::string_view bytes) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

}  // namespace

std::string EncodeAnswerHead(const AnswerHead& head) {
  std::string bytes(kAnswerHeadSize, '\0');
  std::memcpy(bytes.data(), kAnswerMagic, sizeof(kAnswerMagic));
  Put(8, kAnswerFormat, &bytes);
  Put(12, static_cast<uint32_t>(head.kind), &bytes);
  Put(16, head.version, &bytes);
  // Rounded up: it is older, if anything.
  const bool known = head.age < absl::InfiniteDuration();
  Put(24,
      known ? static_cast<uint64_t>(
                  absl::ToInt64Milliseconds(absl::Ceil(head.age, absl::Milliseconds(1))))
            : kAgeUnknown,
      &bytes);
  Put(32, head.content.low, &bytes);
  Put(40, head.content.high, &bytes);
  Put(48, head.bytes, &bytes);
  Put(kCrcOffset, base::Crc32c(0, absl::string_view(bytes).substr(0, kCrcOffset)), &bytes);
  return bytes;
}

absl::StatusOr<AnswerHead> DecodeAnswerHead(absl::string_view bytes) {
  if (bytes.size() < kAnswerHeadSize ||
      std::memcmp(bytes.data(), kAnswerMagic, sizeof(kAnswerMagic)) != 0 ||
      Take<uint32_t>(8, bytes) != kAnswerFormat ||
      Take<uint32_t>(kCrcOffset, bytes) != base::Crc32c(0, bytes.substr(0, kCrcOffset))) {
    return absl::DataLossError("this is no answer about an index");
  }
  AnswerHead head;
  const auto kind = Take<uint32_t>(12, bytes);
  if (kind > static_cast<uint32_t>(AnswerKind::kDelta)) {
    return absl::DataLossError("an answer about an index of an unknown kind");
  }
  head.kind = static_cast<AnswerKind>(kind);
  head.version = Take<uint64_t>(16, bytes);
  head.content = {Take<uint64_t>(32, bytes), Take<uint64_t>(40, bytes)};
  head.bytes = Take<uint64_t>(48, bytes);
  const auto age_ms = Take<uint64_t>(24, bytes);
  // More than a duration has is as good as not known.
  if (age_ms <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    head.age = absl::Milliseconds(static_cast<int64_t>(age_ms));
  }
  if (head.kind == AnswerKind::kUnchanged && head.bytes != 0) {
    return absl::DataLossError("an answer without news about an index that has some");
  }
  return head;
}

}  // namespace millrace::index
