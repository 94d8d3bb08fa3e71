// One version of one object as its readers see it: bytes that come from the cache where it has
// them, else from the store, each block fetched once however many readers ask (single flight).
//
// A missing range becomes a flight: one GET whose blocks are handed to the readers as they arrive,
// then kept in the cache. Blocks the cache does not keep (no room, failing disk) stay in memory as
// long as the budget allows. A cache fault is by-passed; only a store fault is an error.
//
// Thread-safe. Callbacks run without locks, on the caller's or on a fetch thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "cache/fetch/buffer_pool.h"
#include "cache/fetch/fetch_queue.h"
#include "cache/store/store.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"

namespace millrace::fetch {

class Flight;
class MemoryCache;

// The bytes of a read, in order. The pieces are valid only during the callback.
struct ReadResult {
  std::vector<absl::Span<const char>> pieces;
  uint64_t size = 0;
  // Of the bytes from farthest away. Bytes that read-ahead or look-ahead brought count as what they
  // came from when they are read for the first time: they are in the cache because of this reader,
  // not thanks to an earlier one. What `warm` loaded is local.
  Origin origin = Origin::kLocal;
};
inline Origin OriginFrom(store::BytesFrom from) {
  return from == store::BytesFrom::kWorker ? Origin::kRemote : Origin::kStore;
}
// Errors are the store's, with the errno an application gets as payload where EIO would not do:
// ESTALE when the object is no longer this version.
using ReadCallback = absl::AnyInvocable<void(absl::StatusOr<ReadResult>) &&>;
using FillCallback = absl::AnyInvocable<void(absl::Status) &&>;
// Set by who asked for something and does not want it any more: what nobody else wants of it is
// abandoned by CancelPrefetch. The callback still runs. May be null.
using GivenUp = std::shared_ptr<const std::atomic<bool>>;

// One block for who sends it on.
struct BlockRequest {
  uint64_t index = 0;
  Priority priority = Priority::kDemand;  // Of a fetch that it starts or waits for.
  bool fetch = true;                      // Else NotFound unless it is here or on its way.
  GivenUp given_up;
};
// The block stays valid as long as it is held.
using BlockCallback = absl::AnyInvocable<void(absl::StatusOr<BlockRef>) &&>;

// The parts of the process that all objects share. All must outlive every object.
struct Shared {
  tier::TieredCache* cache = nullptr;
  BufferPool* pool = nullptr;
  FetchQueue* queue = nullptr;
  MemoryCache* memory = nullptr;
  // False in a process whose readers are elsewhere and read the cache: blocks that were fetched
  // ahead do not wait in memory for their first reader.
  bool keeps_unread = true;
  // False in a process without a cache of its own: a block leaves memory when it was read to its
  // end. The kernel's page cache has it then, and the next block finds warm memory.
  bool keeps_read = true;
  base::Clock* clock = base::RealClock();
  std::atomic<uint64_t> store_errors{0};
  std::atomic<uint64_t> cache_errors{0};
  std::atomic<uint64_t> stale_objects{0};
};

class Object : public std::enable_shared_from_this<Object> {
 public:
  // Largest read: what the kernel sends at most with 256 pages a request.
  static constexpr uint64_t kReadMax = 1 << 20;
  // Objects up to this size are fetched whole with one GET.
  static constexpr uint64_t kWholeMax = 1 << 20;
  // A read-ahead GET. 4 MiB: at 25 MiB/s a connection (an eighth of 200 MiB/s), a request delay of
  // 10 ms is 6 % of its time, hidden behind the other connections.
  static constexpr uint64_t kFlightSize = 4 << 20;
  static constexpr absl::Duration kLookAgain = absl::Milliseconds(100);

  Object(tier::FileKey key, std::shared_ptr<store::Store> store, Shared* shared);
  ~Object();

  const tier::FileKey& key() const { return key_; }

  // Reads [offset, offset + size), cut at the object's end; size <= kReadMax.
  void Read(uint64_t offset, uint64_t size, ReadCallback done);

  // The same for a reader that jumps about. A range that no cache keeps is fetched exactly, in the
  // units of the store, if those are smaller than a block; two readers of it fetch it twice.
  void ReadScattered(uint64_t offset, uint64_t size, ReadCallback done);

  // REQUIRES: the block is within the object.
  void ReadBlock(BlockRequest request, BlockCallback done);

  // Fetches what is missing of the range without anybody waiting. `done`, which may be null, runs
  // when every block of it arrived and was offered to the cache, or with the first error.
  void Prefetch(uint64_t offset, uint64_t size, Priority priority, FillCallback done = nullptr,
                GivenUp given_up = nullptr);

  // Prefetch for a reader whose need was known at `mark` (Mark()): blocks at the beginning that
  // were read since and have left memory are not fetched again. The kernel reads ahead by itself,
  // on another thread.
  void ReadAhead(uint64_t offset, uint64_t size, uint64_t mark);
  uint64_t Mark() const;

  // Abandons fetches that nobody waits for: a reader has left. Without a cache also what was
  // fetched ahead of it.
  void CancelPrefetch();

  // The cached file, if the cache has taken the object. May be evicted.
  std::shared_ptr<tier::CachedFile> cached() const;

  // Looks whether somebody else has a complete file by now, as the worker of this node, unless this
  // was done within kLookAgain. May block for one exchange with it. For opens.
  void LookForComplete();
  // Every byte is in the cache, as far as is known here. Cheap: asked at each read.
  bool Complete();
  // Where the bytes of the last fetch came from; kLocal before the first.
  Origin fetched_from() const { return fetched_from_.load(std::memory_order_relaxed); }
  // Where reads of a complete file count.
  Origin origin() const { return origin_.load(std::memory_order_relaxed); }
  // The data file for passthrough, when the cache has all of it.
  absl::StatusOr<std::shared_ptr<const tier::OpenData>> OpenComplete();
  // The data file, when it alone can answer any read now: complete, and nothing that was fetched
  // ahead waits in memory for its first reader. Null otherwise.
  std::shared_ptr<const tier::OpenData> OpenHit();
  // Bytes present in the cache or in memory, for status and xattrs.
  uint64_t PresentBytes() const;
  // Bytes of the range that are in the cache itself.
  uint64_t CachedBytes(uint64_t offset, uint64_t size) const;
  // The cache dropped the object's file, which this still holds.
  bool Evicted() const;
  // The cache refused this object: read-ahead must fit in memory.
  bool Uncached() const;
  // The cache keeps the object in memory, where the kernel's page cache would be a second copy.
  bool InMemoryTier() const;

 private:
  friend class Flight;
  friend class MemoryCache;
  friend class ScatteredRead;
  class PendingRead;

  struct BlockState {
    std::shared_ptr<Flight> flight;  // Null once the data is here.
    // In memory: on its way to the cache, not kept by it, or not read yet by whom it was for.
    BlockRef data;
    std::vector<std::shared_ptr<PendingRead>> waiters;
  };

  uint64_t BlockCount() const { return (key_.size + kBlockSize - 1) / kBlockSize; }
  uint64_t BlockBytes(uint64_t index) const;
  // The cached file, admitted again if it was refused or evicted meanwhile.
  std::shared_ptr<tier::CachedFile> CachedForFill();
  // Puts `file` in the place of the one so far, and that into `file`: to be let go of without the
  // lock, because a lease may end with it.
  void SwapCached(std::shared_ptr<tier::CachedFile>& file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The request for a range of this version.
  store::GetRequest Request(uint64_t offset, uint64_t size, Priority priority) const;
  // True if nothing of the blocks is here or on its way, nor would be kept.
  bool MayBypass(uint64_t first, uint64_t last);
  // The read was the last that a block in memory was held for.
  bool ReadToEnd(const PendingRead& read, uint64_t index) const;
  // Lets go of what is in memory.
  void ForgetBlocks() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteLeft(uint64_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Origin OriginOf(const PendingRead& read) const;

  // One pass of a read over memory, cache and store; called again if the cache lost a block.
  void StartRead(std::shared_ptr<PendingRead> read);
  void FinishRead(std::shared_ptr<PendingRead> read);
  void ReadFromTier(std::shared_ptr<PendingRead> read);
  void ReadSlot(const std::shared_ptr<tier::CachedFile>& file,
                const std::shared_ptr<PendingRead>& read, size_t slot,
                std::shared_ptr<Block> block);
  void ReadBlocking(tier::CachedFile& file, std::shared_ptr<PendingRead> read);

  // Makes `read` wait for the missing blocks of [first, last], starting flights for those nobody
  // fetches yet. Returns the flights to submit, after the lock is released.
  struct Plan {
    std::vector<std::shared_ptr<Flight>> start;
    std::vector<std::shared_ptr<Flight>> promote;
  };
  Plan PlanRange(uint64_t first, uint64_t last, Priority priority,
                 const std::shared_ptr<PendingRead>& read, const tier::CachedFile* cached)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Launch(Plan plan, Priority priority);

  // Blocks of one flight that arrived, were given to those who waited, and are to be kept by the
  // cache with one write.
  struct Arrived {
    uint64_t first = 0;
    std::vector<std::shared_ptr<Block>> blocks;
    // Who waits until they are kept.
    std::vector<std::shared_ptr<PendingRead>> fills;
  };
  // The block behind those in `arrived`. REQUIRES: Keep is called for it, whatever happens.
  void OnBlock(std::shared_ptr<Block> block, Priority priority, Arrived* arrived);
  // Offers the blocks to the cache, and lets go of those it took and nobody wants from memory.
  void Keep(Arrived arrived);
  // True if [first, last] has blocks that were fetched ahead and not read yet; they are now.
  bool TakeUnread(uint64_t first, uint64_t last);
  // Ends the flight's blocks from `next` on: those waiting get `status`.
  void OnFlightEnd(const Flight* flight, uint64_t next, const absl::Status& status);
  // A fetch failed a moment ago: what is missing fails with it.
  bool FailedJustNow() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What readers are told of a Get that failed, which is counted.
  absl::Status Explain(uint64_t offset, const absl::Status& status);
  // Keeps and logs a fault of the store; returns it with the errno for readers.
  absl::Status KeepFailure(uint64_t offset, const absl::Status& status);
  // A block only kept in memory goes: the budget is needed.
  void DropFromMemory(uint64_t index);

  const tier::FileKey key_;
  const std::shared_ptr<store::Store> store_;
  Shared* const shared_;
  std::atomic<bool> stale_{false};  // The store has another version now.
  std::atomic<Origin> origin_{Origin::kLocal};
  std::atomic<Origin> fetched_from_{Origin::kLocal};

  mutable base::Mutex mutex_;
  std::shared_ptr<tier::CachedFile> cached_ ABSL_GUARDED_BY(mutex_);
  absl::Duration looked_at_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);  // Of the last fetch that ended.
  absl::Duration failed_at_ ABSL_GUARDED_BY(mutex_);
  // Fetched ahead, not read yet. The count is for the hot path, which has none.
  absl::flat_hash_set<uint64_t> unread_ ABSL_GUARDED_BY(mutex_);
  std::atomic<size_t> unread_count_{0};
  // Blocks that left memory because they were read to their end, the last ones: place index %
  // kLeftMax, with the number of the event. Empty in a process that has a cache.
  static constexpr size_t kLeftMax = 64;
  struct Left {
    uint64_t index = 0;
    uint64_t number = 0;  // 0: none.
  };
  std::vector<Left> left_ ABSL_GUARDED_BY(mutex_);
  uint64_t left_count_ ABSL_GUARDED_BY(mutex_) = 0;
  // Blocks in flight or in memory; all others are in the cache or missing.
  absl::flat_hash_map<uint64_t, BlockState> blocks_ ABSL_GUARDED_BY(mutex_);
};

// Blocks in memory that nobody waits for: fetched ahead and not read yet, or not kept by the cache.
// Oldest first out when memory is needed, and those first that the cache has too: they cost a read,
// the others another fetch. A block that was read meanwhile leaves its place here empty.
class MemoryCache {
 public:
  // What the cache has too. More than the window of a sequential reader (64 MiB) gains little, and
  // memory that is used for the first time costs more than reading a cached file: with half of the
  // budget an epoch of 10,000 small files took 55,000 page faults instead of 8,000.
  static constexpr uint64_t kCachedMax = 96 << 20;

  // Keeps at most half of the budget, so that fetches always find room.
  explicit MemoryCache(BufferPool* pool) : blocks_max_(pool->budget_blocks() / 2) {}

  // `cached`: the cache has the block.
  void Add(std::weak_ptr<Object> object, uint64_t index, bool cached);
  // Drops the block that is missed least; false when there is none.
  bool DropOldest();

 private:
  struct Kept {
    std::weak_ptr<Object> object;
    uint64_t index;
  };
  const uint64_t blocks_max_;
  base::Mutex mutex_;
  std::deque<Kept> cached_ ABSL_GUARDED_BY(mutex_);
  std::deque<Kept> uncached_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::fetch
