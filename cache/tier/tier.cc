#include "cache/tier/tier.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cache/tier/data_file.h"
#include "cache/tier/directory.h"
#include "cache/tier/tier_loader.h"
#include "common/base/errno_status.h"
#include "common/base/hash.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace millrace::tier {
namespace {

// Faults within the window that set a tier aside, and for how long. A single bad sector is none of
// the tier's health; a dead or full disk gives this many at once.
constexpr absl::Duration kFaultWindow = absl::Seconds(10);
constexpr absl::Duration kAsideTime = absl::Seconds(60);

// Names of evicted files kept before the freed ones among them are forgotten.
constexpr size_t kDyingSweep = 4096;
// A position the journal never reaches: the data file is still there.
constexpr uint64_t kNotWritten = std::numeric_limits<uint64_t>::max();

}  // namespace

Tier::Tier(const TierOptions& options, const Environment* environment)
    : options_(options),
      environment_(environment),
      high_bytes_(
          static_cast<uint64_t>(options.high_water * static_cast<double>(options.quota_bytes))),
      low_bytes_(
          static_cast<uint64_t>(options.low_water * static_cast<double>(options.quota_bytes))),
      idle_max_(static_cast<uint64_t>(environment->idle_share *
                                      static_cast<double>(options.quota_bytes))),
      queue_(environment->policy) {
  base::MutexLock lock(&health_mutex_);
  recent_faults_.fill(-absl::InfiniteDuration());
}

Tier::~Tier() = default;

absl::StatusOr<std::unique_ptr<Tier>> Tier::Open(const TierOptions& options,
                                                 const Environment* environment) {
  std::unique_ptr<Tier> tier(new Tier(options, environment));
  RETURN_IF_ERROR(tier->OpenDirectory());
  RETURN_IF_ERROR(tier->CheckQuota());
  RETURN_IF_ERROR(tier->CheckOwnDirectory());
  RETURN_IF_ERROR(tier->Lock());
  ASSIGN_OR_RETURN(tier->sources_directory_, MakeDirectoryAt(tier->directory_.get(), kSourcesName));
  return tier;
}

absl::Status Tier::OpenDirectory() {
  const std::string& path = options_.path;
  // Parents too, so that "--tier ssd:/var/cache/millrace/ssd:1Gi" works on a fresh machine.
  for (size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    mkdir(path.substr(0, slash).c_str(), 0755);
  }
  absl::StatusOr<base::UniqueFd> directory = MakeDirectoryAt(AT_FDCWD, path);
  if (!directory.ok()) {
    const int error = base::ErrnoOf(directory.status()).value_or(EIO);
    return base::WithErrno(absl::FailedPreconditionError(absl::StrCat(
                               "cache directory ", path, ": ", directory.status().message())),
                           error);
  }
  if (faccessat(directory->get(), ".", R_OK | W_OK | X_OK, 0) != 0) {
    return base::WithErrno(absl::FailedPreconditionError(absl::StrCat(
                               "cache directory ", path, " is not writable by this user")),
                           errno);
  }
  directory_ = *std::move(directory);
  return absl::OkStatus();
}

absl::Status Tier::CheckQuota() {
  struct statvfs fs;
  if (fstatvfs(directory_.get(), &fs) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("statvfs of ", options_.path));
  }
  const uint64_t total = uint64_t{fs.f_blocks} * fs.f_frsize;
  // A tmpfs without a limit says 0.
  if (total != 0 && options_.quota_bytes > total) {
    return absl::InvalidArgumentError(absl::StrCat(
        "quota ", base::FormatBytes(options_.quota_bytes), " of cache directory ", options_.path,
        " is larger than its file system (", base::FormatBytes(total), "); give a smaller quota"));
  }
  return absl::OkStatus();
}

// Files that no record names are removed: only in a directory that is surely a cache.
absl::Status Tier::CheckOwnDirectory() {
  std::vector<std::string> names;
  RETURN_IF_ERROR(ForEachName(directory_.get(), [&](const char* name) { names.push_back(name); }));
  const auto has = [&](absl::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (has(kLockName)) {
    ASSIGN_OR_RETURN(const std::string lock, ReadSmallFile(directory_.get(), kLockName));
    // Empty after a power cut right after its creation.
    if (lock.empty() || absl::StartsWith(lock, kLockHeader)) return absl::OkStatus();
  }
  for (const std::string& name : names) {
    if (name == "lost+found") continue;
    return absl::FailedPreconditionError(
        absl::StrCat("cache directory ", options_.path, " is not empty (it has \"", name,
                     "\") and is no millrace cache; name an empty or a new directory"));
  }
  return absl::OkStatus();
}

absl::Status Tier::Lock() {
  lock_ = base::UniqueFd(
      openat(directory_.get(), kLockName, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock_.valid()) {
    return base::ErrnoStatus(errno, absl::StrCat("opening ", options_.path, "/", kLockName));
  }
  if (flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) {
      return base::ErrnoStatus(errno, absl::StrCat("locking ", options_.path, "/", kLockName));
    }
    const absl::StatusOr<std::string> text = ReadSmallFile(directory_.get(), kLockName);
    absl::string_view pid = text.ok() ? absl::string_view(*text) : absl::string_view();
    absl::ConsumePrefix(&pid, kLockHeader);
    return absl::FailedPreconditionError(
        absl::StrCat("cache directory ", options_.path, " is in use by process ",
                     absl::StripSuffix(pid, "\n"), "; a directory serves one process"));
  }
  const std::string text = absl::StrCat(kLockHeader, getpid(), "\n");
  if (ftruncate(lock_.get(), 0) != 0) return base::ErrnoStatus(errno, "writing the lock file");
  return environment_->file_io->Write(lock_.get(), 0, text);
}

absl::StatusOr<std::vector<std::shared_ptr<DataFile>>> Tier::Load() {
  return TierLoader(this).Load();
}

absl::Status Tier::StartJournal(std::function<void(SnapshotSink)> snapshot) {
  Journal::Options options;
  options.directory_fd = directory_.get();
  options.file_io = environment_->file_io;
  options.boot_id = environment_->boot_id;
  options.on_fault = [this](const absl::Status& status) { CountDiskFault(status); };
  options.snapshot = [this, snapshot = std::move(snapshot)](SnapshotSink sink) {
    std::string records;
    for (const Source* source : Sources()) AppendSource(source->hash, source->url, &records);
    sink(records);
    snapshot(sink);
  };
  journal_ = std::make_unique<Journal>(std::move(options));
  if (journal_end_.has_value()) {
    return journal_->Continue(journal_end_->offset, journal_end_->garbage_bytes);
  }
  return journal_->StartAnew();
}

absl::Status Tier::HandOver() {
  handed_over_ = true;
  while (const uint64_t changes = changes_) changes_.wait(changes);
  absl::Status status = journal_->Stop();
  lock_.Reset();
  return status;
}

absl::Status Tier::Close() {
  RETURN_IF_ERROR(journal_->Flush());
  // One call for all data files, renames included, rather than an fsync for each of thousands.
  if (syncfs(directory_.get()) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("syncing ", options_.path));
  }
  std::string mark;
  AppendClean(&mark);
  journal_->Append(mark, mark.size());
  return journal_->Sync();
}

TierStats Tier::Stats() const {
  TierStats stats;
  stats.medium = options_.medium;
  stats.path = options_.path;
  stats.used_bytes = used();
  stats.capacity_bytes = options_.quota_bytes;
  stats.files = counters_.files;
  stats.files_complete = counters_.files_complete;
  stats.evictions_quota = counters_.evictions_quota;
  stats.evictions_version = counters_.evictions_version;
  stats.evictions_user = counters_.evictions_user;
  stats.demotions = counters_.demotions;
  stats.faults_disk = counters_.faults_disk;
  stats.faults_damaged = counters_.faults_damaged;
  stats.refused = counters_.refused;
  return stats;
}

bool Tier::BeginChange() {
  // Counted first: whoever hands over sees the count, or this sees that it did.
  changes_.fetch_add(1);
  if (!handed_over_) return true;
  EndChange();
  return false;
}

void Tier::EndChange() {
  changes_.fetch_sub(1);
  if (handed_over_) changes_.notify_all();
}

// --- Space --------------------------------------------------------------------------------------

uint64_t Tier::Surplus() const {
  const uint64_t used_now = used();
  return used_now > low_bytes_ ? used_now - low_bytes_ : 0;
}

uint64_t Tier::Room() const {
  const uint64_t used_now = used();
  return used_now < options_.quota_bytes ? options_.quota_bytes - used_now : 0;
}

bool Tier::TryReserve(uint64_t bytes) {
  const uint64_t quota = options_.quota_bytes;
  uint64_t used_now = used();
  do {
    if (bytes > quota || used_now > quota - bytes) return false;
  } while (!used_.compare_exchange_weak(used_now, used_now + bytes, std::memory_order_relaxed));
  if (used_now + bytes > high_bytes_ && has_candidates()) environment_->host->HighWaterPassed();
  return true;
}

uint64_t Tier::Expected(const FileKey& key) const {
  if (environment_->expected_bytes == nullptr) return key.size;
  return std::min(key.size, environment_->expected_bytes(key));
}

bool Tier::TryCommit(uint64_t bytes) {
  const uint64_t quota = options_.quota_bytes;
  uint64_t committed = committed_.load(std::memory_order_relaxed);
  do {
    if (bytes > quota || committed > quota - bytes) return false;
  } while (
      !committed_.compare_exchange_weak(committed, committed + bytes, std::memory_order_relaxed));
  return true;
}

// --- Health -------------------------------------------------------------------------------------

bool Tier::usable() const {
  const int64_t until = aside_until_ns_.load(std::memory_order_relaxed);
  return until == 0 || absl::ToInt64Nanoseconds(environment_->clock->Monotonic()) >= until;
}

void Tier::CountDiskFault(const absl::Status& status) {
  counters_.faults_disk.fetch_add(1, std::memory_order_relaxed);
  const absl::Duration now = environment_->clock->Monotonic();
  {
    base::MutexLock lock(&health_mutex_);
    const absl::Duration oldest = std::exchange(recent_faults_[next_fault_], now);
    next_fault_ = (next_fault_ + 1) % recent_faults_.size();
    if (now - oldest > kFaultWindow) return;
    recent_faults_.fill(-absl::InfiniteDuration());
  }
  aside_until_ns_.store(absl::ToInt64Nanoseconds(now + kAsideTime), std::memory_order_relaxed);
  base::Log(base::Severity::kError, "tier set aside after repeated disk faults",
            {{"path", options_.path},
             {"retry_in", absl::FormatDuration(kAsideTime)},
             {"cause", status.ToString()}});
}

void Tier::CountDamage(absl::string_view what, absl::string_view name) {
  counters_.faults_damaged.fetch_add(1, std::memory_order_relaxed);
  base::Log(base::Severity::kDebug, "cache file dropped",
            {{"tier", options_.path}, {"cause", what}, {"name", name}});
}

// --- Sources and names --------------------------------------------------------------------------

absl::StatusOr<Source*> Tier::FindOrMakeSource(absl::string_view url) {
  {
    base::MutexLock lock(&names_mutex_);
    const auto found = sources_.find(url);
    if (found != sources_.end()) return found->second.get();
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Source> made, OpenSource(url));
  std::string record;
  AppendSource(made->hash, url, &record);
  Source* source;
  {
    base::MutexLock lock(&names_mutex_);
    // Another thread may have been faster; then its record is written twice, which does no harm.
    source = sources_.try_emplace(std::string(url), std::move(made)).first->second.get();
  }
  if (journal_ != nullptr) journal_->Append(record, 0);
  return source;
}

absl::StatusOr<std::unique_ptr<Source>> Tier::OpenSource(absl::string_view url) const {
  auto source = std::make_unique<Source>();
  source->url = std::string(url);
  source->hash = base::StableHash64({url});
  source->in_use = environment_->sources_in_use.contains(url);
  ASSIGN_OR_RETURN(const base::UniqueFd directory,
                   MakeDirectoryAt(sources_directory_.get(), SourceDirectoryName(source->hash)));
  const base::UniqueFd text(openat(directory.get(), kUrlName,
                                   O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (text.valid()) {
    // For people only; nothing reads it back, and a cache without it works.
    environment_->file_io->Write(text.get(), 0, absl::StrCat(url, "\n")).IgnoreError();
  }
  ASSIGN_OR_RETURN(source->complete, MakeDirectoryAt(directory.get(), kCompleteName));
  ASSIGN_OR_RETURN(source->partial, MakeDirectoryAt(directory.get(), kPartialName));
  // All data files begin there. Nobody asks when they were read, and to look whether that has to be
  // noted costs a tenth of a 4 KiB read (55 of 510 ns): as much as passing through FUSE does.
  ForgoAccessTimes(source->partial.get());
  return source;
}

std::vector<const Source*> Tier::Sources() const {
  std::vector<const Source*> sources;
  base::MutexLock lock(&names_mutex_);
  for (const auto& [url, source] : sources_) sources.push_back(source.get());
  return sources;
}

bool Tier::AddDying(const FileRef& ref) {
  base::MutexLock lock(&names_mutex_);
  // Freed names are forgotten in bulk: nobody waits for them.
  if (dying_.size() >= kDyingSweep) {
    absl::erase_if(dying_, [&](const auto& name) { return IsFree(name.second); });
  }
  const auto [found, inserted] = dying_.try_emplace(ref, kNotWritten);
  if (inserted) return true;
  if (!IsFree(found->second)) return false;
  found->second = kNotWritten;
  return true;
}

void Tier::RemoveDying(const FileRef& ref) {
  base::MutexLock lock(&names_mutex_);
  dying_.erase(ref);
}

void Tier::RemoveDyingAt(const FileRef& ref, uint64_t position) {
  base::MutexLock lock(&names_mutex_);
  dying_[ref] = position;
}

bool Tier::IsDying(const FileRef& ref) const {
  base::MutexLock lock(&names_mutex_);
  const auto found = dying_.find(ref);
  return found != dying_.end() && !IsFree(found->second);
}

// --- Order of eviction --------------------------------------------------------------------------

void Tier::Enqueue(DataFile& file) {
  base::MutexLock lock(&queue_mutex_);
  queue_.Insert(&file, file.queued_in_use());
  candidates_.store(queue_.candidates(), std::memory_order_relaxed);
}

void Tier::Dequeue(DataFile& file) {
  base::MutexLock lock(&queue_mutex_);
  queue_.Remove(&file, file.queued_in_use());
  candidates_.store(queue_.candidates(), std::memory_order_relaxed);
}

void Tier::Requeue(DataFile& file, bool in_use) {
  base::MutexLock lock(&queue_mutex_);
  const bool listed = file.listed();
  if (listed) queue_.Remove(&file, file.queued_in_use());
  file.set_queued_in_use(in_use);
  if (listed) queue_.Insert(&file, in_use);
  candidates_.store(queue_.candidates(), std::memory_order_relaxed);
}

std::shared_ptr<DataFile> Tier::NextVictim(bool forced,
                                           absl::FunctionRef<bool(DataFile&)> eligible) {
  const auto check = [&](EvictionEntry& entry) { return eligible(static_cast<DataFile&>(entry)); };
  base::MutexLock lock(&queue_mutex_);
  EvictionEntry* entry = forced ? queue_.NextForced(check) : queue_.NextVictim(check);
  // A queued file is in the cache's index, or held by who takes it out: it is alive.
  return entry == nullptr ? nullptr : static_cast<DataFile*>(entry)->shared_from_this();
}

}  // namespace millrace::tier
