// When a daemon that died is started again, and when no more. Pure: times come from the caller.
//
// The first restart is immediate: readers wait for it. So are some more where the daemon had
// answered, if only for a moment: it can start, and something else ends it. A daemon that dies
// again without an answer has a reason that a restart does not take away, and is given ever more
// time, so that it does not fill the log and eat the machine. Too many deaths in too short a time
// are a crash loop: then an error serves the readers better than one more wait.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>

#include "absl/time/time.h"

namespace millrace::keeper {

struct RestartLimits {
  size_t crashes_max = 5;  // Within the window; 0: no limit.
  absl::Duration window = absl::Seconds(60);
  // Who answered this long before it died did not die of being started.
  absl::Duration settled = absl::Milliseconds(500);
  // Who answered for less than that is started again at once so often in a row.
  size_t brief_max = 5;
  absl::Duration first_delay = absl::Milliseconds(100);  // Doubles, up to…
  absl::Duration delay_max = absl::Seconds(10);
};

class RestartPolicy {
 public:
  explicit RestartPolicy(const RestartLimits& limits) : limits_(limits) {}

  // A daemon died at `now` that had answered requests for `served` (zero: it never did). The delay
  // before the next start; nullopt: give up.
  std::optional<absl::Duration> OnCrash(absl::Duration now, absl::Duration served);

  // Somebody mended it: start counting anew.
  void Reset();

 private:
  RestartLimits limits_;
  std::deque<absl::Duration> crashes_;  // Within the window, oldest first.
  // In a row: those that answered for a moment, and those that count for the delay.
  size_t brief_lives_ = 0;
  size_t short_lives_ = 0;
  absl::Duration last_ = -absl::InfiniteDuration();
};

}  // namespace millrace::keeper
