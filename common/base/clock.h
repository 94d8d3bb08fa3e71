// Time as a seam: production code takes a Clock, so that tests can move it by hand.
#pragma once

#include "absl/time/time.h"

namespace millrace::base {

// Safe for concurrent use.
class Clock {
 public:
  virtual ~Clock() = default;
  // Wall-clock time, for time stamps a person reads. May jump.
  virtual absl::Time Now() = 0;
  // Time since an arbitrary start, for deadlines and durations. Never goes back.
  virtual absl::Duration Monotonic() = 0;
  // Blocks the calling thread. Long waits belong in a CondVar that a stop can end.
  virtual void Sleep(absl::Duration duration) = 0;
};

// The machine's clock. Lives for ever.
Clock* RealClock();

}  // namespace millrace::base
