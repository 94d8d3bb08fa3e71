// What a worker sends to others of its pool by asking them to load it: copies of extents it has
// just completed (replicas), and all it has when it leaves (drain). They load from this worker,
// whose owner's store asks with Role::kCached, not from the store.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cache/pool/pool.h"
#include "cache/worker/files.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "common/proto/worker_api.h"

namespace millrace::worker {

// Sends copies of what this worker leads to the next in rank.
class Replicator {
 public:
  // Outlived by all three. Does nothing where there is one replica.
  Replicator(Files* files, pool::Pool* pool, base::Clock* clock);
  ~Replicator() { Stop(); }
  void Stop();

  // A range came into the owned space; the extents it completes are copied.
  void OnFetched(const tier::FileKey& file, uint64_t offset, uint64_t length);

 private:
  struct Task {
    tier::FileKey file;
    uint64_t extent = 0;
  };
  void Work();
  bool Complete(const Task& task) const;

  Files* const files_;
  pool::Pool* const pool_;
  base::Clock* const clock_;
  base::Mutex mutex_;
  base::CondVar changed_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  std::set<std::pair<std::string, uint64_t>> known_ ABSL_GUARDED_BY(mutex_);  // Of tasks_.
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

class Drain {
 public:
  // Begins. `files` and `pool` outlive it; `pool` null: there is nobody to hand over to.
  Drain(Files* files, pool::Pool* pool, base::Clock* clock);
  ~Drain();

  proto::DrainProgress Progress() const;

 private:
  struct Task {
    tier::FileKey file;
    uint64_t offset = 0;
    uint64_t length = 0;
    bool ends_extent = false;  // The last part of its extent.
  };
  void Run();
  void List();
  void Work();
  void Count(const Task& task, const absl::Status& status, uint64_t bytes);

  Files* const files_;
  pool::Pool* const pool_;
  base::Clock* const clock_;
  const absl::Duration began_;
  std::atomic<bool> stopping_{false};
  std::atomic<size_t> next_{0};
  std::vector<Task> tasks_;  // Constant once listed.
  mutable base::Mutex mutex_;
  proto::DrainProgress progress_ ABSL_GUARDED_BY(mutex_);
  absl::Duration ended_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace millrace::worker
