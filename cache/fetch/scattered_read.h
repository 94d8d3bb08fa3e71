// One GET of what a reader who jumps about asked for, and no more: nobody will want the rest of the
// blocks it lies in. For a read of 4 KiB from a worker, 128 KiB would be nine tenths of the time.
// See Object::ReadScattered.
#pragma once

#include <atomic>
#include <memory>

#include "cache/fetch/fetch_queue.h"
#include "cache/fetch/object.h"

namespace millrace::fetch {

class ScatteredRead : public FetchJob {
 public:
  struct Range {
    uint64_t offset = 0;
    uint64_t size = 0;
  };
  // Fetches `fetched`, at most one block's size, of which `wanted` is a part.
  ScatteredRead(std::shared_ptr<Object> object, Range fetched, Range wanted, ReadCallback done)
      : object_(std::move(object)), fetched_(fetched), wanted_(wanted), done_(std::move(done)) {}

  void Run() override;
  void Drop() override;
  bool Abandoned() const override { return false; }
  void Cancel() override { cancelled_.store(true, std::memory_order_release); }
  uint64_t blocks() const override { return 1; }

 private:
  const std::shared_ptr<Object> object_;
  const Range fetched_;
  const Range wanted_;
  ReadCallback done_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace millrace::fetch
