// The memory budget of a process, and the block buffers that are all of it.
//
// Nothing is fetched before its memory is reserved. A reservation turns into buffers as bytes
// arrive; a buffer gives its bytes back when its last holder lets go. Buffers are recycled, so a
// process at work neither faults new pages in nor grows beyond the budget.
//
// Thread-safe. Must outlive every Buffer.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/strings/string_view.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/mutex.h"

namespace millrace::fetch {

inline constexpr uint64_t kBlockSize = tier::kBlockSize;

// Where bytes came from, from near to far.
//   kLocal         this process's cache
//   kShortCircuit  a file of the worker on this node, through its descriptor
//   kRemote        a worker that had them
//   kStore         the store, whoever asked it
enum class Origin : uint8_t { kLocal, kShortCircuit, kRemote, kStore };
inline constexpr size_t kOrigins = 4;

// The bytes of one block. Written by one fetch, then shared read-only.
struct Block {
  char* data = nullptr;
  uint32_t size = 0;  // Of the object's bytes in it; capacity is kBlockSize.
  Origin origin = Origin::kLocal;
  absl::string_view bytes() const { return {data, size}; }
};
using BlockRef = std::shared_ptr<const Block>;

class BufferPool {
 public:
  // `budget_bytes` is rounded down to whole blocks, at least four.
  explicit BufferPool(uint64_t budget_bytes);
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  uint64_t budget_blocks() const { return budget_blocks_; }
  uint64_t used_blocks() const;
  // Most blocks ever in use at once.
  uint64_t used_blocks_peak() const;

  // Sets `blocks` aside; false when that many are not free. `urgent` (somebody waits for these
  // bytes) may go beyond the budget by kUrgentBlocks: readers that hold parts of what they wait
  // for could otherwise wait for each other.
  static constexpr uint64_t kUrgentBlocks = 128;  // 16 MiB, within the promise of budget + 64 MiB.
  bool TryReserve(uint64_t blocks, bool urgent);
  void Unreserve(uint64_t blocks);

  // Turns one reserved block into a buffer. REQUIRES: a reservation of the caller's covers it.
  std::shared_ptr<Block> Acquire();

  // Gives half of the buffers back to the kernel that nobody needed since the last call: called
  // once a second, an idle process gets small within a few.
  void Trim();

  // Called (without locks) whenever blocks were given back and somebody failed to reserve before.
  // Set once, before the first reservation.
  void SetReleaseListener(absl::AnyInvocable<void()> listener) { listener_ = std::move(listener); }

 private:
  void Recycle(Block* block);
  void NotifyReleased(bool wanted);

  const uint64_t budget_blocks_;
  absl::AnyInvocable<void()> listener_;

  mutable base::Mutex mutex_;
  uint64_t used_ ABSL_GUARDED_BY(mutex_) = 0;  // Reserved or held.
  uint64_t used_peak_ ABSL_GUARDED_BY(mutex_) = 0;
  bool wanted_ ABSL_GUARDED_BY(mutex_) = false;  // A reservation failed since the last release.
  std::vector<std::unique_ptr<Block>> free_ ABSL_GUARDED_BY(mutex_);
  size_t free_min_ ABSL_GUARDED_BY(mutex_) = 0;  // Least that were free since the last Trim.
};

}  // namespace millrace::fetch
