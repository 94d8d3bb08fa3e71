#include "cache/fetch/buffer_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

namespace millrace::fetch {
namespace {

// Page-aligned, straight from the kernel: a buffer that is dropped leaves no hole in a heap.
char* MapBuffer() {
  void* const memory =
      mmap(nullptr, kBlockSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();  // Within the budget, so the machine is out of memory.
  return static_cast<char*>(memory);
}

}  // namespace

BufferPool::BufferPool(uint64_t budget_bytes)
    : budget_blocks_(std::max<uint64_t>(4, budget_bytes / kBlockSize)) {}

BufferPool::~BufferPool() {
  base::MutexLock lock(&mutex_);
  for (const std::unique_ptr<Block>& block : free_) munmap(block->data, kBlockSize);
}

uint64_t BufferPool::used_blocks() const {
  base::MutexLock lock(&mutex_);
  return used_;
}

uint64_t BufferPool::used_blocks_peak() const {
  base::MutexLock lock(&mutex_);
  return used_peak_;
}

bool BufferPool::TryReserve(uint64_t blocks, bool urgent) {
  base::MutexLock lock(&mutex_);
  const uint64_t limit = budget_blocks_ + (urgent ? kUrgentBlocks : 0);
  if (used_ + blocks > limit) {
    wanted_ = true;
    return false;
  }
  used_ += blocks;
  used_peak_ = std::max(used_peak_, used_);
  return true;
}

void BufferPool::Unreserve(uint64_t blocks) {
  if (blocks == 0) return;
  bool wanted;
  {
    base::MutexLock lock(&mutex_);
    used_ -= blocks;
    wanted = std::exchange(wanted_, false);
  }
  NotifyReleased(wanted);
}

std::shared_ptr<Block> BufferPool::Acquire() {
  std::unique_ptr<Block> block;
  {
    base::MutexLock lock(&mutex_);
    if (!free_.empty()) {
      block = std::move(free_.back());
      free_.pop_back();
    }
    free_min_ = std::min(free_min_, free_.size());
  }
  if (block == nullptr) block = std::make_unique<Block>(Block{MapBuffer(), 0});
  block->size = 0;
  block->origin = Origin::kLocal;
  return {block.release(), [this](Block* released) { Recycle(released); }};
}

void BufferPool::Recycle(Block* block) {
  bool wanted;
  {
    base::MutexLock lock(&mutex_);
    // Bounded: there were never more buffers than blocks in use at once.
    free_.emplace_back(block);
    --used_;
    wanted = std::exchange(wanted_, false);
  }
  NotifyReleased(wanted);
}

void BufferPool::Trim() {
  std::vector<std::unique_ptr<Block>> dropped;
  {
    base::MutexLock lock(&mutex_);
    for (size_t count = (free_min_ + 1) / 2; count > 0; --count) {
      dropped.push_back(std::move(free_.back()));
      free_.pop_back();
    }
    free_min_ = free_.size();
  }
  for (const std::unique_ptr<Block>& block : dropped) munmap(block->data, kBlockSize);
}

void BufferPool::NotifyReleased(bool wanted) {
  if (wanted && listener_) listener_();
}

}  // namespace millrace::fetch
