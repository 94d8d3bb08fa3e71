// One tier: its directory, its quota, its health, its journal and the order of eviction. What the
// files in it are is DataFile's business; who finds them is the cache's.
//
// Lock order, here and for the whole room: FileIndex shard > Tier::queue_mutex_, names_mutex_ >
// nothing. DataFile's layout lock > DataFile::mutex_ > nothing. DescriptorCache > DataFile::mutex_.
// No lock is held over I/O but the layout lock, which only orders changes of one file's name.
// Thread-safe after Open and Load.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/tier/descriptor_cache.h"
#include "cache/tier/eviction.h"
#include "cache/tier/format.h"
#include "cache/tier/journal.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "common/base/unique_fd.h"

namespace millrace::tier {

class DataFile;
class Tier;

enum class EvictReason : uint8_t {
  kQuota,    // For room.
  kVersion,  // The object changed.
  kUser,
  kDemoted,  // A copy is in a lower tier.
  kDamaged,  // Nothing of it is left that can be trusted.
  kEmpty,    // Admitted, and nothing could be kept.
};

// What files and tiers ask of the cache that holds them. Never called under a lock.
class FileHost {
 public:
  // Evicts until `bytes` more fit into the tier. False if the policy gives up nothing more.
  virtual bool MakeRoom(Tier& tier, uint64_t bytes) = 0;
  // The same among files that are not in use, whose share is bounded; for `file`, which stays.
  virtual bool MakeIdleRoom(Tier& tier, uint64_t bytes, const DataFile& file) = 0;
  // Takes the file out of the cache. No-op if it is out already.
  virtual void Discard(DataFile& file, EvictReason reason) = 0;
  // Unverified blocks of this file are worth checking in the background.
  virtual void RequestCheck(DataFile& file) = 0;
  // The tier passed its high-water mark and has files to give up.
  virtual void HighWaterPassed() = 0;

 protected:
  ~FileHost() = default;
};

// One source's directory in a tier. Lives as long as the tier.
struct Source {
  std::string url;
  uint64_t hash = 0;
  bool in_use = false;
  base::UniqueFd complete;  // Directories.
  base::UniqueFd partial;
};

class Tier {
 public:
  // What all tiers of a cache share. Outlives them.
  struct Environment {
    io::FileIo* file_io = nullptr;
    base::Clock* clock = nullptr;
    DescriptorCache* descriptors = nullptr;
    FileHost* host = nullptr;
    EvictionPolicy policy = EvictionPolicy::kEpoch;
    std::string boot_id;
    absl::flat_hash_set<std::string> sources_in_use;
    double idle_share = 1;
    std::function<uint64_t(const FileKey&)> expected_bytes;  // May be null.
  };

  struct Counters {
    std::atomic<uint64_t> files{0};
    std::atomic<uint64_t> files_complete{0};
    std::atomic<uint64_t> evictions_quota{0};
    std::atomic<uint64_t> evictions_version{0};
    std::atomic<uint64_t> evictions_user{0};
    std::atomic<uint64_t> demotions{0};
    std::atomic<uint64_t> faults_disk{0};
    std::atomic<uint64_t> faults_damaged{0};
    std::atomic<uint64_t> refused{0};
  };

  // Makes the directory if missing, checks it against the options, and locks it.
  static absl::StatusOr<std::unique_ptr<Tier>> Open(const TierOptions& options,
                                                    const Environment* environment);

  // Reads the journal, looks at the directories, and drops what does not hold. The files come back
  // oldest first, not queued, not yet known to anybody. Called once, before StartJournal.
  absl::StatusOr<std::vector<std::shared_ptr<DataFile>>> Load();
  // Starts a session. `snapshot` encodes all files of this tier; the sources are added here.
  absl::Status StartJournal(std::function<void(SnapshotSink)> snapshot);
  // Syncs data and journal and writes the clean mark. Nothing may be written after it.
  absl::Status Close();
  // Waits for changes under way, lets no other begin, writes what is pending of the journal, and
  // gives the lock back.
  absl::Status HandOver();
  // Ends the journal, pending records written. Nothing may use the tier's files after it.
  void Stop() { journal_.reset(); }

  ~Tier();
  Tier(const Tier&) = delete;
  Tier& operator=(const Tier&) = delete;

  const TierOptions& options() const { return options_; }
  const Environment& environment() const { return *environment_; }
  Counters& counters() { return counters_; }
  TierStats Stats() const;
  // REQUIRES: StartJournal was called.
  Journal& journal() { return *journal_; }

  // --- Handing over ---
  // Between these two, files and names of the tier may change. False once it was handed over: they
  // are a successor's from then on.
  bool BeginChange();
  void EndChange();
  bool handed_over() const { return handed_over_.load(); }

  // --- Space ---
  uint64_t used() const { return used_.load(std::memory_order_relaxed); }
  bool AboveHigh() const { return used() > high_bytes_; }
  // Bytes above the low-water mark.
  uint64_t Surplus() const;
  uint64_t Room() const;
  // Bytes of data about to be written. False when they do not fit.
  bool TryReserve(uint64_t bytes);
  // Bytes found at load: never refused.
  void ReserveFound(uint64_t bytes) { used_.fetch_add(bytes, std::memory_order_relaxed); }
  void Release(uint64_t bytes) { used_.fetch_sub(bytes, std::memory_order_relaxed); }
  // Of the used bytes: those of files not in use, which every policy gives up.
  uint64_t idle_bytes() const { return idle_.load(std::memory_order_relaxed); }
  void AddIdle(uint64_t bytes) { idle_.fetch_add(bytes, std::memory_order_relaxed); }
  void SubtractIdle(uint64_t bytes) { idle_.fetch_sub(bytes, std::memory_order_relaxed); }
  // Most of them. The quota where they are not bounded.
  uint64_t idle_max() const { return idle_max_; }
  // What will be kept of a file, and is committed when it is admitted.
  uint64_t Expected(const FileKey& key) const;
  // Expected bytes of admitted files, whatever is present: a file is placed where all of it fits.
  bool TryCommit(uint64_t bytes);
  void Commit(uint64_t bytes) { committed_.fetch_add(bytes, std::memory_order_relaxed); }
  void Uncommit(uint64_t bytes) { committed_.fetch_sub(bytes, std::memory_order_relaxed); }

  // --- Health ---
  // False while the tier is set aside after repeated disk faults: nothing is written to it.
  bool usable() const;
  // A failed read or write. Several within seconds set the tier aside for a while.
  void CountDiskFault(const absl::Status& status);
  void CountDamage(absl::string_view what, absl::string_view name);

  // --- Sources ---
  // Makes the directories at the first use.
  absl::StatusOr<Source*> FindOrMakeSource(absl::string_view url);
  std::vector<const Source*> Sources() const;

  // --- Names ---
  // A name is dying from the eviction of its file until the data file is unlinked and the journal's
  // record of that is written. A file of the same name must not be made before: the old unlink
  // would take it away, or after a SIGKILL the old record would vouch for its holes.
  // False if it is dying already.
  bool AddDying(const FileRef& ref);
  // The name is free at once (nothing was made), or when the journal has come to `position`.
  void RemoveDying(const FileRef& ref);
  void RemoveDyingAt(const FileRef& ref, uint64_t position);
  bool IsDying(const FileRef& ref) const;
  // Orders creation and moves of a data file's name.
  base::Mutex& layout_mutex(const FileId& id) {
    return layout_mutexes_[id.bytes[0] % layout_mutexes_.size()];
  }

  // --- Order of eviction ---
  void Enqueue(DataFile& file);
  void Dequeue(DataFile& file);
  // The file is (not) in use from now on.
  void Requeue(DataFile& file, bool in_use);
  // A file the policy gives up (`forced`: any), still queued; null if there is none. `eligible`
  // runs under the queue's lock.
  std::shared_ptr<DataFile> NextVictim(bool forced, absl::FunctionRef<bool(DataFile&)> eligible);
  bool has_candidates() const { return candidates_.load(std::memory_order_relaxed) > 0; }

 private:
  friend class TierLoader;

  Tier(const TierOptions& options, const Environment* environment);
  absl::Status OpenDirectory();
  absl::Status CheckOwnDirectory();
  absl::Status Lock();
  absl::Status CheckQuota();
  bool IsFree(uint64_t position) const { return journal_->IsWritten(position); }
  absl::StatusOr<std::unique_ptr<Source>> OpenSource(absl::string_view url) const;

  const TierOptions options_;
  const Environment* const environment_;
  const uint64_t high_bytes_;
  const uint64_t low_bytes_;
  const uint64_t idle_max_;
  base::UniqueFd directory_;
  base::UniqueFd lock_;
  base::UniqueFd sources_directory_;
  Counters counters_;

  std::atomic<uint64_t> changes_{0};  // Under way.
  std::atomic<bool> handed_over_{false};

  std::atomic<uint64_t> used_{0};
  std::atomic<uint64_t> committed_{0};
  std::atomic<uint64_t> idle_{0};

  mutable base::Mutex health_mutex_;
  // Times of the last ones: the eighth within the window sets the tier aside.
  std::array<absl::Duration, 7> recent_faults_ ABSL_GUARDED_BY(health_mutex_);
  size_t next_fault_ ABSL_GUARDED_BY(health_mutex_) = 0;
  std::atomic<int64_t> aside_until_ns_{0};  // Monotonic.

  mutable base::Mutex names_mutex_;
  absl::flat_hash_map<std::string, std::unique_ptr<Source>> sources_ ABSL_GUARDED_BY(names_mutex_);
  // With the journal's position that frees the name.
  absl::flat_hash_map<FileRef, uint64_t> dying_ ABSL_GUARDED_BY(names_mutex_);
  std::array<base::Mutex, 64> layout_mutexes_;

  base::Mutex queue_mutex_;
  EvictionQueue queue_ ABSL_GUARDED_BY(queue_mutex_);
  std::atomic<size_t> candidates_{0};

  // Where Load found the journal good for going on; none: write it anew.
  struct JournalEnd {
    uint64_t offset;
    uint64_t garbage_bytes;
  };
  absl::optional<JournalEnd> journal_end_;
  std::unique_ptr<Journal> journal_;
};

}  // namespace millrace::tier
