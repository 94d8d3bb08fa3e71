// Threads for calls that block, shared by kinds of work with a limit each: so that the pages of
// large listings leave room for the Stat that an application waits for, and a refresh in the
// background for both. Inside a kind, first come, first served.
//
// Threads. Safe for concurrent use. Tasks may submit tasks.
#pragma once

#include <deque>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "common/base/mutex.h"

namespace millrace::vfs {

class CallQueue {
 public:
  using Task = absl::AnyInvocable<void() &&>;

  // `limits[kind]` tasks of a kind run at once, on at most `threads` threads.
  CallQueue(size_t threads, const std::vector<size_t>& limits);
  ~CallQueue();
  CallQueue(const CallQueue&) = delete;
  CallQueue& operator=(const CallQueue&) = delete;

  void Submit(size_t kind, Task task);

  // Runs what is queued, and what that submits, and ends the threads. Nothing may be submitted
  // from elsewhere any more. Idempotent.
  void Stop();

 private:
  struct Kind {
    size_t limit = 1;
    size_t running = 0;
    std::deque<Task> queue;
  };

  void Run();
  // The next kind with work and room, or null. Kinds take turns.
  Kind* Next() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  base::Mutex mutex_;
  base::CondVar changed_;
  std::vector<Kind> kinds_ ABSL_GUARDED_BY(mutex_);
  size_t turn_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;  // Constant but in the constructor and Stop.
};

}  // namespace millrace::vfs
