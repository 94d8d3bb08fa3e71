// A token bucket: bytes that may pass now at a held rate. Not thread-safe; the caller brings time.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace millrace::bench {

class TokenBucket {
 public:
  // Holds `bytes_per_second`, 0 for no limit. The bucket starts empty and keeps 20 ms worth of
  // bytes at most (at least 64 KiB), so a pause is not followed by a burst worth mentioning.
  TokenBucket(uint64_t bytes_per_second, absl::Time now);

  // How many bytes may pass now.
  uint64_t Available(absl::Time now);
  // REQUIRES: bytes is not above what Available just returned.
  void Take(uint64_t bytes);
  // When a worthwhile amount will be there: one wake-up for many bytes. REQUIRES: limited().
  absl::Time NextRefill(absl::Time now);

  bool limited() const { return bytes_per_second_ > 0; }

 private:
  void Refill(absl::Time now);

  const uint64_t bytes_per_second_;
  const double capacity_;
  double tokens_ = 0;
  absl::Time filled_at_;
};

}  // namespace millrace::bench
