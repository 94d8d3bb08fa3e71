// Tells the kernel what it must no longer believe, from a thread of its own: a notification from a
// thread that answers requests, or that a request waits for, can deadlock in the kernel.
#pragma once

#include <deque>
#include <functional>
#include <thread>

#include "common/base/mutex.h"

namespace millrace::adapter {

// Runs tasks one after the other. Bounded: `Post` refuses beyond kTasksMax.
class Notifier {
 public:
  static constexpr size_t kTasksMax = 100'000;

  Notifier() : thread_([this] { Run(); }) {}
  ~Notifier() {
    {
      base::MutexLock lock(&mutex_);
      stopping_ = true;
      changed_.NotifyAll();
    }
    thread_.join();
  }

  // False when too much is waiting already.
  bool Post(std::function<void()> task) {
    base::MutexLock lock(&mutex_);
    if (tasks_.size() >= kTasksMax) return false;
    tasks_.push_back(std::move(task));
    changed_.NotifyOne();
    return true;
  }

 private:
  void Run() {
    base::MutexLock lock(&mutex_);
    while (true) {
      while (tasks_.empty() && !stopping_) changed_.Wait(&mutex_);
      if (stopping_) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      mutex_.Unlock();
      task();
      mutex_.Lock();
    }
  }

  base::Mutex mutex_;
  base::CondVar changed_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace millrace::adapter
