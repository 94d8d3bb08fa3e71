// A clock that a test moves by hand. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"
#include "common/base/clock.h"

namespace millrace::testing {

class ManualClock : public base::Clock {
 public:
  absl::Time Now() override { return absl::UnixEpoch() + Monotonic(); }
  absl::Duration Monotonic() override { return absl::Nanoseconds(nanoseconds_.load()); }
  // Time passes without anybody waiting.
  void Sleep(absl::Duration duration) override { Advance(duration); }
  void Advance(absl::Duration duration) { nanoseconds_ += absl::ToInt64Nanoseconds(duration); }

 private:
  std::atomic<int64_t> nanoseconds_{1'000'000'000};
};

}  // namespace millrace::testing
