#include "fuse/vfs/vfs.h"

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace millrace::vfs {
namespace {

constexpr char kXattrVersion[] = "user.millrace.version";
constexpr char kXattrSource[] = "user.millrace.source";
constexpr char kXattrCached[] = "user.millrace.cached";

// Below this look-ahead fetches a file whole, with one GET.
constexpr uint64_t kSmallFile = fetch::Object::kWholeMax;

}  // namespace

Vfs::Vfs(VfsOptions options, Tree* tree, std::vector<store::OpenedSource> sources,
         fetch::Shared* shared)
    : options_(options),
      tree_(tree),
      sources_(std::move(sources)),
      shared_(shared),
      profile_(options.profile),
      files_(options.idle_files_max),
      look_ahead_({}, tree, [this](const FileRef& ref, std::function<void()> done) {
        return FetchSibling(ref, std::move(done));
      }) {}

Vfs::~Vfs() = default;

void Vfs::SetProfile(Profile profile) {
  std::vector<std::pair<NodeId, OpenDone>> waiting;
  {
    base::MutexLock lock(&profile_mutex_);
    profile_.store(profile, std::memory_order_release);
    waiting.swap(waiting_opens_);
  }
  for (auto& [node, done] : waiting) AnswerOpen(node, std::move(done));
}

std::shared_ptr<fetch::Object> Vfs::ObjectOf(const FileRef& ref) {
  tier::FileKey key{sources_[ref.source].source.identity, ref.path, ref.version, ref.size};
  return std::make_shared<fetch::Object>(std::move(key), sources_[ref.source].store, shared_);
}

std::shared_ptr<File> Vfs::FileOf(const FileRef& ref) {
  if (std::shared_ptr<File> file = files_.Find(ref.id)) return file;
  return files_.Insert(ref.id, std::make_shared<File>(ref, ObjectOf(ref), options_.backing));
}

absl::StatusOr<std::shared_ptr<File>> Vfs::FileOf(NodeId node) {
  if (std::shared_ptr<File> file = files_.Find(node)) return file;
  ASSIGN_OR_RETURN(const FileRef ref, tree_->File(node));
  return FileOf(ref);
}

void Vfs::Open(NodeId node, OpenDone done) {
  if (profile() == Profile::kAuto) {
    base::MutexLock lock(&profile_mutex_);
    if (profile() == Profile::kAuto) {
      waiting_opens_.emplace_back(node, std::move(done));
      return;
    }
  }
  AnswerOpen(node, std::move(done));
}

void Vfs::AnswerOpen(NodeId node, OpenDone done) {
  if (profile() == Profile::kSmallFiles) {
    OpenReply reply;
    reply.without_open = true;
    std::move(done)(reply);
    return;
  }
  const absl::StatusOr<std::shared_ptr<File>> file = FileOf(node);
  if (!file.ok()) {
    std::move(done)(file.status());
    return;
  }
  const File::Opened opened = (*file)->Open();
  OpenReply reply;
  reply.handle = next_handle_.fetch_add(1, std::memory_order_relaxed);
  reply.mode = opened.mode;
  reply.backing_id = opened.backing_id;
  if (opened.mode == OpenMode::kPassthrough) {
    opens_passthrough_.fetch_add(1, std::memory_order_relaxed);
    const FileRef& ref = (*file)->ref();
    if (options_.observer != nullptr) options_.observer->OnPassthroughOpen(ref.source, ref.size);
  } else {
    opens_cached_.fetch_add(1, std::memory_order_relaxed);
  }
  std::move(done)(reply);
}

void Vfs::Release(NodeId node, uint64_t handle, OpenMode mode) {
  const std::shared_ptr<File> file = files_.Find(node);
  if (file == nullptr) return;
  // What the last reader did not wait for is not fetched to its end.
  if (file->Close(mode, handle) && !file->KnownComplete()) file->object().CancelPrefetch();
}

void Vfs::Read(NodeId node, uint64_t handle, uint64_t offset, uint64_t size,
               fetch::ReadCallback done) {
  absl::StatusOr<std::shared_ptr<File>> found = FileOf(node);
  if (!found.ok()) {
    std::move(done)(found.status());
    return;
  }
  const std::shared_ptr<File> file = *std::move(found);
  const absl::Duration start = base::RealClock()->Monotonic();
  const bool complete = file->KnownComplete();
  file->object().Read(offset, size,
                      [this, start, source = file->ref().source,
                       done = std::move(done)](absl::StatusOr<fetch::ReadResult> result) mutable {
                        if (result.ok() && options_.observer != nullptr) {
                          options_.observer->OnRead(source, result->origin, result->size,
                                                    base::RealClock()->Monotonic() - start);
                        }
                        std::move(done)(std::move(result));
                      });
  // After the read's own fetch was started: that one goes first.
  if (!complete) ReadAhead(*file, handle, offset, size);
}

void Vfs::ReadAhead(File& file, uint64_t handle, uint64_t offset, uint64_t size) {
  const FileRef& ref = file.ref();
  if (ref.size <= kSmallFile) {
    if (options_.look_ahead && file.FirstMiss()) look_ahead_.OnMiss(tree_->Parent(ref.id), ref.id);
    return;
  }
  // What the cache refuses has to stay in memory until it is read.
  const uint64_t budget = shared_->pool->budget_blocks() * fetch::kBlockSize;
  const uint64_t window_max =
      file.object().Uncached() ? budget / 8 : std::min(ReadPattern::kWindowMax, budget / 2);
  for (const Range& range : file.OnRead(handle, offset, size, window_max)) {
    file.object().Prefetch(range.offset, range.size, fetch::Priority::kReadAhead);
  }
}

bool Vfs::FetchSibling(const FileRef& ref, std::function<void()> done) {
  if (ref.size == 0 || ref.size > kSmallFile) return false;
  const std::shared_ptr<File> file = FileOf(ref);
  if (file->KnownComplete() || file->object().Uncached()) return false;
  if (shared_->cache->RoomBytes() < ref.size) return false;
  // The application's own first read of it is no miss any more, but it is still a read of this
  // directory that look-ahead may follow: FirstMiss stays untouched.
  file->object().Prefetch(0, ref.size, fetch::Priority::kLookAhead,
                          [done = std::move(done)](const absl::Status&) { done(); });
  return true;
}

void Vfs::Forget(NodeId node, uint64_t count) { tree_->Forget(node, count); }

absl::StatusOr<std::string> Vfs::GetXattr(NodeId node, absl::string_view name) {
  if (name != kXattrVersion && name != kXattrSource && name != kXattrCached) {
    return base::WithErrno(absl::NotFoundError("no such attribute"), ENODATA);
  }
  const absl::StatusOr<FileRef> ref = tree_->File(node);
  if (!ref.ok()) return base::WithErrno(absl::NotFoundError("no such attribute"), ENODATA);
  if (name == kXattrVersion) return ref->version;
  if (name == kXattrSource) return sources_[ref->source].source.url;
  const std::shared_ptr<File> file = FileOf(*ref);
  if (ref->size == 0 || file->KnownComplete()) return std::string("complete");
  const uint64_t present = file->object().PresentBytes();
  if (present == 0) return std::string("none");
  return absl::StrCat("partial ", present, "/", ref->size);
}

std::vector<std::string> Vfs::ListXattrs(NodeId node) {
  if (!tree_->File(node).ok()) return {};
  return {kXattrVersion, kXattrSource, kXattrCached};
}

absl::StatusOr<uint64_t> Vfs::Evict(absl::string_view path) {
  ASSIGN_OR_RETURN(const std::vector<SourcePath> parts, tree_->Resolve(path));
  uint64_t freed = 0;
  for (const SourcePath& part : parts) {
    const std::string& source = sources_[part.source].source.identity;
    freed += shared_->cache->Evict(source, part.path);
  }
  // Files that nobody has open let go of the evicted data, and of their backing ids.
  files_.DropIf([](const File&) { return true; });
  return freed;
}

void Vfs::DropEvicted() {
  files_.DropIf([](const File& file) { return file.object().Evicted(); });
}

Vfs::Stats Vfs::stats() const {
  return {opens_passthrough_.load(std::memory_order_relaxed),
          opens_cached_.load(std::memory_order_relaxed)};
}

}  // namespace millrace::vfs
