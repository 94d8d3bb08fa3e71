#include "bench/limiter/token_bucket.h"

#include <algorithm>

namespace millrace::bench {
namespace {

// A proxy that shares two busy cores may be late by milliseconds: what it did not pass then must
// not be lost, or the rate is held below what was asked.
constexpr double kCapacitySeconds = 0.020;
constexpr double kRestBytes = 64 * 1024;
// One wake-up for this part of the bucket: 1.25 ms of bytes.
constexpr double kWorthwhile = 1.0 / 16;

}  // namespace

TokenBucket::TokenBucket(uint64_t bytes_per_second, absl::Time now)
    : bytes_per_second_(bytes_per_second),
      capacity_(std::max(bytes_per_second * kCapacitySeconds, kRestBytes)),
      filled_at_(now) {}

void TokenBucket::Refill(absl::Time now) {
  const double seconds = absl::ToDoubleSeconds(now - filled_at_);
  if (seconds <= 0) return;
  tokens_ = std::min(resting_ ? kRestBytes : capacity_, tokens_ + seconds * bytes_per_second_);
  filled_at_ = now;
  resting_ = false;
}

uint64_t TokenBucket::Available(absl::Time now) {
  if (!limited()) return UINT64_MAX;
  Refill(now);
  return static_cast<uint64_t>(tokens_);
}

void TokenBucket::Take(uint64_t bytes) {
  if (limited()) tokens_ -= bytes;
}

void TokenBucket::Rest(absl::Time now) {
  Refill(now);
  tokens_ = std::min(tokens_, kRestBytes);
  resting_ = true;
}

absl::Time TokenBucket::NextRefill(absl::Time now) {
  Refill(now);
  const double missing = std::max(capacity_ * kWorthwhile - tokens_, 1.0);
  return now + absl::Seconds(missing / bytes_per_second_);
}

}  // namespace millrace::bench
