// The threads that talk to the stores, and the order in which they do it.
//
// A job is a GET that somebody waits for (demand), that a reader will want soon (read-ahead), that
// an epoch will want later (look-ahead), or that a person asked to load (bulk). Demand goes first;
// the others leave threads free for it, so an interactive read never waits behind a whole load.
// A job starts only when its memory is reserved.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "cache/fetch/buffer_pool.h"
#include "common/base/mutex.h"

namespace millrace::fetch {

enum class Priority : uint8_t { kDemand, kReadAhead, kLookAhead, kBulk };
inline constexpr size_t kPriorities = 4;

class FetchJob {
 public:
  virtual ~FetchJob() = default;
  // Runs the job with `reserved_blocks` set aside for it; gives back what it does not use.
  virtual void Run() = 0;
  // Called instead of Run, with nothing reserved: the job was abandoned or the queue stops.
  virtual void Drop() = 0;
  // Nobody wants the result any more.
  virtual bool Abandoned() const = 0;
  // Makes a Run in progress end soon: the queue stops. Must not block or call the queue.
  virtual void Cancel() = 0;
  virtual uint64_t blocks() const = 0;

 private:
  friend class FetchQueue;
  std::atomic<bool> taken_{false};  // A promoted job stands in two queues; the first taker runs it.
};

class FetchQueue {
 public:
  // `pool` must outlive the queue; its release listener is the queue's. `make_room` frees memory
  // that is only kept in case (returns false when there is none).
  FetchQueue(size_t threads, BufferPool* pool, absl::AnyInvocable<bool()> make_room);
  ~FetchQueue();  // Stop().

  void Submit(std::shared_ptr<FetchJob> job, Priority priority);
  // Somebody waits for a job submitted with less priority: it counts as demand if it has not
  // started.
  void Promote(std::shared_ptr<FetchJob> job);
  // Drops what waits, cancels what runs and waits for its end. Idempotent.
  void Stop();

  size_t threads() const { return threads_.size(); }
  // Jobs of the priority that wait or run.
  size_t Load(Priority priority) const;

 private:
  void Work();
  struct Taken {
    std::shared_ptr<FetchJob> job;  // Null: nothing may start now.
    Priority priority = Priority::kDemand;
    bool abandoned = false;        // To be dropped; nothing is reserved for it.
    bool short_of_memory = false;  // A job waits for memory.
  };
  Taken Next() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MayStart(Priority priority) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  BufferPool* const pool_;
  absl::AnyInvocable<bool()> make_room_;
  // At most this many jobs of a priority or below run at once.
  std::array<size_t, kPriorities> limit_;

  mutable base::Mutex mutex_;
  base::CondVar work_;
  std::array<std::deque<std::shared_ptr<FetchJob>>, kPriorities> waiting_ ABSL_GUARDED_BY(mutex_);
  std::array<size_t, kPriorities> running_ ABSL_GUARDED_BY(mutex_) = {};
  std::vector<FetchJob*> running_jobs_ ABSL_GUARDED_BY(mutex_);
  size_t idle_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  std::vector<std::thread> threads_;
};

}  // namespace millrace::fetch
