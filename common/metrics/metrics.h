// The metrics of one process, and the page a Prometheus server fetches.
//
// Hot paths resolve a Counter or Histogram once and then pay one relaxed atomic addition a call.
// What another part counts anyway (sizes of a cache, evictions) is asked for when the page is
// fetched, by collectors. The library behind the page (prometheus-cpp) is not visible outside
// this folder.
//
//   Metrics metrics("0.1.0");
//   const ReadMetrics local = metrics.Read("train", kTierLocal);
//   const CollectorHandle tiers = metrics.AddCollector([&](SampleSink& sink) { … });
//   RETURN_IF_ERROR(metrics.Serve("127.0.0.1:7462"));
//
// Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/mutex.h"
#include "common/metrics/metric_names.h"

namespace millrace::metrics {

// Aligned to a cache line: neighbours on the heap must not slow each other down.
class alignas(64) Counter {
 public:
  void Add(uint64_t amount = 1) { value_.fetch_add(amount, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

class alignas(64) Histogram {
 public:
  // Upper bounds in nanoseconds, 50 µs to 60 s: from a read out of the page cache to the deadline
  // of a store, about 2.5 per step.
  static constexpr std::array<int64_t, 17> kBounds = {
      50'000,      100'000,       250'000,       500'000,        1'000'000,     2'500'000,
      5'000'000,   10'000'000,    25'000'000,    50'000'000,     100'000'000,   250'000'000,
      500'000'000, 1'000'000'000, 5'000'000'000, 20'000'000'000, 60'000'000'000};

  void Observe(absl::Duration duration);

  struct Snapshot {
    std::array<uint64_t, kBounds.size() + 1> buckets;  // Not cumulative; the last is +Inf.
    uint64_t count = 0;                                // The sum of the buckets.
    double sum_seconds = 0;
  };
  Snapshot Take() const;

 private:
  std::array<std::atomic<uint64_t>, kBounds.size() + 1> buckets_{};
  std::atomic<int64_t> sum_ns_{0};
};

// What a read of (dataset, tier) counts. Copy it freely; it points into the Metrics.
struct ReadMetrics {
  Counter* bytes = nullptr;
  Counter* requests = nullptr;
  Histogram* seconds = nullptr;

  void Record(uint64_t size, absl::Duration duration) const {
    bytes->Add(size);
    requests->Add();
    seconds->Observe(duration);
  }
};

// Values in the order of MetricInfo::labels.
using LabelValues = std::vector<std::string>;

// Where a collector puts its samples: gauges, and counters kept elsewhere.
class SampleSink {
 public:
  virtual ~SampleSink() = default;
  // A value that is not finite is left out.
  virtual void Add(const MetricInfo& metric, const LabelValues& labels, double value) = 0;
  virtual void AddHistogram(const MetricInfo& metric, const LabelValues& labels,
                            const Histogram::Snapshot& snapshot) = 0;
};

class Metrics;

// Removes its collector when it dies, and waits for a page in the making: afterwards the collector
// is not running and never runs again. Must not outlive the Metrics.
class CollectorHandle {
 public:
  CollectorHandle() = default;
  CollectorHandle(CollectorHandle&& other) noexcept
      : metrics_(std::exchange(other.metrics_, nullptr)), id_(other.id_) {}
  CollectorHandle& operator=(CollectorHandle&& other) noexcept {
    std::swap(metrics_, other.metrics_);
    std::swap(id_, other.id_);
    return *this;
  }
  ~CollectorHandle();

 private:
  friend class Metrics;
  CollectorHandle(Metrics* metrics, uint64_t id) : metrics_(metrics), id_(id) {}

  Metrics* metrics_ = nullptr;
  uint64_t id_ = 0;
};

class Metrics {
 public:
  explicit Metrics(absl::string_view version);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // The one counter or histogram with these labels; lives as long as the Metrics. Takes a lock:
  // resolve once, or on rare paths. REQUIRES: the metric's kind and number of labels fit.
  Counter* GetCounter(const MetricInfo& metric, const LabelValues& labels);
  Histogram* GetHistogram(const MetricInfo& metric, const LabelValues& labels);

  ReadMetrics Read(absl::string_view dataset, absl::string_view tier);
  void CountError(absl::string_view component, absl::string_view kind);

  // `collect` runs in the thread that makes a page. It must not call back into the Metrics.
  [[nodiscard]] CollectorHandle AddCollector(std::function<void(SampleSink&)> collect);

  // Values of all counters of one metric, for `millrace status`.
  std::vector<std::pair<LabelValues, uint64_t>> Counters(const MetricInfo& metric) const;

  // Serves http://ADDRESS/metrics, and /healthz with an empty page: "the process answers".
  // "HOST:PORT"; ":PORT" is every interface, port 0 any free port. InvalidArgument for a malformed
  // address; Unavailable naming address, cause and remedy when it cannot be bound.
  absl::Status Serve(const std::string& address);
  // From now on /readyz answers as /healthz does: the process does its work. Until then it is an
  // unknown page. Once, after Serve.
  void SetReady();
  // Frees the address. Serve may be called again.
  void StopServing();
  // The port it serves on; 0 when it does not.
  int port() const;

  // The page as text.
  std::string Page() const;

 private:
  friend class CollectorHandle;
  class Collector;
  struct Server;

  void RemoveCollector(uint64_t id);

  const std::string version_;

  mutable base::Mutex mutex_;
  // Keyed by metric, then labels. Values never move or die.
  std::map<const MetricInfo*, std::map<LabelValues, std::unique_ptr<Counter>>> counters_
      ABSL_GUARDED_BY(mutex_);
  std::map<const MetricInfo*, std::map<LabelValues, std::unique_ptr<Histogram>>> histograms_
      ABSL_GUARDED_BY(mutex_);

  // Held while collectors run, so that removing one waits. Taken before mutex_.
  mutable base::Mutex collect_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  std::map<uint64_t, std::function<void(SampleSink&)>> collectors_ ABSL_GUARDED_BY(collect_mutex_);
  uint64_t next_collector_ ABSL_GUARDED_BY(collect_mutex_) = 1;

  const std::shared_ptr<Collector> collector_;
  std::unique_ptr<Server> server_;  // From Serve to StopServing, which the caller keeps apart.
};

}  // namespace millrace::metrics
