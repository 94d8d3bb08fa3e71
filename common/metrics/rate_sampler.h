// The rate of growing totals over the last seconds: "312 MiB/s" of `millrace status`.
//
// A thread of its own reads the totals once a second, so that a rate costs the hot path nothing
// and is ready whenever somebody asks. Tests leave the thread out and call Tick.
#pragma once

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"

namespace millrace::metrics {

// Thread-safe.
class RateSampler {
 public:
  // `totals` returns the values that are watched, always as many, each growing.
  using Totals = std::function<std::vector<uint64_t>()>;

  RateSampler(base::Clock* clock, absl::Duration window, Totals totals);
  ~RateSampler();
  RateSampler(const RateSampler&) = delete;
  RateSampler& operator=(const RateSampler&) = delete;

  // Starts the thread. Stop ends it and waits; the destructor calls it.
  void Start();
  void Stop();

  // Takes a sample now.
  void Tick();

  // Growth per second of each total over the window, or over the time there has been.
  std::vector<double> Rates() const;

 private:
  struct Sample {
    absl::Duration at;
    std::vector<uint64_t> totals;
  };

  base::Clock* const clock_;
  const absl::Duration window_;
  const Totals totals_;

  std::thread thread_;
  mutable base::Mutex mutex_;
  base::CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<Sample> samples_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::metrics
