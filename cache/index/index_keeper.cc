#include "cache/index/index_keeper.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <map>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cache/index/delta.h"
#include "cache/index/delta_records.h"
#include "common/base/errno_status.h"
#include "common/base/file_text.h"
#include "common/base/log.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"

namespace millrace::index {
namespace {

constexpr int kListingShare = 5;
// A difference is worth its bytes while the index is several times as long.
constexpr uint64_t kDeltaShare = 4;
constexpr size_t kStepsMax = 32;
// Differences over several steps, kept for the next who asks. Most who ask have one of the last
// versions.
constexpr size_t kComposedMax = 4;
constexpr char kIndexName[] = "index";
constexpr char kNewName[] = "index.new";
constexpr char kDeltaPrefix[] = "delta-";

absl::Status MakeDirectory(const std::string& path) {
  if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return absl::OkStatus();
  return base::ErrnoStatus(errno, absl::StrCat("index: mkdir ", path));
}

// From one version of the index to the next.
struct Step {
  uint64_t from = 0;
  uint64_t to = 0;
  std::shared_ptr<const std::string> delta;
};

// One source. Thread-safe.
class KeptIndex {
 public:
  KeptIndex(const IndexKeeperOptions& options, IndexKeeper::Source source,
            const std::atomic<bool>* stopping)
      : options_(options),
        source_(std::move(source)),
        source_hash_(base::StableHash64({source_.identity})),
        directory_(options.directory.empty()
                       ? ""
                       : absl::StrFormat("%s/%016x", options.directory, source_hash_)),
        stopping_(stopping) {}

  ~KeptIndex() {
    if (thread_.joinable()) thread_.join();
  }

  absl::StatusOr<IndexAnswer> Get(uint64_t have, absl::Duration max_age);
  absl::Status Refresh();
  IndexStatus Status();
  const std::string& identity() const { return source_.identity; }

 private:
  absl::Duration Now() const { return options_.clock->Monotonic(); }
  std::string PathOf(absl::string_view name) const { return absl::StrCat(directory_, "/", name); }
  std::string DeltaPath(uint64_t from) const { return PathOf(absl::StrCat(kDeltaPrefix, from)); }

  // What is on disk, at the first use.
  void Load() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LoadSteps() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Duration Age() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Due(absl::Duration max_age) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartListing() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Null: none that is worth it.
  std::shared_ptr<const std::string> DeltaFrom(uint64_t have) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // The thread of a listing.
  void List(std::shared_ptr<const Index> old, absl::Duration started);
  absl::StatusOr<std::shared_ptr<const Index>> BuildNew(const Index* old);
  // Makes `index` the one that is served; `delta` leads to it from the one before, or is empty.
  absl::Status Publish(std::shared_ptr<const Index> index, std::string delta);

  const IndexKeeperOptions& options_;
  const IndexKeeper::Source source_;
  const uint64_t source_hash_;
  const std::string directory_;  // Empty: in memory.
  const std::atomic<bool>* const stopping_;
  BuildProgress progress_;

  base::Mutex mutex_;
  base::CondVar changed_;
  bool loaded_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<const Index> index_ ABSL_GUARDED_BY(mutex_);
  std::vector<Step> steps_ ABSL_GUARDED_BY(mutex_);  // Each begins where the one before ends.
  std::map<uint64_t, std::shared_ptr<const std::string>> composed_ ABSL_GUARDED_BY(mutex_);
  // When the listing began that last found what index_ says; infinite: in another process.
  absl::Duration confirmed_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
  bool listing_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t listings_ ABSL_GUARDED_BY(mutex_) = 0;  // Ended.
  absl::Duration started_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
  absl::Duration elapsed_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);  // Of the last listing.
  std::thread thread_ ABSL_GUARDED_BY(mutex_);
};

void KeptIndex::Load() {
  if (loaded_ || directory_.empty()) return;
  loaded_ = true;
  base::UniqueFd file(open(PathOf(kIndexName).c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return;
  absl::StatusOr<std::shared_ptr<const Index>> index = Index::Open(std::move(file));
  if (!index.ok() || (*index)->header().source_hash != source_hash_) {
    base::Log(base::Severity::kWarning, "an index on disk is of no use, the source is listed anew",
              {{"source", source_.identity}, {"cause", index.status().ToString()}});
    return;
  }
  index_ = *std::move(index);
  LoadSteps();
}

void KeptIndex::LoadSteps() {
  std::map<uint64_t, Step> by_end;
  if (DIR* const directory = opendir(directory_.c_str()); directory != nullptr) {
    while (const dirent* const entry = readdir(directory)) {
      if (!absl::StartsWith(entry->d_name, kDeltaPrefix)) continue;
      const absl::StatusOr<std::string> delta =
          base::ReadTextFile(PathOf(entry->d_name), index_->header().file_bytes);
      const auto cursor = delta.ok() ? DeltaCursor::Open(*delta) : delta.status();
      if (!cursor.ok()) {
        unlink(PathOf(entry->d_name).c_str());
        continue;
      }
      const DeltaHeader& header = cursor->header();
      by_end[header.to_version] = {header.from_version, header.to_version,
                                   std::make_shared<const std::string>(*delta)};
    }
    closedir(directory);
  }
  uint64_t end = index_->header().version;
  for (auto found = by_end.find(end); found != by_end.end(); found = by_end.find(end)) {
    end = found->second.from;
    steps_.insert(steps_.begin(), std::move(found->second));
    by_end.erase(found);
  }
  for (const auto& [to, step] : by_end) unlink(DeltaPath(step.from).c_str());
}

absl::Duration KeptIndex::Age() const { return Now() - confirmed_; }

bool KeptIndex::Due(absl::Duration max_age) const {
  if (listing_ || *stopping_) return false;
  const absl::Duration since = Now() - started_;
  return since >= std::max({options_.refresh_min, kListingShare * elapsed_, max_age}) ||
         since == absl::InfiniteDuration();
}

void KeptIndex::StartListing() {
  // The one before has ended, or is about to, and takes no lock any more.
  if (thread_.joinable()) thread_.join();
  listing_ = true;
  started_ = Now();
  progress_.entries = 0;
  progress_.directories = 0;
  thread_ = std::thread(
      [this, old = index_, started = started_]() mutable { List(std::move(old), started); });
}

std::shared_ptr<const std::string> KeptIndex::DeltaFrom(uint64_t have) {
  const auto first = std::find_if(steps_.begin(), steps_.end(),
                                  [have](const Step& step) { return step.from == have; });
  if (first == steps_.end()) return nullptr;
  if (first + 1 == steps_.end()) return first->delta;
  const auto known = composed_.find(have);
  if (known != composed_.end()) return known->second;
  std::shared_ptr<const std::string> delta = first->delta;
  for (auto step = first + 1; step != steps_.end() && delta != nullptr; ++step) {
    absl::StatusOr<std::string> both =
        Compose(*delta, *step->delta, index_->header().file_bytes / kDeltaShare);
    delta = both.ok() ? std::make_shared<const std::string>(*std::move(both)) : nullptr;
  }
  if (composed_.size() >= kComposedMax) composed_.erase(composed_.begin());
  composed_[have] = delta;
  return delta;
}

absl::StatusOr<IndexAnswer> KeptIndex::Get(uint64_t have, absl::Duration max_age) {
  const base::MutexLock lock(&mutex_);
  Load();
  if (Due(max_age)) StartListing();
  if (index_ == nullptr) {
    absl::Status status = absl::UnavailableError(absl::StrCat(
        "there is no index of the source yet",
        listing_ ? absl::StrCat(": ", progress_.entries.load(), " entries are listed") : "",
        status_.ok() ? "" : "; the last listing failed: ", status_.message()));
    status.SetPayload(store::kRetryAfterPayload, absl::Cord("1"));
    return status;
  }
  IndexAnswer answer;
  answer.head.version = index_->header().version;
  answer.head.content = index_->header().content;
  answer.head.age = Age();
  if (have == answer.head.version) return answer;
  answer.delta = DeltaFrom(have);
  if (answer.delta != nullptr) {
    answer.head.kind = AnswerKind::kDelta;
    answer.head.bytes = answer.delta->size();
  } else {
    answer.head.kind = AnswerKind::kIndex;
    answer.index = index_;
    answer.head.bytes = index_->header().file_bytes;
  }
  return answer;
}

absl::Status KeptIndex::Refresh() {
  const base::MutexLock lock(&mutex_);
  Load();
  if (!listing_ && *stopping_) return absl::CancelledError("the worker is ending");
  if (!listing_) StartListing();
  const uint64_t before = listings_;
  while (listings_ == before) changed_.Wait(&mutex_);
  return status_;
}

IndexStatus KeptIndex::Status() {
  const base::MutexLock lock(&mutex_);
  IndexStatus status;
  status.source = source_.identity;
  if (index_ != nullptr) {
    status.version = index_->header().version;
    status.entries = index_->header().entries;
    status.file_bytes = index_->header().file_bytes;
    status.age = Age();
  }
  status.listing = listing_;
  status.listings = listings_;
  status.listing_elapsed = elapsed_;
  if (!status_.ok()) status.last_error = std::string(status_.message());
  return status;
}

absl::StatusOr<std::shared_ptr<const Index>> KeptIndex::BuildNew(const Index* old) {
  base::UniqueFd file;
  if (directory_.empty()) {
    ASSIGN_OR_RETURN(file, NewUnnamedFile(""));
  } else {
    RETURN_IF_ERROR(MakeDirectory(options_.directory));
    RETURN_IF_ERROR(MakeDirectory(directory_));
    // Another file than one of this name was: that one may still be mapped.
    unlink(PathOf(kNewName).c_str());
    file =
        base::UniqueFd(open(PathOf(kNewName).c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!file.valid()) {
      return base::ErrnoStatus(errno, absl::StrCat("index: make ", PathOf(kNewName)));
    }
  }
  IndexIdentity identity;
  identity.source_hash = source_hash_;
  // Time, so that two workers that listed one source have no version in common.
  identity.version =
      static_cast<uint64_t>(std::max<int64_t>(1, absl::ToUnixMicros(options_.clock->Now())));
  if (old != nullptr) {
    identity.version = std::max(identity.version, old->header().version + 1);
    identity.seed = old->header().seed;
  } else {
    std::random_device random;
    identity.seed = static_cast<uint64_t>(random()) << 32 | random();
  }
  return BuildIndex(*source_.store, std::move(file), identity,
                    {.threads = options_.threads,
                     .sort_memory_bytes = options_.sort_memory_bytes,
                     .directory = directory_,
                     .entries_max = options_.entries_max,
                     .cancelled = stopping_,
                     .progress = &progress_});
}

absl::Status KeptIndex::Publish(std::shared_ptr<const Index> index, std::string delta) {
  if (!directory_.empty() && rename(PathOf(kNewName).c_str(), PathOf(kIndexName).c_str()) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("index: rename ", PathOf(kNewName)));
  }
  const base::MutexLock lock(&mutex_);
  composed_.clear();
  uint64_t bytes = delta.size();
  if (delta.empty()) {
    for (const Step& step : steps_) {
      if (!directory_.empty()) unlink(DeltaPath(step.from).c_str());
    }
    steps_.clear();
  } else {
    const uint64_t from = index_->header().version;
    if (!directory_.empty()) {
      const absl::Status written = base::WriteTextFile(DeltaPath(from), delta, 0600);
      // The next process then lacks it, and sends the index.
      if (!written.ok()) unlink(DeltaPath(from).c_str());
    }
    for (const Step& step : steps_) bytes += step.delta->size();
    steps_.push_back(
        {from, index->header().version, std::make_shared<const std::string>(std::move(delta))});
  }
  while (steps_.size() > kStepsMax ||
         (steps_.size() > 1 && bytes > index->header().file_bytes / kDeltaShare)) {
    bytes -= steps_.front().delta->size();
    if (!directory_.empty()) unlink(DeltaPath(steps_.front().from).c_str());
    steps_.erase(steps_.begin());
  }
  index_ = std::move(index);
  return absl::OkStatus();
}

void KeptIndex::List(std::shared_ptr<const Index> old, absl::Duration started) {
  absl::StatusOr<std::shared_ptr<const Index>> index = BuildNew(old.get());
  absl::Status status = index.status();
  const bool same =
      status.ok() && old != nullptr && (*index)->header().content == old->header().content;
  if (status.ok() && !same) {
    absl::StatusOr<std::string> delta;
    if (old != nullptr) {
      delta = Diff(*old, **index, (*index)->header().file_bytes / kDeltaShare);
    }
    status = Publish(*std::move(index), old != nullptr && delta.ok() ? *std::move(delta) : "");
  }
  if ((same || !status.ok()) && !directory_.empty()) unlink(PathOf(kNewName).c_str());
  const base::MutexLock lock(&mutex_);
  // A failure is told once, and its end.
  if (!status.ok() && status_.ok() && !absl::IsCancelled(status)) {
    base::Log(base::Severity::kWarning, "a source could not be listed for its index",
              {{"source", source_.identity}, {"cause", status.ToString()}});
  }
  if (status.ok()) confirmed_ = started;
  elapsed_ = Now() - started;
  if (status.ok() && (listings_ == 0 || !status_.ok())) {
    base::Log(base::Severity::kInfo, "a source was listed for its index",
              {{"source", source_.identity},
               {"entries", index_->header().entries},
               {"bytes", index_->header().file_bytes},
               {"seconds", absl::ToDoubleSeconds(elapsed_)}});
  }
  status_ = std::move(status);
  listing_ = false;
  ++listings_;
  changed_.NotifyAll();
}

class RealIndexKeeper final : public IndexKeeper {
 public:
  RealIndexKeeper(const IndexKeeperOptions& options, const std::vector<Source>& sources)
      : options_(options) {
    if (options_.clock == nullptr) options_.clock = base::RealClock();
    for (const Source& source : sources) {
      kept_.push_back(std::make_unique<KeptIndex>(options_, source, &stopping_));
    }
  }
  ~RealIndexKeeper() override { stopping_ = true; }

  absl::StatusOr<IndexAnswer> Get(const std::string& source, uint64_t have,
                                  absl::Duration max_age) override {
    KeptIndex* const kept = Find(source);
    if (kept == nullptr) return Unknown(source);
    return kept->Get(have, max_age);
  }

  absl::Status Refresh(const std::string& source) override {
    KeptIndex* const kept = Find(source);
    if (kept == nullptr) return Unknown(source);
    return kept->Refresh();
  }

  std::vector<IndexStatus> Status() const override {
    std::vector<IndexStatus> all;
    for (const auto& kept : kept_) all.push_back(kept->Status());
    return all;
  }

 private:
  static absl::Status Unknown(const std::string& source) {
    return absl::NotFoundError(absl::StrCat("this worker has no source ", source));
  }
  KeptIndex* Find(const std::string& source) const {
    for (const auto& kept : kept_) {
      if (kept->identity() == source) return kept.get();
    }
    return nullptr;
  }

  IndexKeeperOptions options_;
  std::atomic<bool> stopping_{false};
  std::vector<std::unique_ptr<KeptIndex>> kept_;  // Destroyed first: their threads end.
};

}  // namespace

std::unique_ptr<IndexKeeper> IndexKeeper::Create(const IndexKeeperOptions& options,
                                                 const std::vector<Source>& sources) {
  return std::make_unique<RealIndexKeeper>(options, sources);
}

}  // namespace millrace::index
