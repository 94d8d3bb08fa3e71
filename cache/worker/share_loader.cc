#include "cache/worker/share_loader.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"

namespace millrace::worker {
namespace {

// On their way at once: what the fetch threads can have in hand, several times over.
constexpr uint64_t kBytesAtOnce = 256 << 20;
constexpr size_t kRangesAtOnce = 256;
constexpr size_t kPageEntries = 1000;
constexpr size_t kDepthMax = 512;
constexpr absl::Duration kReportEvery = absl::Milliseconds(500);

class ShareLoader {
 public:
  ShareLoader(Files& files, const Files::Source& source, base::Clock& clock, LoadObserver observer)
      : files_(files), source_(source), clock_(clock), observer_(observer) {}

  absl::Status Run(const std::vector<std::string>& paths) {
    std::vector<std::string> roots = paths;
    if (roots.empty()) roots.emplace_back();
    absl::Status status;
    for (const std::string& root : roots) {
      status = LoadRoot(root);
      if (!status.ok()) break;
    }
    if (status.ok()) {
      base::MutexLock lock(&shared_->mutex);
      shared_->progress.total_known = true;
    }
    if (status.ok()) status = Await(0, 0);
    *given_up_ = !status.ok();
    if (!status.ok()) {
      for (const auto& object : objects_) object->CancelPrefetch();
    }
    // What was cancelled still says so: the callbacks must not find this gone, and do not.
    if (status.ok() && !Report()) status = absl::CancelledError("the load was ended");
    return status;
  }

 private:
  // A file's parts that are on their way, guarded by Shared's mutex. It is done with the last.
  struct File {
    std::shared_ptr<fetch::Object> object;
    size_t parts = 1;
    bool failed = false;
  };
  // Outlives this object as long as a fetch is on its way.
  struct Shared {
    base::Mutex mutex;
    base::CondVar changed;
    proto::LoadProgress progress ABSL_GUARDED_BY(mutex);
    uint64_t bytes_on_way ABSL_GUARDED_BY(mutex) = 0;
    size_t ranges_on_way ABSL_GUARDED_BY(mutex) = 0;

    void PartDone(File* file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
      if (--file->parts == 0 && !file->failed) ++progress.files_done;
    }
  };

  absl::Status LoadRoot(const std::string& root) {
    if (!root.empty()) {
      ASSIGN_OR_RETURN(const store::Entry entry, source_.store->Stat(root, store::CallOptions()));
      if (entry.kind == store::EntryKind::kObject) return LoadFile(root, entry);
    }
    return LoadDirectory(root, 0);
  }

  absl::Status LoadDirectory(const std::string& path, size_t depth) {
    if (depth > kDepthMax) return absl::OkStatus();  // No mount shows it either.
    std::vector<std::string> directories;
    std::string token;
    do {
      absl::StatusOr<store::ListPage> page =
          source_.store->List(path, token, kPageEntries, store::CallOptions());
      // It went away meanwhile.
      if (absl::IsNotFound(page.status()) && depth > 0) return absl::OkStatus();
      if (!page.ok()) return page.status();
      for (const store::Entry& entry : page->entries) {
        const std::string name = path.empty() ? entry.name : absl::StrCat(path, "/", entry.name);
        if (entry.kind == store::EntryKind::kDirectory) {
          directories.push_back(name);
        } else {
          RETURN_IF_ERROR(LoadFile(name, entry));
        }
      }
      if (page->next_token == token && !token.empty()) {
        return absl::UnavailableError(absl::StrCat("the listing of ", path, " has no end"));
      }
      token = page->next_token;
    } while (!token.empty());
    for (const std::string& directory : directories) {
      RETURN_IF_ERROR(LoadDirectory(directory, depth + 1));
    }
    return absl::OkStatus();
  }

  absl::Status LoadFile(const std::string& path, const store::Entry& entry) {
    const tier::FileKey key = {source_.identity, path, entry.version, entry.size};
    if (key.size == 0 || key.version.empty() || !files_.ranks().OwnsAny(key)) {
      return absl::OkStatus();
    }
    {
      base::MutexLock lock(&shared_->mutex);
      ++shared_->progress.files_total;
      shared_->progress.bytes_total += files_.ranks().OwnedBytes(key);
    }
    const absl::StatusOr<Files::Found> found = files_.Find(
        {key.source, key.path, key.version, key.size}, proto::Role::kOwner, /*offset=*/0);
    if (!found.ok()) {
      FailFile(path, found.status());
      return absl::OkStatus();
    }
    const auto file = std::make_shared<File>();
    file->object = found->object;
    absl::Status status;
    const uint64_t extent_size = files_.ranks().options().extent_size;
    for (uint64_t extent = 0; extent < files_.ranks().ExtentCount(key.size) && status.ok();
         ++extent) {
      if (!files_.ranks().Owns(key.source, key.path, extent)) continue;
      status =
          LoadRange(file, path, extent * extent_size, files_.ranks().ExtentBytes(key.size, extent));
    }
    base::MutexLock lock(&shared_->mutex);
    shared_->PartDone(file.get());
    return status;
  }

  absl::Status LoadRange(const std::shared_ptr<File>& file, const std::string& path,
                         uint64_t offset, uint64_t length) {
    fetch::Object& object = *file->object;
    const uint64_t present = object.CachedBytes(offset, length);
    const uint64_t missing = length - present;
    if (missing == 0 || object.Uncached() || !files_.HasRoom(missing)) {
      base::MutexLock lock(&shared_->mutex);
      shared_->progress.bytes_done += present;
      shared_->progress.bytes_refused += missing;
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(Await(kBytesAtOnce - std::min(kBytesAtOnce, length), kRangesAtOnce - 1));
    {
      base::MutexLock lock(&shared_->mutex);
      ++file->parts;
      shared_->bytes_on_way += length;
      ++shared_->ranges_on_way;
    }
    Remember(file->object);
    object.Prefetch(
        offset, length, fetch::Priority::kBulk,
        [shared = shared_, file, path, offset, length](const absl::Status& status) {
          const uint64_t kept = file->object->CachedBytes(offset, length);
          base::MutexLock lock(&shared->mutex);
          shared->progress.bytes_done += kept;
          // All of it came, and the cache did not take it.
          if (status.ok()) shared->progress.bytes_refused += length - kept;
          shared->bytes_on_way -= length;
          --shared->ranges_on_way;
          if (!status.ok() && !std::exchange(file->failed, true)) {
            ++shared->progress.files_failed;
            shared->progress.last_error = absl::StrCat(path, ": ", status.message());
          }
          shared->PartDone(file.get());
          shared->changed.NotifyAll();
        },
        given_up_);
    return absl::OkStatus();
  }

  void FailFile(const std::string& path, const absl::Status& status) {
    base::MutexLock lock(&shared_->mutex);
    ++shared_->progress.files_failed;
    shared_->progress.last_error = absl::StrCat(path, ": ", status.message());
  }

  // Those whose fetches may have to be abandoned.
  void Remember(const std::shared_ptr<fetch::Object>& object) {
    if (!objects_.empty() && objects_.back() == object) return;
    if (objects_.size() >= 2 * kRangesAtOnce) objects_.erase(objects_.begin());
    objects_.push_back(object);
  }

  bool Report() {
    proto::LoadProgress progress;
    {
      base::MutexLock lock(&shared_->mutex);
      progress = shared_->progress;
    }
    reported_ = clock_.Monotonic();
    return observer_(progress);
  }

  // Until at most so much is on its way.
  absl::Status Await(uint64_t bytes, size_t ranges) {
    while (true) {
      if (clock_.Monotonic() - reported_ >= kReportEvery && !Report()) {
        return absl::CancelledError("the load was ended");
      }
      base::MutexLock lock(&shared_->mutex);
      if (shared_->bytes_on_way <= bytes && shared_->ranges_on_way <= ranges) {
        return absl::OkStatus();
      }
      shared_->changed.WaitFor(&shared_->mutex, kReportEvery);
    }
  }

  Files& files_;
  const Files::Source& source_;
  base::Clock& clock_;
  LoadObserver observer_;
  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  const std::shared_ptr<std::atomic<bool>> given_up_ = std::make_shared<std::atomic<bool>>(false);
  std::vector<std::shared_ptr<fetch::Object>> objects_;
  absl::Duration reported_ = -absl::InfiniteDuration();
};

}  // namespace

absl::Status LoadShare(Files& files, const Files::Source& source,
                       const std::vector<std::string>& paths, base::Clock& clock,
                       LoadObserver observer) {
  return ShareLoader(files, source, clock, observer).Run(paths);
}

}  // namespace millrace::worker
