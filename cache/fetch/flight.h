// One GET of consecutive blocks of an object, on its way. See object.h.
#pragma once

#include <atomic>
#include <memory>

#include "cache/fetch/fetch_queue.h"
#include "cache/fetch/object.h"

namespace millrace::fetch {

class Flight : public FetchJob {
 public:
  Flight(std::shared_ptr<Object> object, uint64_t first_block, uint64_t block_count,
         Priority priority)
      : object_(std::move(object)), first_(first_block), count_(block_count), priority_(priority) {}

  void Run() override;
  void Drop() override;
  bool Abandoned() const override { return abandoned_.load(std::memory_order_acquire); }
  void Cancel() override { abandoned_.store(true, std::memory_order_release); }
  uint64_t blocks() const override { return count_; }

  uint64_t first_block() const { return first_; }
  uint64_t last_block() const { return first_ + count_ - 1; }
  // REQUIRES: the object's lock is held and nobody waits for a block of this flight.
  void Abandon() { abandoned_.store(true, std::memory_order_release); }

 private:
  const std::shared_ptr<Object> object_;
  const uint64_t first_;
  const uint64_t count_;
  const Priority priority_;  // What it was started for.
  std::atomic<bool> abandoned_{false};
};

}  // namespace millrace::fetch
