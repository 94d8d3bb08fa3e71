// What a worker counts: turned into metrics and into its report. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache/store/registry.h"
#include "cache/worker/data_server.h"
#include "common/metrics/metrics.h"
#include "common/proto/worker_api.h"

namespace millrace::worker {

// Counts what one store is asked.
class StoreCounter final : public store::StoreObserver {
 public:
  StoreCounter(std::string label, metrics::Metrics* metrics);
  void OnCall(const Call& call) override;

 private:
  const std::string label_;
  metrics::Metrics* const metrics_;
  metrics::Counter* const bytes_;
};

// Counts what leaves through the doors: bytes by where they were, connections that were closed.
class DoorCounter final : public DoorObserver {
 public:
  // The identities and labels of the sources, in the order of Files::sources().
  struct Dataset {
    std::string identity;
    std::string label;
  };
  DoorCounter(std::vector<Dataset> datasets, metrics::Metrics* metrics);

  void OnRefused(Refusal refusal) override;
  void OnSent(size_t source, fetch::Origin origin, uint64_t bytes) override;
  void OnAnswered(size_t source, fetch::Origin origin, absl::Duration duration) override;
  void OnHandedOver(absl::string_view source, uint64_t file_size) override;

  std::vector<proto::Hits> Hits() const;

 private:
  struct Counters {
    std::string identity;
    metrics::ReadMetrics reads[fetch::kOrigins];
    metrics::Counter* handed_over = nullptr;
    std::atomic<uint64_t> handed_over_files{0};
  };
  metrics::Metrics* const metrics_;
  std::vector<std::unique_ptr<Counters>> datasets_;
};

}  // namespace millrace::worker
