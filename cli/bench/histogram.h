// Latencies in constant memory: a log-linear histogram whose quantiles are at most 0.8 % too high.
//
// Not thread-safe: each thread records into its own, and they are added up at the end.
#pragma once

#include <cstdint>
#include <vector>

namespace millrace::bench {

class Histogram {
 public:
  Histogram();

  void Record(uint64_t nanoseconds);
  void Add(const Histogram& other);

  uint64_t count() const { return count_; }
  uint64_t max() const { return max_; }
  // The value below which `fraction` of the records lie: Quantile(0.99). 0 without records.
  uint64_t Quantile(double fraction) const;

 private:
  std::vector<uint64_t> buckets_;
  uint64_t count_ = 0;
  uint64_t max_ = 0;
};

}  // namespace millrace::bench
