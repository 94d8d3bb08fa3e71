// A mount and everything behind it, wired together: the one place that chooses implementations.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache/fetch/object.h"
#include "common/control/control_server.h"
#include "common/control/protocol.h"
#include "common/control/ready.h"
#include "common/io/file_io.h"
#include "common/metrics/metrics.h"
#include "common/metrics/rate_sampler.h"
#include "fuse/adapter/mount.h"
#include "fuse/daemon/direct_session.h"
#include "fuse/daemon/observers.h"
#include "fuse/options/options.h"
#include "fuse/vfs/tree.h"
#include "fuse/vfs/vfs.h"

namespace millrace::daemon {

// Not thread-safe, except where said. Members are in the order in which they are made; each uses
// only those before it.
class Daemon {
 public:
  ~Daemon() { EndThreads(); }

  // Opens the sources and the cache; nothing is mounted yet, so a process that ends here leaves
  // nothing behind. REQUIRES: options::ValidateMount accepted `options`.
  static absl::StatusOr<std::unique_ptr<Daemon>> Open(const options::MountOptions& options);

  // Mounts and returns when the mount answers. Once.
  absl::Status Serve(const std::string& control_socket);

  const std::vector<store::OpenedSource>& sources() const { return sources_; }

  // What was detected, for the person who mounted.
  control::ReadySummary Summary() const;

  // Returns when the file system was unmounted or Stop was called, with the cache written back
  // and closed. The process should then exit: reads of a mount taken away by force may still be
  // on their way, and end with it.
  absl::Status RunUntilUnmounted();
  // Ends RunUntilUnmounted, also when it comes before. Safe from any thread.
  void Stop();

 private:
  explicit Daemon(const options::MountOptions& options) : options_(options) {}

  absl::Status OpenSources();
  absl::Status OpenCache();
  absl::Status MountFileSystem();
  void StopMount();
  // Ends whatever may use the parts of this object from another thread. Idempotent.
  void EndThreads();
  // Once a second until the end: what must be given back though nobody asks.
  void Maintain();
  void ChooseProfileFromSample();
  void Collect(metrics::SampleSink& sink);

  absl::Status Handle(const base::Json& request, control::ResponseStream& stream);
  absl::Status HandleWarm(const control::PathsRequest& request, control::ResponseStream& stream);
  absl::Status HandleEvict(const control::PathsRequest& request, control::ResponseStream& stream);
  control::StatusReport Status() const;

  const options::MountOptions options_;
  const absl::Time started_ = absl::Now();
  std::string io_name_;
  std::vector<std::string> warnings_;

  std::unique_ptr<metrics::Metrics> metrics_;
  std::vector<std::unique_ptr<StoreCounter>> store_counters_;
  std::vector<store::OpenedSource> sources_;
  std::unique_ptr<ReadCounter> read_counter_;
  std::unique_ptr<io::FileIo> file_io_;
  std::unique_ptr<tier::TieredCache> cache_;
  std::unique_ptr<fetch::BufferPool> pool_;
  std::unique_ptr<fetch::MemoryCache> memory_;
  fetch::Shared shared_;
  std::unique_ptr<fetch::FetchQueue> queue_;
  std::unique_ptr<vfs::Tree> tree_;
  std::thread sampler_;  // Chooses the profile.
  std::unique_ptr<vfs::BackingFiles> backing_;
  std::unique_ptr<adapter::Mount> mount_;
  base::Mutex stop_mutex_;
  base::CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(stop_mutex_) = false;
  bool serving_ ABSL_GUARDED_BY(stop_mutex_) = false;  // mount_ is set.
  std::thread maintenance_;
  metrics::CollectorHandle collector_;
  std::unique_ptr<metrics::RateSampler> rates_;
  std::unique_ptr<control::ControlServer> control_;
};

}  // namespace millrace::daemon
