// The cache of one process: files of blocks in tiers (MEM, SSD, HDD), fastest first.
//
// A cached file is one sparse data file per (source, path, version). It is filled block by block,
// in any order, and renamed to its stable name when complete; a complete file's descriptor can be
// handed to the kernel as it is (FUSE passthrough, overlay). What is present is written to the
// tier's journal, a CRC32C per block with it (format.md). See cache/README.md for the
// words used here.
//
// Thread-safe. A CachedFile lives as long as somebody holds it: eviction unlinks its data file and
// marks it evicted, while readers that hold it go on reading the same bytes. It must be let go
// before the cache ends; an OpenData may outlive both.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "absl/types/span.h"
#include "common/base/clock.h"
#include "common/base/unique_fd.h"
#include "common/io/file_io.h"

namespace millrace::tier {

// The unit of presence, of checksums and of a random read's fetch. 128 KiB: a cold random 4 KiB
// read then fetches 32 bytes per byte asked; a 2 GiB file has 16384 blocks, a 64 KiB CRC table.
inline constexpr uint64_t kBlockSize = 128 * 1024;

enum class Medium : uint8_t { kMem, kSsd, kHdd };
absl::string_view MediumName(Medium medium);  // "mem", "ssd", "hdd"

struct FileKey {
  std::string source;   // Names the source: store::Source::identity.
  std::string path;     // Below the source's root.
  std::string version;  // store::Entry::version.
  uint64_t size = 0;    // Bytes. A version has one size.
};

// A file and a descriptor of it that stays open while this lives (the cache closes descriptors
// nobody holds when there are many).
class OpenData;

class CachedFile {
 public:
  virtual ~CachedFile() = default;

  virtual const FileKey& key() const = 0;

  // Every block present and its bytes beyond doubt (written in this boot, or checked since).
  virtual bool complete() const = 0;
  // The data file was unlinked: the holder may go on reading; nothing new is kept.
  virtual bool evicted() const = 0;
  // The data file is another process's, which keeps it for this one (pool::ShortCircuitCache).
  virtual bool borrowed() const { return false; }

  // What the data file lies on.
  virtual Medium medium() const = 0;

  // True if all blocks that overlap [offset, offset+length) are present. Lock-free, < 100 ns for
  // a few blocks.
  virtual bool Has(uint64_t offset, uint64_t length) const = 0;
  virtual bool HasBlock(uint64_t index) const = 0;

  // Reads present bytes that are in memory already; nullopt when the disk would have to be asked,
  // or a checksum checked first. REQUIRES: Has(offset, buffer.size()) was true.
  // An error (DataLoss for a failed checksum, or an errno) has dropped the blocks concerned and
  // counted the fault: the caller treats it as a miss.
  virtual absl::StatusOr<absl::optional<size_t>> ReadNow(uint64_t offset,
                                                         absl::Span<char> buffer) = 0;
  // The same without the restriction; `done` runs exactly once, on any thread. Blocks of another
  // boot are checked against their checksum first. REQUIRES: the caller holds this CachedFile
  // (shared_ptr) and `buffer` until then.
  virtual void Read(uint64_t offset, absl::Span<char> buffer, io::ReadDone done) = 0;

  // Keeps the bytes of whole blocks: `offset` is a multiple of kBlockSize, and so is the size of
  // `data` unless it ends the file. Blocks already present, or being put by another thread, are
  // left alone. Blocks the calling thread on the disk. ResourceExhausted (no room, admission
  // refused), Unavailable (the tier is set aside), Cancelled (evicted) and disk errors are counted
  // here; the caller goes on without the cache.
  virtual absl::Status Put(uint64_t offset, absl::Span<const char> data) = 0;
  // The same for blocks from `first_block` on that lie apart in memory, one piece each.
  virtual absl::Status PutBlocks(uint64_t first_block, io::Pieces blocks) = 0;

  // The data file's descriptor for passthrough, kept open by the returned handle.
  // REQUIRES: complete().
  virtual absl::StatusOr<std::shared_ptr<const OpenData>> Open() = 0;

  // --- For who sends blocks on without looking at their bytes. A file of another kind has none.
  // ---

  // The data file's descriptor, whether the file is complete or not. While the result lives it
  // reads the bytes of those blocks that have a BlockCrc after it was opened.
  virtual absl::StatusOr<std::shared_ptr<const OpenData>> OpenBlocks() {
    return absl::UnimplementedError("the file lends no blocks");
  }
  // The CRC32C of a block's bytes. nullopt when the block is absent, or to be checked before its
  // next use (Read does).
  virtual absl::optional<uint32_t> BlockCrc(uint64_t) const { return absl::nullopt; }
  // Reads the block and compares it with its checksum: somebody had other bytes. What fails is
  // dropped and counted. Blocks on the disk. False when the block is not there (any more).
  virtual bool Recheck(uint64_t) { return false; }
  // As long as the result lives, but at most kLeaseTime after it was given, the file is not evicted
  // to make room: somebody else's process has its descriptor, so that eviction would free no space.
  // A user, a new version and damage still evict it. Null: the file cannot be leased.
  virtual std::shared_ptr<const void> Lease() { return nullptr; }
};

// A reader that forgets a file for good must not keep the cache from changing.
inline constexpr absl::Duration kLeaseTime = absl::Minutes(10);

// Bytes of [offset, offset + length) that are present.
uint64_t PresentBytes(const CachedFile& file, uint64_t offset, uint64_t length);

class OpenData {
 public:
  explicit OpenData(base::UniqueFd fd) : fd_(std::move(fd)) {}
  virtual ~OpenData() = default;
  int fd() const { return fd_.get(); }
  // False when the file may be evicted though this is held, as after the lease of a borrowed file
  // was lost. The descriptor goes on reading the same bytes.
  virtual bool leased() const { return true; }

 private:
  const base::UniqueFd fd_;
};

struct TierOptions {
  Medium medium = Medium::kSsd;
  std::string path;          // Directory; made if missing (mode 0700).
  uint64_t quota_bytes = 0;  // Of data.
  double high_water = 0.95;  // Above this share of the quota room is made…
  double low_water = 0.70;   // …until this share is reached.
};

// "MEDIUM:PATH:QUOTA[,high=0.95][,low=0.70]". InvalidArgument names the part that is wrong.
absl::StatusOr<TierOptions> ParseTier(absl::string_view text);

enum class EvictionPolicy : uint8_t {
  // Fill once: what was admitted stays while its source is in use; a full cache refuses new files.
  // The only policy that reaches capacity/size under shuffled epochs (bench/eviction). Files of
  // sources not in use go first, in SIEVE order.
  kEpoch,
  kSieve,  // General use: new files push out old ones, SIEVE (NSDI'24) order.
};

struct CacheOptions {
  std::vector<TierOptions> tiers;  // Fastest first; at least one.
  EvictionPolicy policy = EvictionPolicy::kEpoch;
  std::vector<std::string> sources_in_use;  // FileKey::source of the mounted sources.
  // Of each tier's quota: what files that are not in use may take at most, give or take the blocks
  // that are written at one time. Below 1, more of them push out their like, and are refused where
  // that does not help.
  double idle_share = 1;
  // The bytes of a file that will be kept, where that is not the whole file: a worker keeps its own
  // extents of a file that may be larger than its tiers. Null: its size. Safe on any thread.
  std::function<uint64_t(const FileKey&)> expected_bytes;
  size_t open_files_max = 4096;  // Descriptors kept open beyond those held.

  // For tests. Empty: the machine's (/proc/sys/kernel/random/boot_id).
  std::string boot_id;
  // Null: the machine's. Must outlive the cache.
  base::Clock* clock = nullptr;
};

struct TierStats {
  Medium medium;
  std::string path;
  uint64_t used_bytes = 0;
  uint64_t capacity_bytes = 0;
  uint64_t files = 0;  // Cached files, complete or not.
  uint64_t files_complete = 0;
  uint64_t evictions_quota = 0;  // By reason.
  uint64_t evictions_version = 0;
  uint64_t evictions_user = 0;
  uint64_t demotions = 0;
  uint64_t faults_disk = 0;     // Failed reads and writes, by-passed.
  uint64_t faults_damaged = 0;  // Dropped: bad checksum, truncated, foreign.
  uint64_t refused = 0;         // Not admitted for want of room.
};

class TieredCache {
 public:
  virtual ~TieredCache() = default;

  // Locks and loads the tiers. Damaged, foreign and truncated files are counted and dropped.
  // InvalidArgument / FailedPrecondition for what the user must mend: a path that is no directory,
  // not writable, in use by another process, a quota larger than the file system.
  // `file_io` must outlive the cache.
  static absl::StatusOr<std::unique_ptr<TieredCache>> Open(const CacheOptions& options,
                                                           io::FileIo* file_io);

  // The file of `key`, present or newly admitted; null when the cache refuses it (no room). May
  // evict files for it, and wait some milliseconds for the journal if `key` was evicted just now.
  // Another version of the same path is evicted (reason "version").
  virtual std::shared_ptr<CachedFile> FindOrAdmit(const FileKey& key) = 0;
  // The same without admitting. Counts as a use for eviction.
  virtual std::shared_ptr<CachedFile> Find(const FileKey& key) = 0;

  // Room left before admission is refused, in bytes: look-ahead stops when it would not be kept.
  virtual uint64_t RoomBytes() const = 0;
  // What is expected to be kept of the file would fit into that room.
  virtual bool HasRoomFor(const FileKey& key) const { return RoomBytes() >= key.size; }

  // Drops cached files of `source` whose path is `path_prefix` or below it ("" for all). Returns
  // the bytes freed.
  virtual uint64_t Evict(absl::string_view source, absl::string_view path_prefix) = 0;

  // Calls `each` with every file, without a lock: files may come and go meanwhile.
  virtual void ForEach(absl::FunctionRef<void(CachedFile&)>) const {}
  // Says anew which files of sources in use are in use: the others count as those of sources that
  // are not. A file that is admitted later is in use if its source is.
  virtual void Reclassify(absl::FunctionRef<bool(const FileKey&)>) {}
  // Forgets the file if nothing of it is present: the store has no such object.
  virtual void ForgetEmpty(const FileKey&) {}

  virtual std::vector<TierStats> Stats() const = 0;

  // Syncs data and journals and writes the clean mark: the next start trusts every block even
  // after a reboot. Called once, when nothing uses the cache any more; without it (SIGKILL,
  // power cut) the journal alone decides.
  virtual absl::Status Close() = 0;

  // Lets a successor open the tiers while this process still runs: waits for writes under way,
  // writes what is pending, without a sync, and releases the locks. Afterwards the cache refuses
  // all that would change it, and reads only what it has open: a name may be a successor's by then.
  // What it has no descriptor of is a miss.
  virtual absl::Status HandOver() = 0;
};

}  // namespace millrace::tier
