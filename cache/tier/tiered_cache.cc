#include "cache/tier/tiered_cache.h"

#include <fcntl.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cache/tier/data_file.h"
#include "cache/tier/directory.h"
#include "cache/tier/file_index.h"
#include "cache/tier/tier.h"
#include "common/base/log.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"

namespace millrace::tier {
namespace {

using FilePtr = std::shared_ptr<DataFile>;

// Files waiting for a background check; more are asked for again at their next use.
constexpr size_t kChecksMax = 4096;
// Victims in a row that could not be demoted before a round of making room gives up.
constexpr int kFailuresMax = 16;
// A round that could move nothing (all victims busy) is repeated after this, not with every Put.
constexpr absl::Duration kStuckTime = absl::Seconds(1);
// A quick start leaves the sizes of data files for a moment in which nobody waits for the cache.
constexpr absl::Duration kSizesAfter = absl::Seconds(1);

// A journal record holds path and version.
constexpr size_t kNameBytesMax = 64 * 1024;

absl::Status CheckOptions(const CacheOptions& options, const io::FileIo* file_io) {
  if (file_io == nullptr || options.tiers.empty()) {
    return absl::InvalidArgumentError("a cache needs at least one tier");
  }
  for (const TierOptions& tier : options.tiers) {
    if (tier.quota_bytes == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("the quota of cache directory ", tier.path, " is 0"));
    }
    if (!(tier.low_water > 0 && tier.low_water <= tier.high_water && tier.high_water <= 1)) {
      return absl::InvalidArgumentError(absl::StrCat("the water marks of cache directory ",
                                                     tier.path, " are not 0 < low <= high <= 1"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> MachineBootId() {
  ASSIGN_OR_RETURN(std::string id, ReadSmallFile(AT_FDCWD, "/proc/sys/kernel/random/boot_id"));
  absl::StripAsciiWhitespace(&id);
  return id;
}

bool IsBelow(absl::string_view path, absl::string_view prefix) {
  return prefix.empty() || path == prefix ||
         (absl::StartsWith(path, prefix) && path[prefix.size()] == '/');
}

class TieredCacheOfFiles : public TieredCache, private FileHost {
 public:
  TieredCacheOfFiles(const CacheOptions& options, io::FileIo* file_io, std::string boot_id)
      : descriptors_(options.open_files_max) {
    environment_.file_io = file_io;
    environment_.clock = options.clock != nullptr ? options.clock : base::RealClock();
    environment_.descriptors = &descriptors_;
    environment_.host = this;
    environment_.policy = options.policy;
    environment_.boot_id = std::move(boot_id);
    environment_.sources_in_use.insert(options.sources_in_use.begin(),
                                       options.sources_in_use.end());
    environment_.idle_share = options.idle_share;
    environment_.expected_bytes = options.expected_bytes;
  }

  ~TieredCacheOfFiles() override {
    StopMaintenance();
    // Their threads read the index, which goes before the tiers.
    for (const auto& tier : tiers_) tier->Stop();
  }

  absl::Status OpenTiers(const std::vector<TierOptions>& options);

  std::shared_ptr<CachedFile> FindOrAdmit(const FileKey& key) override;
  std::shared_ptr<CachedFile> Find(const FileKey& key) override;
  uint64_t RoomBytes() const override;
  bool HasRoomFor(const FileKey& key) const override {
    return RoomBytes() >= tiers_.front()->Expected(key);
  }
  void ForEach(absl::FunctionRef<void(CachedFile&)> each) const override {
    index_.ForEach([&](DataFile& file) { each(file); });
  }
  void Reclassify(absl::FunctionRef<bool(const FileKey&)> in_use) override {
    index_.ForEach(
        [&](DataFile& file) { file.SetInUse(file.source().in_use && in_use(file.key())); });
  }
  void ForgetEmpty(const FileKey& key) override;
  uint64_t Evict(absl::string_view source, absl::string_view path_prefix) override;
  std::vector<TierStats> Stats() const override;
  absl::Status Close() override;
  absl::Status HandOver() override;

 private:
  // FileHost.
  bool MakeRoom(Tier& tier, uint64_t bytes) override;
  bool MakeIdleRoom(Tier& tier, uint64_t bytes, const DataFile& file) override;
  void Discard(DataFile& file, EvictReason reason) override;
  void RequestCheck(DataFile& file) override;
  void HighWaterPassed() override;

  // Opening.
  void MeetQuota(Tier& tier);

  // Admission.
  void Use(DataFile& file);
  FilePtr Admit(const FileKey& key);
  // A tier with `size` committed; null if the cache has no room.
  Tier* PlaceFile(uint64_t size);
  Tier* PlaceByRoom(uint64_t size);
  FilePtr AdmitTo(Tier& tier, const FileKey& key, uint64_t committed);
  FilePtr NextVictim(Tier& tier);
  uint64_t EvictFile(DataFile& file, EvictReason reason);
  // The rest of an eviction, after the file left the index.
  uint64_t Retire(DataFile& file, EvictReason reason);

  // Maintenance: one thread.
  void Maintain();
  void StopMaintenance();
  // Waits for something to do; may return without.
  FilePtr NextCheck();
  // What a quick start left for later.
  void CheckSizes();
  // True if the tier is above its high-water mark, and nothing could be done about it.
  bool LowerTier(size_t index);
  Tier* LowerTierFor(size_t index, const DataFile& file);
  bool Demote(DataFile& file, Tier& to);

  Tier::Environment environment_;  // Constant after construction.
  DescriptorCache descriptors_;
  std::vector<std::unique_ptr<Tier>> tiers_;  // Constant after OpenTiers. Fastest first.
  FileIndex index_;

  std::atomic<bool> handed_over_{false};
  std::atomic<bool> stop_{false};
  std::atomic<bool> high_water_{false};
  std::atomic<bool> stuck_{false};  // High water, and the last round could not lower it.
  base::Mutex work_mutex_;
  base::CondVar work_;
  std::deque<std::weak_ptr<DataFile>> checks_ ABSL_GUARDED_BY(work_mutex_);
  std::thread maintenance_;
  bool sizes_checked_ = false;  // The maintenance's own.
  bool sizes_due_ = false;
};

// --- Opening and closing ------------------------------------------------------------------------

absl::Status TieredCacheOfFiles::OpenTiers(const std::vector<TierOptions>& options) {
  for (const TierOptions& tier_options : options) {
    ASSIGN_OR_RETURN(std::unique_ptr<Tier> tier, Tier::Open(tier_options, &environment_));
    tiers_.push_back(std::move(tier));
  }
  std::vector<FilePtr> surplus;
  for (const auto& tier : tiers_) {
    ASSIGN_OR_RETURN(std::vector<FilePtr> files, tier->Load());
    for (FilePtr& file : files) {
      tier->Enqueue(*file);
      // One path, one file. Another version in this tier is older; a copy in a faster tier is as
      // good (a demotion was cut short).
      const FilePtr known = index_.Insert(file);
      if (known == file) continue;
      if (&known->tier() == tier.get() && index_.Replace(*known, file)) {
        surplus.push_back(known);
      } else {
        surplus.push_back(std::move(file));
      }
    }
  }
  for (const auto& tier : tiers_) {
    RETURN_IF_ERROR(tier->StartJournal([this, tier = tier.get()](SnapshotSink sink) {
      index_.ForEach([&](const DataFile& file) {
        if (&file.tier() == tier) file.Encode(sink);
      });
    }));
  }
  for (const FilePtr& file : surplus) Retire(*file, EvictReason::kVersion);
  for (const auto& tier : tiers_) MeetQuota(*tier);
  maintenance_ = std::thread([this] { Maintain(); });
  return absl::OkStatus();
}

// The quota may be smaller than it was.
void TieredCacheOfFiles::MeetQuota(Tier& tier) {
  const auto any = [](DataFile&) { return true; };
  while (tier.used() > tier.options().quota_bytes) {
    const FilePtr victim = tier.NextVictim(true, any);
    if (victim == nullptr || EvictFile(*victim, EvictReason::kQuota) == 0) return;
  }
}

absl::Status TieredCacheOfFiles::Close() {
  StopMaintenance();
  absl::Status first_error;
  for (const auto& tier : tiers_) {
    const absl::Status status = tier->Close();
    if (first_error.ok()) first_error = status;
  }
  return first_error;
}

absl::Status TieredCacheOfFiles::HandOver() {
  handed_over_ = true;
  StopMaintenance();
  absl::Status first_error;
  for (const auto& tier : tiers_) {
    const absl::Status status = tier->HandOver();
    if (first_error.ok()) first_error = status;
  }
  return first_error;
}

std::vector<TierStats> TieredCacheOfFiles::Stats() const {
  std::vector<TierStats> stats;
  for (const auto& tier : tiers_) stats.push_back(tier->Stats());
  return stats;
}

// --- Finding and admitting ----------------------------------------------------------------------

void TieredCacheOfFiles::Use(DataFile& file) {
  file.MarkUsed();
  if (file.TakeCheckRequest()) RequestCheck(file);
}

std::shared_ptr<CachedFile> TieredCacheOfFiles::Find(const FileKey& key) {
  FilePtr file = index_.Find(key.source, key.path);
  if (file == nullptr || file->key().version != key.version || file->key().size != key.size) {
    return nullptr;
  }
  Use(*file);
  return file;
}

std::shared_ptr<CachedFile> TieredCacheOfFiles::FindOrAdmit(const FileKey& key) {
  if (handed_over_) return Find(key);
  const FilePtr file = index_.Find(key.source, key.path);
  if (file != nullptr) {
    if (file->key().version == key.version && file->key().size == key.size) {
      Use(*file);
      return file;
    }
    EvictFile(*file, EvictReason::kVersion);
  }
  return Admit(key);
}

FilePtr TieredCacheOfFiles::Admit(const FileKey& key) {
  if (key.path.size() + key.version.size() > kNameBytesMax ||
      BlockCount(key.size) > std::numeric_limits<uint32_t>::max()) {
    return nullptr;
  }
  const uint64_t expected = tiers_.front()->Expected(key);
  Tier* tier = PlaceFile(expected);
  if (tier == nullptr) {
    tiers_.front()->counters().refused.fetch_add(1, std::memory_order_relaxed);
    return nullptr;
  }
  return AdmitTo(*tier, key, expected);
}

Tier* TieredCacheOfFiles::PlaceFile(uint64_t size) {
  // Where all admitted files fit when they are whole.
  for (const auto& tier : tiers_) {
    if (tier->usable() && tier->TryCommit(size)) return tier.get();
  }
  Tier* tier = PlaceByRoom(size);
  if (tier != nullptr) tier->Commit(size);
  return tier;
}

Tier* TieredCacheOfFiles::PlaceByRoom(uint64_t size) {
  // Files read at random never become whole: what is used counts, not what was promised.
  for (const auto& tier : tiers_) {
    if (tier->usable() && tier->Room() >= size) return tier.get();
  }
  // What leaves the cache leaves its slowest tier: the faster ones demote.
  for (auto tier = tiers_.rbegin(); tier != tiers_.rend(); ++tier) {
    if ((*tier)->usable() && MakeRoom(**tier, size)) return tier->get();
  }
  // A part of a large file is better than none, where nothing will be evicted for the rest.
  if (environment_.policy == EvictionPolicy::kEpoch) {
    for (const auto& tier : tiers_) {
      const bool could_hold = size <= tier->options().quota_bytes;
      if (tier->usable() && could_hold && size > kBlockSize && tier->Room() >= kBlockSize) {
        return tier.get();
      }
    }
  }
  return nullptr;
}

FilePtr TieredCacheOfFiles::AdmitTo(Tier& tier, const FileKey& key, uint64_t committed) {
  const absl::StatusOr<Source*> source = tier.FindOrMakeSource(key.source);
  if (!source.ok()) {
    tier.Uncommit(committed);
    tier.CountDiskFault(source.status());
    return nullptr;
  }
  auto file =
      std::make_shared<DataFile>(key, FileId::Of(key.path, key.version), &tier, *source, committed);
  // Queued first: once it is in the index, another thread may evict it.
  tier.Enqueue(*file);
  FilePtr admitted = index_.Insert(file);
  if (admitted == nullptr && tier.journal().Flush().ok()) {
    // The name was evicted milliseconds ago, and waited for the journal only.
    admitted = index_.Insert(file);
  }
  if (admitted == file) {
    if (key.size == 0 && !file->MakeEmpty().ok()) {
      EvictFile(*file, EvictReason::kEmpty);
      return nullptr;
    }
    return file;
  }
  file->Abandon();
  // Another thread admitted the path; if with another version, this caller does without a cache.
  if (admitted != nullptr && admitted->key().version != key.version) return nullptr;
  return admitted;
}

uint64_t TieredCacheOfFiles::RoomBytes() const {
  if (handed_over_) return 0;
  uint64_t room = 0;
  for (const auto& tier : tiers_) {
    if (!tier->usable()) continue;
    const bool sieve = environment_.policy == EvictionPolicy::kSieve;
    room += sieve ? tier->options().quota_bytes : tier->Room() + tier->idle_bytes();
  }
  return room;
}

// --- Evicting -----------------------------------------------------------------------------------

bool TieredCacheOfFiles::MakeRoom(Tier& tier, uint64_t bytes) {
  const uint64_t quota = tier.options().quota_bytes;
  if (bytes > quota) return false;
  // Files of sources that nobody uses go in bulk: there is no telling them apart by use, and the
  // next file wants room too. Under kSieve each file pushed out may be missed.
  const bool to_low_water = environment_.policy == EvictionPolicy::kEpoch;
  while (tier.used() > quota - bytes || (to_low_water && tier.Surplus() > 0)) {
    const FilePtr victim = NextVictim(tier);
    if (victim == nullptr) break;
    EvictFile(*victim, EvictReason::kQuota);
  }
  return tier.used() <= quota - bytes;
}

FilePtr TieredCacheOfFiles::NextVictim(Tier& tier) {
  if (!tier.has_candidates()) return nullptr;
  // A held file frees no space before its holder lets go, but its holder may be an open file that
  // nobody reads: such files go when there are no others. A leased one surely is read.
  FilePtr victim = tier.NextVictim(
      false, [](DataFile& file) { return !file.held() && file.map().present() > 0; });
  if (victim != nullptr) return victim;
  return tier.NextVictim(false,
                         [](DataFile& file) { return !file.leased() && file.map().present() > 0; });
}

bool TieredCacheOfFiles::MakeIdleRoom(Tier& tier, uint64_t bytes, const DataFile& file) {
  if (bytes > tier.idle_max()) return false;
  // Those nobody holds first, as for any room.
  for (const bool held : {false, true}) {
    const auto may_leave = [&](DataFile& other) {
      return &other != &file && !other.queued_in_use() && other.map().present() > 0 &&
             (held ? !other.leased() : !other.held());
    };
    while (tier.idle_bytes() > tier.idle_max() - bytes) {
      const FilePtr victim = tier.NextVictim(false, may_leave);
      if (victim == nullptr) break;
      EvictFile(*victim, EvictReason::kQuota);
    }
  }
  return tier.idle_bytes() <= tier.idle_max() - bytes;
}

uint64_t TieredCacheOfFiles::EvictFile(DataFile& file, EvictReason reason) {
  Tier& tier = file.tier();
  if (!tier.BeginChange()) return 0;
  const uint64_t freed = index_.Remove(file) ? Retire(file, reason) : 0;
  tier.EndChange();
  return freed;
}

uint64_t TieredCacheOfFiles::Retire(DataFile& file, EvictReason reason) {
  Tier::Counters& counters = file.tier().counters();
  switch (reason) {
    case EvictReason::kQuota:
      counters.evictions_quota.fetch_add(1, std::memory_order_relaxed);
      break;
    case EvictReason::kVersion:
      counters.evictions_version.fetch_add(1, std::memory_order_relaxed);
      break;
    case EvictReason::kUser:
      counters.evictions_user.fetch_add(1, std::memory_order_relaxed);
      break;
    case EvictReason::kDemoted:
      counters.demotions.fetch_add(1, std::memory_order_relaxed);
      break;
    case EvictReason::kDamaged:  // Counted as damage.
    case EvictReason::kEmpty:    // Counted as refused, or as a fault.
      break;
  }
  return file.Evict();
}

void TieredCacheOfFiles::Discard(DataFile& file, EvictReason reason) {
  // Its caller may hold the file by no more than the index's reference.
  const FilePtr keep = file.shared_from_this();
  EvictFile(file, reason);
}

uint64_t TieredCacheOfFiles::Evict(absl::string_view source, absl::string_view path_prefix) {
  if (handed_over_) return 0;
  uint64_t freed = 0;
  index_.ForEach([&](DataFile& file) {
    if (file.key().source != source || !IsBelow(file.key().path, path_prefix)) return;
    const uint64_t bytes = EvictFile(file, EvictReason::kUser);
    freed += bytes;
    if (bytes > 0) return;
    // Demoted since it was listed: the copy has its place.
    const FilePtr copy = index_.Find(file.key().source, file.key().path);
    if (copy != nullptr && copy.get() != &file) freed += EvictFile(*copy, EvictReason::kUser);
  });
  return freed;
}

void TieredCacheOfFiles::ForgetEmpty(const FileKey& key) {
  const FilePtr file = index_.Find(key.source, key.path);
  if (file != nullptr && file->key().version == key.version && file->map().present() == 0) {
    EvictFile(*file, EvictReason::kEmpty);
  }
}

// --- Maintenance --------------------------------------------------------------------------------

void TieredCacheOfFiles::RequestCheck(DataFile& file) {
  base::MutexLock lock(&work_mutex_);
  if (checks_.size() >= kChecksMax) {
    file.ResetCheckRequest();
    return;
  }
  checks_.push_back(file.weak_from_this());
  work_.NotifyOne();
}

void TieredCacheOfFiles::HighWaterPassed() {
  if (stuck_.load(std::memory_order_relaxed) || high_water_.exchange(true)) return;
  base::MutexLock lock(&work_mutex_);
  work_.NotifyOne();
}

void TieredCacheOfFiles::StopMaintenance() {
  if (!maintenance_.joinable()) return;
  stop_ = true;
  {
    base::MutexLock lock(&work_mutex_);
    work_.NotifyOne();
  }
  maintenance_.join();
}

FilePtr TieredCacheOfFiles::NextCheck() {
  base::MutexLock lock(&work_mutex_);
  while (!stop_ && !high_water_ && checks_.empty()) {
    if (!sizes_checked_) {
      if (work_.WaitFor(&work_mutex_, kSizesAfter)) continue;
      sizes_due_ = true;
      return nullptr;
    }
    if (!stuck_) {
      work_.Wait(&work_mutex_);
    } else if (!work_.WaitFor(&work_mutex_, kStuckTime)) {
      high_water_ = true;  // Tried again.
    }
  }
  if (checks_.empty()) return nullptr;
  FilePtr check = checks_.front().lock();
  checks_.pop_front();
  return check;
}

void TieredCacheOfFiles::Maintain() {
  while (!stop_) {
    const FilePtr check = NextCheck();
    if (high_water_.exchange(false)) {
      bool stuck = false;
      // Slowest first: what it gives up makes room for what the faster ones demote.
      for (size_t i = tiers_.size(); i-- > 0;) stuck |= LowerTier(i);
      stuck_ = stuck;
    }
    if (check != nullptr) {
      check->CheckAll(stop_);
      check->ResetCheckRequest();
    }
    if (std::exchange(sizes_due_, false)) {
      CheckSizes();
      sizes_checked_ = true;
    }
  }
}

void TieredCacheOfFiles::CheckSizes() {
  std::vector<std::weak_ptr<DataFile>> files;
  index_.ForEach([&](DataFile& file) {
    if (!file.size_checked()) files.push_back(file.weak_from_this());
  });
  for (const std::weak_ptr<DataFile>& each : files) {
    if (stop_) return;
    if (const FilePtr file = each.lock()) file->CheckSize();
  }
}

// Brings a tier above its high-water mark down to its low-water mark: by demotion while a lower
// tier has room, else by eviction.
bool TieredCacheOfFiles::LowerTier(size_t index) {
  Tier& tier = *tiers_[index];
  if (!tier.AboveHigh() || !tier.has_candidates()) return false;
  bool changed = false;
  int failures = 0;
  while (!stop_ && tier.Surplus() > 0 && failures < kFailuresMax) {
    const FilePtr victim = tier.NextVictim(
        false, [](DataFile& file) { return !file.held() && file.map().present() > 0; });
    if (victim == nullptr) break;
    Tier* lower = victim->complete() ? LowerTierFor(index, *victim) : nullptr;
    if (lower != nullptr ? Demote(*victim, *lower) : EvictFile(*victim, EvictReason::kQuota) > 0) {
      changed = true;
      failures = 0;
    } else {
      // The hand stands at this file: let it pass.
      victim->MarkUsed();
      ++failures;
    }
  }
  return !changed;
}

Tier* TieredCacheOfFiles::LowerTierFor(size_t index, const DataFile& file) {
  for (size_t i = index + 1; i < tiers_.size(); ++i) {
    if (tiers_[i]->usable() && tiers_[i]->Room() >= file.key().size) return tiers_[i].get();
  }
  return nullptr;
}

bool TieredCacheOfFiles::Demote(DataFile& file, Tier& to) {
  const absl::StatusOr<Source*> source = to.FindOrMakeSource(file.key().source);
  if (!source.ok()) {
    to.CountDiskFault(source.status());
    return false;
  }
  // Nobody else may make a file of this name there while the copy grows.
  if (!to.AddDying(file.ref())) return false;
  to.Commit(file.committed());
  const auto copy = std::make_shared<DataFile>(
      file.key(), FileId::Of(file.key().path, file.key().version), &to, *source, file.committed());
  copy->SetInUse(file.in_use());
  const absl::Status copied = file.CopyTo(*copy, stop_);
  to.Enqueue(*copy);
  if (!copied.ok() || !index_.Replace(file, copy)) {
    copy->Evict();
    return false;
  }
  Retire(file, EvictReason::kDemoted);
  return true;
}

}  // namespace

uint64_t PresentBytes(const CachedFile& file, uint64_t offset, uint64_t length) {
  const uint64_t end = offset + length;
  uint64_t bytes = 0;
  for (uint64_t at = offset; at < end;) {
    const uint64_t index = at / kBlockSize;
    const uint64_t next = std::min(end, (index + 1) * kBlockSize);
    if (file.HasBlock(index)) bytes += next - at;
    at = next;
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<TieredCache>> TieredCache::Open(const CacheOptions& options,
                                                               io::FileIo* file_io) {
  RETURN_IF_ERROR(CheckOptions(options, file_io));
  std::string boot_id = options.boot_id;
  if (boot_id.empty()) {
    ASSIGN_OR_RETURN(boot_id, MachineBootId());
  }
  auto cache = std::make_unique<TieredCacheOfFiles>(options, file_io, std::move(boot_id));
  RETURN_IF_ERROR(cache->OpenTiers(options.tiers));
  return std::unique_ptr<TieredCache>(std::move(cache));
}

}  // namespace millrace::tier
