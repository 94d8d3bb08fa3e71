// A token bucket: bytes that may pass now at a held rate. Not thread-safe; the caller brings time.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace millrace::bench {

class TokenBucket {
 public:
  // Holds `bytes_per_second`, 0 for no limit. The bucket starts empty.
  TokenBucket(uint64_t bytes_per_second, absl::Time now);

  // How many bytes may pass now: at most what 20 ms bring.
  uint64_t Available(absl::Time now);
  // REQUIRES: bytes is not above what Available just returned.
  void Take(uint64_t bytes);
  // Nothing waits for bytes: time that passes until the next call brings next to nothing (64 KiB),
  // as a line that was idle does not carry more afterwards.
  void Rest(absl::Time now);
  // When a worthwhile amount will be there: one wake-up for many bytes. REQUIRES: limited().
  absl::Time NextRefill(absl::Time now);

  bool limited() const { return bytes_per_second_ > 0; }

 private:
  void Refill(absl::Time now);

  const uint64_t bytes_per_second_;
  const double capacity_;
  double tokens_ = 0;
  absl::Time filled_at_;
  bool resting_ = false;
};

}  // namespace millrace::bench
