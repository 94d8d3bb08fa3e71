// The one loop of a keeper: descriptors and timers, each with what to do.
//
// Not thread-safe: everything runs in the thread of Run.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "absl/time/time.h"
#include "common/base/clock.h"

namespace millrace::keeper {

class PollLoop {
 public:
  // Ends a watch or a timer when it dies. What is being called may end itself.
  class Handle {
   public:
    Handle() = default;
    Handle(Handle&& other) noexcept
        : loop_(std::exchange(other.loop_, nullptr)), id_(std::exchange(other.id_, 0)) {}
    Handle& operator=(Handle&& other) noexcept {
      std::swap(loop_, other.loop_);
      std::swap(id_, other.id_);
      return *this;
    }
    ~Handle() { Reset(); }

    bool active() const { return loop_ != nullptr; }
    void Reset() {
      if (loop_ != nullptr) std::exchange(loop_, nullptr)->Remove(id_);
    }

   private:
    friend class PollLoop;
    Handle(PollLoop* loop, uint64_t id) : loop_(loop), id_(id) {}

    PollLoop* loop_ = nullptr;
    uint64_t id_ = 0;
  };

  explicit PollLoop(base::Clock* clock = base::RealClock()) : clock_(clock) {}

  // Calls `ready` whenever poll(2) reports `events` for `fd`, or an error of it. Handles must not
  // outlive the loop, nor the descriptor its watch.
  [[nodiscard]] Handle Watch(int fd, short events, std::function<void(short revents)> ready);
  // Calls `due` once, `delay` from now.
  [[nodiscard]] Handle After(absl::Duration delay, std::function<void()> due);

  absl::Duration Now() const { return clock_->Monotonic(); }

  // Until Stop. What was called last may delete whatever it likes.
  void Run();
  void Stop() { stopped_ = true; }

 private:
  struct Watched {
    int fd;
    short events;
    std::function<void(short)> ready;
  };
  struct Timer {
    absl::Duration at;
    std::function<void()> due;
  };

  void Remove(uint64_t id);
  void Turn();
  int TimeToNext() const;
  void RunTimers();

  base::Clock* const clock_;
  bool stopped_ = false;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Watched> watched_;
  std::map<uint64_t, Timer> timers_;
};

}  // namespace millrace::keeper
