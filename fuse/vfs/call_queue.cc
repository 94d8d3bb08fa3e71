#include "fuse/vfs/call_queue.h"

#include <algorithm>
#include <utility>

namespace millrace::vfs {

CallQueue::CallQueue(size_t threads, const std::vector<size_t>& limits) : kinds_(limits.size()) {
  for (size_t i = 0; i < limits.size(); ++i) kinds_[i].limit = std::max<size_t>(limits[i], 1);
  for (size_t i = 0; i < std::max<size_t>(threads, 1); ++i)
    threads_.emplace_back([this] { Run(); });
}

CallQueue::~CallQueue() { Stop(); }

void CallQueue::Submit(size_t kind, Task task) {
  {
    const base::MutexLock lock(&mutex_);
    kinds_[kind].queue.push_back(std::move(task));
  }
  changed_.NotifyOne();
}

void CallQueue::Stop() {
  {
    const base::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void CallQueue::Run() {
  mutex_.Lock();
  while (true) {
    Kind* const kind = Next();
    if (kind == nullptr) {
      if (stopping_ && Idle()) break;
      changed_.Wait(&mutex_);
      continue;
    }
    {
      Task task = std::move(kind->queue.front());
      kind->queue.pop_front();
      ++kind->running;
      mutex_.Unlock();
      std::move(task)();
      // What the task held is freed before the lock is taken again.
    }
    mutex_.Lock();
    --kind->running;
    // Room for one more of this kind, or the end of the last task of a stopping queue.
    if (stopping_) {
      changed_.NotifyAll();
    } else if (!kind->queue.empty()) {
      changed_.NotifyOne();
    }
  }
  mutex_.Unlock();
  changed_.NotifyAll();
}

CallQueue::Kind* CallQueue::Next() {
  for (size_t i = 0; i < kinds_.size(); ++i) {
    Kind& kind = kinds_[(turn_ + i) % kinds_.size()];
    if (kind.queue.empty() || kind.running >= kind.limit) continue;
    turn_ = (turn_ + i + 1) % kinds_.size();
    return &kind;
  }
  return nullptr;
}

bool CallQueue::Idle() const {
  for (const Kind& kind : kinds_) {
    if (kind.running > 0 || !kind.queue.empty()) return false;
  }
  return true;
}

}  // namespace millrace::vfs
