// What the parts of a mount tell about themselves, turned into metrics and into `millrace status`.
#pragma once

#include <array>
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
  void OnPassthroughOpen(size_t source, fetch::Origin origin, uint64_t file_size) override;

  std::vector<control::ReadStatus> Reads() const;
  uint64_t bytes() const;
  // Opens that the kernel serves by itself from files of `origin`, and the sizes of those files.
  struct Passthrough {
    uint64_t opens = 0;
    uint64_t bytes = 0;
  };
  Passthrough passthrough(fetch::Origin origin) const;

 private:
  struct Place {
    metrics::ReadMetrics reads;
    metrics::Counter* passthrough_opens = nullptr;  // Null: no such files.
    metrics::Counter* passthrough_bytes = nullptr;
  };
  struct Dataset {
    std::string name;
    std::array<Place, fetch::kOrigins> places;  // By Origin.
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
