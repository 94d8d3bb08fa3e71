// What the parts of a mount tell about themselves, turned into metrics and into `millrace status`.
#pragma once

#include <string>
#include <vector>

#include "cache/store/registry.h"
#include "common/control/protocol.h"
#include "common/metrics/metrics.h"
#include "fuse/adapter/mount.h"
#include "fuse/vfs/vfs.h"

namespace millrace::daemon {

// The "dataset" and "store" label of a source: its name, or its URL where it has none.
std::string DatasetLabel(const store::Source& source);

// Counts reads. Thread-safe; one relaxed addition a figure.
class ReadCounter : public vfs::ReadObserver {
 public:
  ReadCounter(const std::vector<std::string>& datasets, metrics::Metrics* metrics);

  void OnRead(size_t source, fetch::Origin origin, uint64_t bytes,
              absl::Duration duration) override;
  void OnPassthroughOpen(size_t source, uint64_t file_size) override;

  std::vector<control::ReadStatus> Reads() const;
  uint64_t bytes() const;
  uint64_t passthrough_opens() const;
  uint64_t passthrough_bytes() const;

 private:
  struct Dataset {
    std::string name;
    metrics::ReadMetrics local;
    metrics::ReadMetrics store;
    metrics::Counter* passthrough_opens;
    metrics::Counter* passthrough_bytes;
  };
  std::vector<Dataset> datasets_;
};

// Counts what one store is asked. Thread-safe.
class StoreCounter : public store::StoreObserver {
 public:
  StoreCounter(std::string label, metrics::Metrics* metrics);
  void OnCall(const Call& call) override;

  uint64_t bytes() const { return bytes_->value(); }
  uint64_t requests() const { return requests_.load(std::memory_order_relaxed); }

 private:
  const std::string label_;
  metrics::Metrics* const metrics_;
  metrics::Counter* const bytes_;
  metrics::Counter* const gets_ok_;  // The common case, resolved once.
  std::atomic<uint64_t> requests_{0};
};

}  // namespace millrace::daemon
