#include "cache/fetch/fetch_queue.h"

#include <algorithm>

namespace millrace::fetch {
namespace {

size_t Index(Priority priority) { return static_cast<size_t>(priority); }

}  // namespace

FetchQueue::FetchQueue(size_t threads, BufferPool* pool, absl::AnyInvocable<bool()> make_room)
    : pool_(pool), make_room_(std::move(make_room)) {
  threads = std::max<size_t>(threads, 2);
  // A quarter of the connections is always free for demand, half for all but bulk loads.
  const size_t background = std::max<size_t>(1, threads - (threads + 3) / 4);
  limit_ = {threads, background, background, std::max<size_t>(1, threads / 2)};
  pool_->SetReleaseListener([this] {
    base::MutexLock lock(&mutex_);
    work_.NotifyAll();
  });
  threads_.reserve(threads);
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

FetchQueue::~FetchQueue() { Stop(); }

void FetchQueue::Stop() {
  {
    base::MutexLock lock(&mutex_);
    stopping_ = true;
    for (FetchJob* const job : running_jobs_) job->Cancel();
    work_.NotifyAll();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
  std::vector<std::shared_ptr<FetchJob>> dropped;
  {
    base::MutexLock lock(&mutex_);
    for (auto& queue : waiting_) {
      for (std::shared_ptr<FetchJob>& job : queue) {
        if (!job->taken_.exchange(true)) dropped.push_back(std::move(job));
      }
      queue.clear();
    }
  }
  for (const std::shared_ptr<FetchJob>& job : dropped) job->Drop();
}

void FetchQueue::Submit(std::shared_ptr<FetchJob> job, Priority priority) {
  {
    base::MutexLock lock(&mutex_);
    if (!stopping_) {
      waiting_[Index(priority)].push_back(std::move(job));
      if (idle_ > 0) work_.NotifyOne();
      return;
    }
  }
  if (!job->taken_.exchange(true)) job->Drop();
}

void FetchQueue::Promote(std::shared_ptr<FetchJob> job) {
  if (job->taken_.load()) return;
  Submit(std::move(job), Priority::kDemand);
}

size_t FetchQueue::Load(Priority priority) const {
  base::MutexLock lock(&mutex_);
  return waiting_[Index(priority)].size() + running_[Index(priority)];
}

bool FetchQueue::MayStart(Priority priority) const {
  if (priority == Priority::kDemand) return true;
  size_t background = 0;
  for (size_t i = Index(Priority::kReadAhead); i < kPriorities; ++i) background += running_[i];
  if (background >= limit_[Index(Priority::kReadAhead)]) return false;
  return running_[Index(priority)] < limit_[Index(priority)];
}

FetchQueue::Taken FetchQueue::Next() {
  Taken taken;
  for (size_t i = 0; i < kPriorities; ++i) {
    taken.priority = static_cast<Priority>(i);
    std::deque<std::shared_ptr<FetchJob>>& queue = waiting_[i];
    while (!queue.empty() && MayStart(taken.priority)) {
      FetchJob& front = *queue.front();
      taken.abandoned = front.Abandoned();
      if (!front.taken_.load() && !taken.abandoned &&
          !pool_->TryReserve(front.blocks(), taken.priority == Priority::kDemand)) {
        // Less urgent jobs must not take the memory this one waits for.
        taken.short_of_memory = true;
        return taken;
      }
      std::shared_ptr<FetchJob> job = std::move(queue.front());
      queue.pop_front();
      if (job->taken_.exchange(true)) continue;
      taken.job = std::move(job);
      return taken;
    }
  }
  return taken;
}

void FetchQueue::Work() {
  bool made_room_in_vain = false;
  base::MutexLock lock(&mutex_);
  while (!stopping_) {
    Taken taken = Next();
    if (taken.job == nullptr) {
      if (taken.short_of_memory && !made_room_in_vain) {
        mutex_.Unlock();
        made_room_in_vain = !make_room_();
        mutex_.Lock();
        continue;
      }
      made_room_in_vain = false;
      ++idle_;
      work_.Wait(&mutex_);
      --idle_;
      continue;
    }
    ++running_[Index(taken.priority)];
    running_jobs_.push_back(taken.job.get());
    mutex_.Unlock();
    if (taken.abandoned) {
      taken.job->Drop();
    } else {
      taken.job->Run();
    }
    mutex_.Lock();
    running_jobs_.erase(std::find(running_jobs_.begin(), running_jobs_.end(), taken.job.get()));
    --running_[Index(taken.priority)];
    mutex_.Unlock();
    taken.job.reset();  // May hold the last reference to a file: not under the lock.
    mutex_.Lock();
  }
}

}  // namespace millrace::fetch
