// A cached file in a tier: its data file on disk, its map of blocks, its descriptor.
//
// Life: admitted (nothing on disk) -> data file in partial/ (first Put) -> in complete/ (all blocks
// present and verified) -> evicted (unlinked; holders read on). A file whose blocks come all
// together is written whole and appears in complete/ at once. A complete file that loses a block
// goes back to partial/.
//
// Space: blocks are reserved in the tier before they are written, and belong to the file from then
// on; eviction gives them back, exactly once.
//
// Writers (Put, checks that drop or complete) run between BeginWrite and EndWrite. An eviction
// meanwhile only marks the file; the last writer removes the data file.
//
// Thread-safe. Made by the cache and the loader only; must not outlive the cache.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/optional.h"
#include "absl/types/span.h"
#include "cache/tier/block_map.h"
#include "cache/tier/descriptor_cache.h"
#include "cache/tier/eviction.h"
#include "cache/tier/format.h"
#include "cache/tier/journal.h"
#include "cache/tier/tier.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/mutex.h"

namespace millrace::tier {

inline uint64_t BlockCount(uint64_t size) {
  return size / kBlockSize + (size % kBlockSize != 0 ? 1 : 0);
}

class DataFile final : public CachedFile,
                       public EvictionEntry,
                       public DescriptorOwner,
                       public std::enable_shared_from_this<DataFile> {
 public:
  // Where the data file is.
  enum class Place : uint8_t { kNowhere, kPartial, kComplete };

  // Counts itself in the tier; `committed` bytes of it are committed there by the caller, and Evict
  // takes both back. REQUIRES: BlockCount(key.size) < 2^32.
  DataFile(FileKey key, const FileId& id, Tier* tier, Source* source, uint64_t committed);
  ~DataFile() override;

  // CachedFile.
  const FileKey& key() const override { return key_; }
  bool complete() const override { return complete_.load(std::memory_order_acquire); }
  bool evicted() const override { return evicted_.load(std::memory_order_acquire); }
  Medium medium() const override { return tier_->options().medium; }
  bool Has(uint64_t offset, uint64_t length) const override;
  bool HasBlock(uint64_t index) const override { return map_.Has(index); }
  absl::StatusOr<absl::optional<size_t>> ReadNow(uint64_t offset, absl::Span<char> buffer) override;
  void Read(uint64_t offset, absl::Span<char> buffer, io::ReadDone done) override;
  absl::Status Put(uint64_t offset, absl::Span<const char> data) override;
  absl::Status PutBlocks(uint64_t first_block, io::Pieces blocks) override;
  absl::StatusOr<std::shared_ptr<const OpenData>> Open() override;
  absl::StatusOr<std::shared_ptr<const OpenData>> OpenBlocks() override { return Open(); }
  absl::optional<uint32_t> BlockCrc(uint64_t index) const override;
  bool Recheck(uint64_t index) override;
  std::shared_ptr<const void> Lease() override;

  Tier& tier() const { return *tier_; }
  const Source& source() const { return *source_; }
  FileRef ref() const { return {source_->hash, id_}; }
  const BlockMap& map() const { return map_; }
  uint64_t BlockLength(uint64_t index) const;
  // Holders beyond the cache's own reference. A hint: it may change at once.
  bool held() const { return weak_from_this().use_count() > 1; }
  // Likewise.
  bool leased() const;
  uint64_t committed() const { return committed_; }
  // Which list of the tier's queue the file is on. REQUIRES: the queue's lock.
  bool queued_in_use() const { return queued_in_use_; }
  void set_queued_in_use(bool in_use) { queued_in_use_ = in_use; }

  // --- For the cache ---
  // Makes the data file of an empty object, which no Put ever will.
  absl::Status MakeEmpty();
  // Looks whether the data file is there and has its size, if nobody has since the start.
  void CheckSize();
  bool size_checked() const { return size_checked_.load(std::memory_order_relaxed); }
  // Reads and checks every unverified block; bad ones are dropped. `stop` ends it early.
  void CheckAll(const std::atomic<bool>& stop);
  // Copies all blocks, checked, into `to`, a new file of another tier that nobody knows yet.
  absl::Status CopyTo(DataFile& to, const std::atomic<bool>& stop);
  // Takes the file out of its tier: space, queue, data file, journal. REQUIRES: it is out of the
  // cache's index, and its name is marked as dying. Returns the bytes given back.
  uint64_t Evict();
  // Files that are not in use leave first. At first a file is if its source is.
  void SetInUse(bool in_use);
  bool in_use() const;
  // Takes back what making the file counted: it never entered the cache's index.
  void Abandon();
  // The caller queues a check: true once, while there is something to check.
  bool TakeCheckRequest() { return map_.any_unverified() && !check_requested_.exchange(true); }
  void ResetCheckRequest() { check_requested_ = false; }
  // The records that describe the file, piece by piece.
  void Encode(SnapshotSink sink) const;
  uint64_t EncodedSize() const;

  // DescriptorOwner.
  std::shared_ptr<Descriptor> YieldDescriptor(const Descriptor& descriptor) override;

 private:
  friend class TierLoader;
  struct CheckedRead;
  class HeldLease;

  // Blocks that overlap a range of bytes.
  struct BlockRange {
    uint64_t first;
    uint64_t count;
  };
  static BlockRange BlocksOf(uint64_t offset, uint64_t length);
  uint64_t BytesOf(BlockRange range) const;
  bool AnyUnverified(BlockRange range) const;
  absl::Span<char> Clamp(uint64_t offset, absl::Span<char> buffer) const;
  io::FileIo& file_io() const { return *tier_->environment().file_io; }
  int directory(Place place) const {
    return (place == Place::kComplete ? source_->complete : source_->partial).get();
  }

  // False if the file is evicted or its tier handed over: nothing new is kept.
  bool BeginWrite();
  void EndWrite();
  // Without the removal: true if the caller has to see to it.
  bool LeaveWrite();
  // Keeps a descriptor for the holders of an evicted file.
  void PinDescriptor();
  // Removes data file and name; the file is evicted and nobody writes.
  void RemoveData();

  absl::Status CheckPut(uint64_t offset, uint64_t size) const;
  // Keeps those of the blocks that nobody has written or writes now.
  absl::Status PutMissing(uint64_t first_block, io::Pieces blocks);
  // Writes blocks the caller has claimed, and ends the claims.
  absl::Status PutClaimed(BlockRange range, io::Pieces blocks);
  absl::Status Reserve(uint64_t bytes);
  bool MayBeIdle(uint64_t bytes);
  void TakeReserved(uint64_t bytes);
  void AddBytes(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SubtractBytes(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status WriteBlocks(BlockRange range, io::Pieces blocks);
  // All blocks of a file that has no data file yet: written under its partial name and renamed.
  absl::Status WriteWhole(io::Pieces blocks);
  // Makes the sparse data file and its record, once.
  absl::Status EnsureMade();
  absl::Status Move(Place to);
  void MaybeComplete();

  // Opens the data file if it is not open. The descriptor of a complete file is read-only.
  absl::StatusOr<std::shared_ptr<Descriptor>> Acquire();
  absl::StatusOr<base::UniqueFd> OpenFile(bool* writable);
  // False: the file's size is another, and it is as good as gone.
  bool HasItsSize(int fd);
  void DetachDescriptor();

  void ReadVerified(uint64_t offset, absl::Span<char> buffer, io::ReadDone done);
  absl::Status CheckPresent(BlockRange range) const;
  // Turns the outcome of a read into the caller's answer; what failed is counted and dropped.
  absl::StatusOr<size_t> JudgeRead(uint64_t offset, size_t wanted, absl::StatusOr<size_t> got);
  absl::Status ReadFault(BlockRange range, const absl::Status& status);
  absl::Status Damage(BlockRange range, absl::string_view what);
  // Makes the blocks absent. True if any was present.
  bool Drop(BlockRange range);
  // REQUIRES: the layout lock. These return the bytes that were present.
  uint64_t DropUnderLock(BlockRange range);
  uint64_t ClearBlocks(BlockRange range);
  // Bytes of cleared blocks; the file is no longer complete.
  void GiveBack(uint64_t freed);
  // Checks a whole block's bytes, read just now.
  absl::Status CheckBlock(uint64_t index, absl::Span<const char> bytes);
  // Blocks on the disk.
  absl::Status ReadBlock(uint64_t index, absl::Span<char> buffer);

  const FileKey key_;
  const FileId id_;
  Tier* const tier_;
  Source* const source_;
  const uint64_t committed_;
  BlockMap map_;
  std::atomic<bool> complete_{false};
  std::atomic<bool> evicted_{false};
  // Changed under the layout lock (Tier::layout_mutex), or before anybody knows the file.
  std::atomic<Place> place_{Place::kNowhere};
  std::atomic<bool> check_requested_{false};
  std::atomic<uint32_t> leases_{0};
  std::atomic<int64_t> leased_until_ns_{0};  // Monotonic; of the last lease.
  bool queued_in_use_;                       // Guarded by the queue's lock.
  std::atomic<bool> size_checked_{true};     // False after a quick start, until somebody looks.

  // One write of a file of several blocks at a time: the kernel's lock of the inode lets only one
  // in, and the others would wait for it spinning.
  base::Mutex writing_;

  mutable base::Mutex mutex_;
  bool pinned_ ABSL_GUARDED_BY(mutex_) = false;  // The descriptor stays: the name is gone.
  uint32_t writers_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;   // Reserved in the tier for present blocks.
  bool counted_in_use_ ABSL_GUARDED_BY(mutex_);  // Else bytes_ are among the tier's idle ones.
  std::shared_ptr<Descriptor> descriptor_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::tier
