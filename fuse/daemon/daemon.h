// A mount and everything behind it, wired together: the one place that chooses implementations.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache/fetch/object.h"
#include "cache/pool/pool.h"
#include "common/control/control_server.h"
#include "common/control/protocol.h"
#include "common/control/ready.h"
#include "common/io/file_io.h"
#include "common/metrics/metrics.h"
#include "common/metrics/rate_sampler.h"
#include "fuse/adapter/mount.h"
#include "fuse/daemon/observers.h"
#include "fuse/keeper/custody.h"
#include "fuse/options/options.h"
#include "fuse/vfs/ledger.h"
#include "fuse/vfs/tree.h"
#include "fuse/vfs/vfs.h"

namespace millrace::daemon {

// Registers files for passthrough through the keeper. Thread-safe.
class CustodyBackingFiles final : public vfs::BackingFiles {
 public:
  explicit CustodyBackingFiles(keeper::Custody* custody) : custody_(custody) {}
  absl::StatusOr<int> Open(vfs::NodeId node, int fd) override {
    return custody_->BackingOpen(node, fd);
  }
  void Close(vfs::NodeId node, int) override { custody_->BackingClose(node); }

 private:
  keeper::Custody* const custody_;
};

// Not thread-safe, except where said. Members are in the order in which they are made; each uses
// only those before it.
class Daemon : private keeper::CustodyEvents {
 public:
  ~Daemon() override { EndThreads(); }

  // Opens the sources and the cache; nothing is mounted yet, so a process that ends here leaves
  // nothing behind. A stand-by opens the cache when its predecessor has let go of it. `custody`
  // must outlive the daemon. REQUIRES: options::ValidateMount accepted `options`.
  static absl::StatusOr<std::unique_ptr<Daemon>> Open(const options::MountOptions& options,
                                                      keeper::Custody* custody);

  // Takes the mount from the keeper and returns when it answers. Once.
  absl::Status Serve();

  // What was detected, for the person who mounted.
  control::ReadySummary Summary() const;

  enum class Ended {
    kUnmounted,   // By anybody, or after Stop. The cache is written back and closed.
    kHandedOver,  // A successor has mount and cache: exit at once.
  };
  // Returns when this process has nothing more to do. It should then exit: reads of a mount taken
  // away by force may still be on their way, and end with it.
  absl::StatusOr<Ended> Run();
  // Asks the keeper to unmount; without a keeper just stops. Ends Run, also when it comes before.
  // Safe from any thread.
  void Stop();

 private:
  Daemon(const options::MountOptions& options, keeper::Custody* custody)
      : options_(options), custody_(custody) {}

  // CustodyEvents.
  void OnDrain() override { Note(&drain_); }
  void OnFinish() override { Note(&finish_); }
  std::vector<std::pair<uint64_t, int>> BackingIds() override { return ledger_->BackingIds(); }
  void Note(bool* event) ABSL_LOCKS_EXCLUDED(stop_mutex_);

  absl::Status OpenWorkers();
  absl::Status OpenSources();
  absl::Status OpenFileIo();
  absl::Status OpenCache(size_t descriptors);
  absl::Status TakeMount(base::UniqueFd device, bool can_back);
  void HandOver();
  void ServeMetrics();
  // Ends whatever may use the parts of this object from another thread. Idempotent.
  void EndThreads();
  // Once a second until the end: what must be given back though nobody asks. And what the keeper
  // asks for.
  void Maintain();
  void ChooseProfileFromSample();
  void Collect(metrics::SampleSink& sink);

  absl::Status Handle(const base::Json& request, control::ResponseStream& stream);
  absl::Status HandleWarm(const control::PathsRequest& request, control::ResponseStream& stream);
  absl::Status HandleEvict(const control::PathsRequest& request, control::ResponseStream& stream);
  control::StatusReport Status() const;
  control::PoolStatus StatusOfWorkers() const;

  const options::MountOptions options_;
  keeper::Custody* const custody_;
  const absl::Time started_ = absl::Now();
  std::string io_name_;
  std::vector<std::string> warnings_;

  std::unique_ptr<metrics::Metrics> metrics_;
  std::vector<std::unique_ptr<StoreCounter>> store_counters_;
  std::unique_ptr<pool::Pool> workers_;  // Null without --workers.
  std::vector<store::OpenedSource> sources_;
  std::unique_ptr<ReadCounter> read_counter_;
  std::unique_ptr<io::FileIo> file_io_;
  std::unique_ptr<tier::TieredCache> cache_;
  std::unique_ptr<fetch::BufferPool> pool_;
  std::unique_ptr<fetch::MemoryCache> memory_;
  fetch::Shared shared_;
  std::unique_ptr<fetch::FetchQueue> queue_;
  std::unique_ptr<vfs::Ledger> ledger_;
  std::unique_ptr<vfs::Tree> tree_;
  std::thread sampler_;  // Chooses the profile.
  CustodyBackingFiles backing_{custody_};
  std::unique_ptr<adapter::Mount> mount_;
  base::Mutex stop_mutex_;
  base::CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(stop_mutex_) = false;
  bool serving_ ABSL_GUARDED_BY(stop_mutex_) = false;  // mount_ is set.
  bool drain_ ABSL_GUARDED_BY(stop_mutex_) = false;    // The keeper asked for it.
  bool drained_ ABSL_GUARDED_BY(stop_mutex_) = false;  // Done, or about to be.
  // Handed over, but for what is open of this session, which ends by itself.
  bool lingers_ ABSL_GUARDED_BY(stop_mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(stop_mutex_) = false;   // The session, after it was handed over.
  bool finish_ ABSL_GUARDED_BY(stop_mutex_) = false;  // Likewise.
  bool metrics_wanted_ = false;                       // The address may be a predecessor's still.
  std::thread maintenance_;
  metrics::CollectorHandle collector_;
  std::unique_ptr<metrics::RateSampler> rates_;
  std::unique_ptr<control::ControlServer> control_;
};

}  // namespace millrace::daemon
