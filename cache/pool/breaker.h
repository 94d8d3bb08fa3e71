// When a member that failed is asked again. Closed: it is used. Open: it is by-passed. From time to
// time one probe may find out whether it is back (half-open); meanwhile it stays by-passed, so that
// no reader waits for a member that is known to be away.
//
// Pure: the caller gives the time and the seed. Not thread-safe.
#pragma once

#include <cstdint>
#include <random>

#include "absl/time/time.h"

namespace millrace::pool {

class Breaker {
 public:
  // The first probe comes after up to kDelayFirst, each later one after twice the delay.
  static constexpr absl::Duration kDelayFirst = absl::Milliseconds(100);
  static constexpr absl::Duration kDelayMax = absl::Seconds(5);

  explicit Breaker(uint64_t seed) : random_(static_cast<std::minstd_rand::result_type>(seed)) {}

  bool closed() const { return closed_; }
  // Since Failure opened it; infinite while it is closed.
  absl::Duration next_probe() const { return next_probe_; }

  // A call worked.
  void Success() {
    closed_ = true;
    next_probe_ = absl::InfiniteDuration();
    delay_ = kDelayFirst;
  }
  // A call failed, or a probe.
  void Failure(absl::Duration now) {
    closed_ = false;
    // Half of the delay by chance: clients that lost a member together must not come back together.
    const double share = std::uniform_real_distribution<double>(0.5, 1)(random_);
    next_probe_ = now + delay_ * share;
    delay_ = std::min(delay_ * 2, kDelayMax);
  }

 private:
  std::minstd_rand random_;
  bool closed_ = false;  // Nobody is used before it answered once.
  absl::Duration next_probe_ = -absl::InfiniteDuration();
  absl::Duration delay_ = kDelayFirst;
};

}  // namespace millrace::pool
