// A clock that a test moves by hand.
#pragma once

#include "common/base/clock.h"
#include "common/base/mutex.h"

namespace millrace::test {

// Safe for concurrent use. Sleep moves the clock and returns at once.
class SimClock final : public base::Clock {
 public:
  absl::Time Now() override { return absl::UnixEpoch() + Monotonic(); }
  absl::Duration Monotonic() override {
    const base::MutexLock lock(&mutex_);
    return now_;
  }
  void Sleep(absl::Duration duration) override { Advance(duration); }
  void Advance(absl::Duration duration) {
    const base::MutexLock lock(&mutex_);
    now_ += duration;
  }

 private:
  base::Mutex mutex_;
  absl::Duration now_ ABSL_GUARDED_BY(mutex_) = absl::Hours(1);
};

}  // namespace millrace::test
