#include "common/metrics/rate_sampler.h"

#include <utility>

namespace millrace::metrics {

RateSampler::RateSampler(base::Clock* clock, absl::Duration window, Totals totals)
    : clock_(clock), window_(window), totals_(std::move(totals)) {
  Tick();
}

RateSampler::~RateSampler() { Stop(); }

void RateSampler::Start() {
  thread_ = std::thread([this] {
    while (true) {
      {
        base::MutexLock lock(&mutex_);
        // An early wake-up only makes one sample early: rates go by the clock.
        if (!stopping_) stop_.WaitFor(&mutex_, absl::Seconds(1));
        if (stopping_) return;
      }
      Tick();
    }
  });
}

void RateSampler::Stop() {
  {
    base::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  stop_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

void RateSampler::Tick() {
  Sample sample = {clock_->Monotonic(), totals_()};
  base::MutexLock lock(&mutex_);
  samples_.push_back(std::move(sample));
  // One sample older than the window stays: rates are measured from there.
  while (samples_.size() > 2 && samples_.back().at - samples_[1].at >= window_) {
    samples_.pop_front();
  }
}

std::vector<double> RateSampler::Rates() const {
  base::MutexLock lock(&mutex_);
  const Sample& first = samples_.front();
  const Sample& last = samples_.back();
  const double seconds = absl::ToDoubleSeconds(last.at - first.at);
  std::vector<double> rates;
  for (size_t i = 0; i < last.totals.size(); ++i) {
    rates.push_back(seconds <= 0 ? 0
                                 : static_cast<double>(last.totals[i] - first.totals[i]) / seconds);
  }
  return rates;
}

}  // namespace millrace::metrics
