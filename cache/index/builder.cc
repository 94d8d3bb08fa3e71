#include "cache/index/builder.h"

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache/index/entry_sorter.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"

namespace millrace::index {
namespace {

constexpr size_t kPageEntries = 1000;  // What S3 gives at most; a hint to others.
constexpr size_t kEmptyPagesMax = 1000;
constexpr size_t kDepthMax = 512;  // As the file system's own walks have it.
constexpr size_t kFileNameBytesMax = 255;

// Whether a file system shows it as a directory: no other name leads to a listing, and "" and ".."
// would lead in circles.
bool MayEnter(absl::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.size() <= kFileNameBytesMax &&
         name.find('/') == absl::string_view::npos && name.find('\0') == absl::string_view::npos;
}

class Lister {
 public:
  Lister(store::Store& store, const BuildOptions& options)
      : store_(store),
        options_(options),
        sorter_({.memory_bytes = options.sort_memory_bytes, .directory = options.directory}) {
    call_.cancelled = options.cancelled;
    waiting_.emplace_back();
  }

  absl::Status Run() {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < std::max<size_t>(1, options_.threads); ++i) {
      threads.emplace_back([this] { Work(); });
    }
    for (std::thread& thread : threads) thread.join();
    const base::MutexLock lock(&mutex_);
    return status_;
  }

  EntrySorter& sorter() { return sorter_; }

 private:
  void Work() {
    std::string path;
    while (Take(&path)) {
      absl::Status status = ListDirectory(path);
      const base::MutexLock lock(&mutex_);
      status_.Update(std::move(status));
      --busy_;
      // The last one to end, or the first to fail, lets the others go.
      if (busy_ == 0 || !status_.ok()) changed_.NotifyAll();
    }
  }

  // The last one found: so what waits is bounded by depth and width, not by the tree.
  bool Take(std::string* path) {
    const base::MutexLock lock(&mutex_);
    while (status_.ok() && waiting_.empty() && busy_ > 0) changed_.Wait(&mutex_);
    if (!status_.ok() || waiting_.empty()) return false;
    *path = std::move(waiting_.back());
    waiting_.pop_back();
    ++busy_;
    return true;
  }

  bool Failed() {
    const base::MutexLock lock(&mutex_);
    return !status_.ok();
  }

  absl::Status ListDirectory(const std::string& path) {
    if (static_cast<size_t>(std::count(path.begin(), path.end(), '/')) >= kDepthMax) {
      return absl::InvalidArgumentError(absl::StrCat("index: directories are nested more than ",
                                                     kDepthMax, " deep: look for a loop"));
    }
    std::string token;
    size_t empty_pages = 0;
    for (bool first = true; !Failed(); first = false) {
      if (options_.cancelled != nullptr && *options_.cancelled) {
        return absl::CancelledError("index: cancelled");
      }
      absl::StatusOr<store::ListPage> page = store_.List(path, token, kPageEntries, call_);
      if (!page.ok() && absl::IsNotFound(page.status()) && !path.empty()) return absl::OkStatus();
      RETURN_IF_ERROR(page.status());
      empty_pages = page->entries.empty() ? empty_pages + 1 : 0;
      if (empty_pages > kEmptyPagesMax || (!first && page->next_token == token)) {
        return absl::InvalidArgumentError("index: the store's pages do not come to an end");
      }
      RETURN_IF_ERROR(sorter_.Add(path, page->entries));
      RETURN_IF_ERROR(Count(page->entries.size()));
      Enter(path, page->entries);
      token = std::move(page->next_token);
      if (token.empty()) {
        if (options_.progress != nullptr) ++options_.progress->directories;
        return absl::OkStatus();
      }
    }
    return absl::OkStatus();
  }

  absl::Status Count(uint64_t entries) {
    if (options_.progress != nullptr) options_.progress->entries += entries;
    if ((entries_ += entries) <= options_.entries_max) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat("index: more than ", options_.entries_max, " entries"));
  }

  void Enter(const std::string& path, const std::vector<store::Entry>& entries) {
    bool any = false;
    const base::MutexLock lock(&mutex_);
    for (const store::Entry& entry : entries) {
      if (entry.kind != store::EntryKind::kDirectory || !MayEnter(entry.name)) continue;
      if (path.size() + 1 + entry.name.size() > kPathBytesMax) continue;
      waiting_.push_back(path.empty() ? entry.name : absl::StrCat(path, "/", entry.name));
      any = true;
    }
    if (any) changed_.NotifyAll();
  }

  store::Store& store_;
  const BuildOptions& options_;
  store::CallOptions call_;
  EntrySorter sorter_;
  std::atomic<uint64_t> entries_{0};
  base::Mutex mutex_;
  base::CondVar changed_;
  std::vector<std::string> waiting_ ABSL_GUARDED_BY(mutex_);
  size_t busy_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::shared_ptr<const Index>> BuildIndex(store::Store& store, base::UniqueFd file,
                                                        const IndexIdentity& identity,
                                                        const BuildOptions& options) {
  Lister lister(store, options);
  RETURN_IF_ERROR(lister.Run());
  IndexWriter writer(std::move(file));
  RETURN_IF_ERROR(lister.sorter().WriteTo(&writer.records()));
  return writer.Finish(identity);
}

}  // namespace millrace::index
