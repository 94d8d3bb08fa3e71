#include "cli/bench/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace millrace::bench {
namespace {

// Every power of two is cut into this many steps. Values below it have a bucket of their own.
constexpr int kStepBits = 7;
constexpr uint64_t kSteps = 1 << kStepBits;
// 2^42 ns is more than an hour; longer waits share the last bucket, and max() stays exact.
constexpr int kMaxBits = 42;
constexpr size_t kBuckets = (kMaxBits - kStepBits + 1) * kSteps;

size_t BucketOf(uint64_t value) {
  if (value < kSteps) return value;
  const int shift = std::bit_width(value) - 1 - kStepBits;
  const size_t bucket = (shift + 1) * kSteps + ((value >> shift) - kSteps);
  return std::min(bucket, kBuckets - 1);
}

uint64_t HighestOf(size_t bucket) {
  if (bucket < kSteps) return bucket;
  const int shift = static_cast<int>(bucket / kSteps) - 1;
  return ((bucket % kSteps + kSteps + 1) << shift) - 1;
}

}  // namespace

Histogram::Histogram() : buckets_(kBuckets) {}

void Histogram::Record(uint64_t nanoseconds) {
  ++buckets_[BucketOf(nanoseconds)];
  ++count_;
  max_ = std::max(max_, nanoseconds);
}

void Histogram::Add(const Histogram& other) {
  for (size_t i = 0; i < buckets_.size(); ++i) buckets_[i] += other.buckets_[i];
  count_ += other.count_;
  max_ = std::max(max_, other.max_);
}

uint64_t Histogram::Quantile(double fraction) const {
  const uint64_t rank = std::max<uint64_t>(1, std::ceil(fraction * count_));
  uint64_t seen = 0;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    seen += buckets_[i];
    if (seen >= rank) return std::min(HighestOf(i), max_);
  }
  return max_;
}

}  // namespace millrace::bench
