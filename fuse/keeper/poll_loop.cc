#include "fuse/keeper/poll_loop.h"

#include <poll.h>

#include <algorithm>
#include <vector>

namespace millrace::keeper {

PollLoop::Handle PollLoop::Watch(int fd, short events, std::function<void(short)> ready) {
  const uint64_t id = next_id_++;
  watched_[id] = {fd, events, std::move(ready)};
  return Handle(this, id);
}

PollLoop::Handle PollLoop::After(absl::Duration delay, std::function<void()> due) {
  const uint64_t id = next_id_++;
  timers_[id] = {Now() + delay, std::move(due)};
  return Handle(this, id);
}

void PollLoop::Remove(uint64_t id) {
  watched_.erase(id);
  timers_.erase(id);
}

void PollLoop::Run() {
  stopped_ = false;
  while (!stopped_) Turn();
}

void PollLoop::Turn() {
  std::vector<uint64_t> ids;
  std::vector<pollfd> waited;
  for (const auto& [id, watch] : watched_) {
    ids.push_back(id);
    waited.push_back({watch.fd, watch.events, 0});
  }
  const int ready = poll(waited.data(), waited.size(), TimeToNext());
  for (size_t i = 0; ready > 0 && i < ids.size() && !stopped_; ++i) {
    if (waited[i].revents == 0) continue;
    const auto watch = watched_.find(ids[i]);  // One called before may have ended it.
    if (watch == watched_.end()) continue;
    // A copy: the function may end its own watch.
    const std::function<void(short)> call = watch->second.ready;
    call(waited[i].revents);
  }
  RunTimers();
}

int PollLoop::TimeToNext() const {
  if (timers_.empty()) return -1;
  absl::Duration next = absl::InfiniteDuration();
  for (const auto& [id, timer] : timers_) next = std::min(next, timer.at);
  // Rounded up: a timer is never early.
  return static_cast<int>(std::clamp<int64_t>(
      absl::ToInt64Milliseconds(next - Now() + absl::Nanoseconds(999'999)), 0, 3'600'000));
}

void PollLoop::RunTimers() {
  const absl::Duration now = Now();
  std::vector<uint64_t> due;
  for (const auto& [id, timer] : timers_) {
    if (timer.at <= now) due.push_back(id);
  }
  for (const uint64_t id : due) {
    const auto timer = timers_.find(id);
    if (stopped_ || timer == timers_.end()) continue;
    const std::function<void()> call = std::move(timer->second.due);
    timers_.erase(timer);
    call();
  }
}

}  // namespace millrace::keeper
