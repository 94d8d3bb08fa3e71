// Counts the requests that were taken from the kernel and are not answered yet.
#pragma once

#include <atomic>
#include <cstddef>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/mutex.h"

namespace millrace::adapter {

// Thread-safe.
class InFlight {
 public:
  // One request, until it is destroyed or told that it is done.
  class Token {
   public:
    explicit Token(InFlight* counter) : counter_(counter) { counter->count_.fetch_add(1); }
    Token(Token&& other) noexcept : counter_(std::exchange(other.counter_, nullptr)) {}
    Token& operator=(Token&&) = delete;
    ~Token() { Done(); }
    void Done() {
      if (InFlight* const counter = std::exchange(counter_, nullptr)) counter->End();
    }

   private:
    InFlight* counter_;
  };

  Token Begin() { return Token(this); }

  // True when none is left.
  bool AwaitNone(absl::Duration timeout) {
    const absl::Time deadline = absl::Now() + timeout;
    waited_for_ = true;
    base::MutexLock lock(&mutex_);
    while (count_ > 0) {
      const absl::Duration left = deadline - absl::Now();
      if (left <= absl::ZeroDuration()) return false;
      none_.WaitFor(&mutex_, left);
    }
    return true;
  }

 private:
  void End() {
    if (count_.fetch_sub(1) != 1 || !waited_for_) return;
    base::MutexLock lock(&mutex_);
    none_.NotifyAll();
  }

  std::atomic<size_t> count_{0};
  std::atomic<bool> waited_for_{false};
  base::Mutex mutex_;
  base::CondVar none_;
};

}  // namespace millrace::adapter
