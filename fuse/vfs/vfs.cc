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

// A handle is, from its lowest bit on: the mode, 31 bits of its slot in the ledger, and half of the
// OPEN request's number, by which a RELEASE that comes again is told from one of the slot's next.
uint64_t PackHandle(uint64_t number, OpenMode mode) {
  return number << 1 | (mode == OpenMode::kPassthrough ? 1 : 0);
}
uint64_t PackHandle(Ledger::Slot slot, uint64_t unique, OpenMode mode) {
  return PackHandle(unique << 31 | slot, mode);
}
Ledger::Slot SlotOf(uint64_t handle) { return static_cast<uint32_t>(handle) >> 1; }
uint32_t UniqueOf(uint64_t handle) { return static_cast<uint32_t>(handle >> 32); }
OpenMode ModeOf(uint64_t handle) {
  return (handle & 1) != 0 ? OpenMode::kPassthrough : OpenMode::kCached;
}

Profile FirstProfile(const VfsOptions& options) {
  const Profile saved = options.ledger == nullptr ? Profile::kAuto : options.ledger->profile();
  return saved == Profile::kAuto ? options.profile : saved;
}

// Below this look-ahead fetches a file whole, with one GET.
constexpr uint64_t kSmallFile = fetch::Object::kWholeMax;
// Ahead of a stream that a worker answers at once: enough for 25 Gbit/s over 5 ms. Memory that the
// processor has not forgotten saves a fifth of the time of a read.
constexpr uint64_t kNearWindowMax = 16 << 20;
// Who reads a smaller one often does so a few KiB at a time.
constexpr uint64_t kUnkeptDirectMin = 16 << 20;

}  // namespace

Vfs::Vfs(VfsOptions options, Tree* tree, std::vector<store::OpenedSource> sources,
         fetch::Shared* shared)
    : options_(options),
      tree_(tree),
      sources_(std::move(sources)),
      shared_(shared),
      profile_(FirstProfile(options)),
      files_(options.idle_files_max),
      directory_handles_(options.ledger == nullptr ? 0 : options.ledger->generation()),
      look_ahead_({}, tree, [this](const FileRef& ref, std::function<void()> done) {
        return FetchSibling(ref, std::move(done));
      }) {
  if (options_.ledger == nullptr) return;
  options_.ledger->SetProfile(profile());
  if (options_.ledger->restored()) Restore();
}

Vfs::~Vfs() = default;

void Vfs::Restore() {
  absl::flat_hash_map<NodeId, File::Restored> restored;
  options_.ledger->ForEachHandle([&](Ledger::Slot, const Ledger::Handle& handle) {
    File::Restored& file = restored[handle.node];
    ++(handle.passthrough ? file.opens_passthrough : file.opens_cached);
  });
  options_.ledger->ForEachBacking([&](Ledger::Slot slot, uint64_t node, int backing_id) {
    File::Restored& file = restored[node];
    file.backing_id = backing_id;
    file.backing_slot = slot;
  });
  for (auto& [node, state] : restored) {
    const absl::StatusOr<FileRef> ref = tree_->File(node);
    if (state.backing_id != 0 && (!ref.ok() || options_.backing == nullptr)) {
      // Of a node that the kernel has forgotten.
      options_.ledger->RemoveBacking(state.backing_slot);
      if (options_.backing != nullptr) options_.backing->Close(node, state.backing_id);
      state.backing_id = 0;
    }
    if (!ref.ok()) continue;
    const auto unused = [&](File& file) {
      return state.backing_id != 0 && !file.IsOpen() && !file.KnownComplete();
    };
    // The cache may have dropped it meanwhile: its space is given back.
    if (unused(*FileOf(*ref, state))) files_.Drop(node);
  }
}

void Vfs::SetProfile(Profile profile) {
  std::vector<WaitingOpen> waiting;
  // Before the kernel can know of it.
  if (options_.ledger != nullptr) options_.ledger->SetProfile(profile);
  {
    base::MutexLock lock(&profile_mutex_);
    profile_.store(profile, std::memory_order_release);
    waiting.swap(waiting_opens_);
  }
  for (WaitingOpen& open : waiting) AnswerOpen(open.node, open.request, std::move(open.done));
}

void Vfs::Detach() {
  if (options_.ledger != nullptr) options_.ledger->Detach();
}

std::shared_ptr<fetch::Object> Vfs::ObjectOf(const FileRef& ref) {
  tier::FileKey key{sources_[ref.source].source.identity, ref.path, ref.version, ref.size};
  return std::make_shared<fetch::Object>(std::move(key), sources_[ref.source].store, shared_);
}

std::shared_ptr<File> Vfs::FileOf(const FileRef& ref, const File::Restored& restored) {
  if (std::shared_ptr<File> file = files_.Find(ref.id)) return file;
  return files_.Insert(ref.id, std::make_shared<File>(ref, ObjectOf(ref), options_.backing,
                                                      options_.ledger, restored));
}

absl::StatusOr<std::shared_ptr<File>> Vfs::FileOf(NodeId node) {
  if (std::shared_ptr<File> file = files_.Find(node)) return file;
  ASSIGN_OR_RETURN(const FileRef ref, tree_->File(node));
  return FileOf(ref);
}

void Vfs::Open(NodeId node, OpenRequest request, OpenDone done) {
  if (profile() == Profile::kAuto) {
    base::MutexLock lock(&profile_mutex_);
    if (profile() == Profile::kAuto) {
      waiting_opens_.push_back({node, request, std::move(done)});
      return;
    }
  }
  AnswerOpen(node, request, std::move(done));
}

std::optional<Vfs::OpenReply> Vfs::OpenedBefore(File& file, OpenRequest request) {
  if (!request.resent || options_.ledger == nullptr) return std::nullopt;
  const auto [slot, handle] = options_.ledger->FindHandle(file.ref().id, request.unique);
  if (slot == 0) return std::nullopt;
  OpenReply reply;
  reply.mode = handle.passthrough ? OpenMode::kPassthrough : OpenMode::kCached;
  reply.handle = PackHandle(slot, request.unique, reply.mode);
  if (reply.mode == OpenMode::kPassthrough) reply.backing_id = file.backing_id();
  return reply;
}

void Vfs::AnswerOpen(NodeId node, OpenRequest request, OpenDone done) {
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
  if (std::optional<OpenReply> before = OpenedBefore(**file, request)) {
    std::move(done)(*before);
    return;
  }
  const File::Opened opened = (*file)->Open(PageCacheFor(**file));
  OpenReply reply;
  reply.mode = opened.mode;
  if (options_.ledger == nullptr) {
    reply.handle = PackHandle(next_handle_.fetch_add(1, std::memory_order_relaxed), opened.mode);
  } else {
    const bool passthrough = opened.mode == OpenMode::kPassthrough;
    const Ledger::Slot slot = options_.ledger->AddHandle(
        {.node = node, .passthrough = passthrough, .unique = request.unique});
    reply.handle = PackHandle(slot, request.unique, opened.mode);
  }
  reply.backing_id = opened.backing_id;
  if (opened.mode == OpenMode::kPassthrough) {
    opens_passthrough_.fetch_add(1, std::memory_order_relaxed);
    const FileRef& ref = (*file)->ref();
    if (options_.observer != nullptr) {
      options_.observer->OnPassthroughOpen(ref.source, (*file)->object().origin(), ref.size);
    }
  } else {
    opens_cached_.fetch_add(1, std::memory_order_relaxed);
  }
  std::move(done)(reply);
}

File::PageCache Vfs::PageCacheFor(const File& file) const {
  if (!options_.direct || file.ref().size <= kSmallFile) return File::PageCache::kUsed;
  if (file.object().InMemoryTier()) return File::PageCache::kSecond;
  const bool unkept = !shared_->keeps_read && file.ref().size >= kUnkeptDirectMin;
  return unkept ? File::PageCache::kOnReturn : File::PageCache::kUsed;
}

void Vfs::Release(NodeId node, uint64_t handle) {
  const std::shared_ptr<File> file = files_.Find(node);
  const bool known = options_.ledger == nullptr ||
                     options_.ledger->RemoveHandle(SlotOf(handle), node, UniqueOf(handle));
  if (file == nullptr || !known) return;
  // What the last reader did not wait for is not fetched to its end.
  if (!file->Close(ModeOf(handle), handle) || file->KnownComplete()) return;
  file->object().CancelPrefetch();
  // Registered by a predecessor and gone from the cache since: its space is given back.
  if (file->backing_id() != 0) files_.Drop(node);
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
  // Without OPEN, a file's beginning is where a reader shows that it comes.
  if (offset == 0 && profile() == Profile::kSmallFiles) file->object().LookForComplete();
  const bool complete = file->KnownComplete();
  const uint64_t mark = file->object().Mark();
  File::Outlook outlook;
  if (!complete) outlook = OnRead(*file, handle, offset, size);
  fetch::ReadCallback answer = [this, start, source = file->ref().source, done = std::move(done)](
                                   absl::StatusOr<fetch::ReadResult> result) mutable {
    if (result.ok() && options_.observer != nullptr) {
      options_.observer->OnRead(source, result->origin, result->size,
                                base::RealClock()->Monotonic() - start);
    }
    std::move(done)(std::move(result));
  };
  if (outlook.random) {
    file->object().ReadScattered(offset, size, std::move(answer));
  } else {
    file->object().Read(offset, size, std::move(answer));
  }
  // After the read's own fetch was started: that one goes first.
  for (const Range& range : outlook.ahead) {
    file->object().ReadAhead(range.offset, range.size, mark);
  }
  const FileRef& ref = file->ref();
  if (!complete && ref.size <= kSmallFile && options_.look_ahead && file->FirstMiss()) {
    look_ahead_.OnMiss(tree_->Parent(ref.id), ref.id);
  }
}

absl::optional<Vfs::Hit> Vfs::FindHit(NodeId node, uint64_t offset, uint64_t size) {
  const absl::StatusOr<std::shared_ptr<File>> found = FileOf(node);
  if (!found.ok()) return absl::nullopt;
  File& file = **found;
  if (offset >= file.ref().size || !file.KnownComplete()) return absl::nullopt;
  std::shared_ptr<const tier::OpenData> data = file.object().OpenHit();
  if (data == nullptr) return absl::nullopt;
  return Hit{std::move(data), std::min(size, file.ref().size - offset), file.ref().source,
             file.object().origin()};
}

void Vfs::CountHit(const Hit& hit, absl::Duration duration) {
  if (options_.observer == nullptr) return;
  options_.observer->OnRead(hit.source, hit.origin, hit.size, duration);
}

File::Outlook Vfs::OnRead(File& file, uint64_t handle, uint64_t offset, uint64_t size) {
  if (file.ref().size <= kSmallFile) return {};
  // What the cache refuses has to stay in memory until it is read.
  const uint64_t budget = shared_->pool->budget_blocks() * fetch::kBlockSize;
  uint64_t window_max = std::min(ReadPattern::kWindowMax, budget / 2);
  if (file.object().Uncached()) {
    const bool near = file.object().fetched_from() == fetch::Origin::kRemote;
    window_max = near ? std::min(kNearWindowMax, budget / 8) : budget / 8;
  }
  return file.OnRead(handle, offset, size, window_max);
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

absl::StatusOr<uint64_t> Vfs::OpenDirectory(NodeId node) {
  ASSIGN_OR_RETURN(std::shared_ptr<DirectoryHandle> opened, tree_->OpenDirectory(node));
  return directory_handles_.Add(std::move(opened));
}

void Vfs::ReadDirectory(NodeId node, uint64_t handle, uint64_t offset, bool plus,
                        Tree::EntrySink sink, Tree::ReadDone done) {
  const absl::StatusOr<std::shared_ptr<DirectoryHandle>> found =
      directory_handles_.Find(tree_, node, handle);
  if (!found.ok()) return std::move(done)(found.status());
  tree_->ReadDirectory(*found, offset, plus, std::move(sink), std::move(done));
}

void Vfs::ReleaseDirectory(uint64_t handle) { directory_handles_.Remove(handle); }

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
