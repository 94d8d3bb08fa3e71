#include "cache/worker/files.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache/store/store_decorator.h"
#include "common/base/status_macros.h"

namespace millrace::worker {
namespace {

// A guest's fetch hands on what an owned one brings: a quarter of the memory is enough.
constexpr uint64_t kGuestMemoryShare = 4;
// How often who waits for a block looks whether it is still wanted.
constexpr absl::Duration kCancelTick = absl::Milliseconds(200);

tier::FileKey KeyOf(absl::string_view source, const proto::FileName& file) {
  return {std::string(source), file.path, file.version, file.size};
}

std::string EntryName(size_t source, absl::string_view path) {
  return absl::StrCat(source, "/", path);
}

// The blocks of a range in order, for one thread that waits for each.
class BlockReader {
 public:
  BlockReader(std::shared_ptr<fetch::Object> object, fetch::Priority priority)
      : object_(std::move(object)), priority_(priority) {}

  absl::Status Read(uint64_t offset, uint64_t length, store::BytesFrom* from, store::BodySink sink,
                    const std::atomic<bool>* cancelled) {
    object_->Prefetch(offset, length, priority_, nullptr, given_up_);
    for (const uint64_t end = offset + length; offset < end;) {
      const uint64_t index = offset / fetch::kBlockSize;
      absl::StatusOr<fetch::BlockRef> block = Await(index, cancelled);
      // Somebody else gave up the fetch that this reader had joined an instant before.
      for (int tries = 0; absl::IsCancelled(block.status()) && !Cancelled(cancelled) && tries < 3;
           ++tries) {
        block = Await(index, cancelled);
      }
      if (!block.ok()) {
        *given_up_ = true;
        object_->CancelPrefetch();
        return std::move(block).status();
      }
      const uint64_t skip = offset % fetch::kBlockSize;
      const absl::string_view bytes = (*block)->bytes().substr(skip, end - offset);
      if (from != nullptr && (*block)->origin == fetch::Origin::kStore) {
        *from = store::BytesFrom::kStore;
      }
      if (bytes.empty() || !sink(bytes)) {
        return absl::CancelledError("the reader stopped the transfer");
      }
      offset += bytes.size();
    }
    return absl::OkStatus();
  }

 private:
  struct Slot {
    base::Mutex mutex;
    base::CondVar changed;
    bool done ABSL_GUARDED_BY(mutex) = false;
    absl::StatusOr<fetch::BlockRef> block ABSL_GUARDED_BY(mutex) = absl::UnknownError("");
  };

  static bool Cancelled(const std::atomic<bool>* cancelled) {
    return cancelled != nullptr && cancelled->load(std::memory_order_relaxed);
  }

  absl::StatusOr<fetch::BlockRef> Await(uint64_t index, const std::atomic<bool>* cancelled) {
    const auto slot = std::make_shared<Slot>();
    object_->ReadBlock({.index = index, .priority = priority_, .given_up = given_up_},
                       [slot](absl::StatusOr<fetch::BlockRef> block) {
                         base::MutexLock lock(&slot->mutex);
                         slot->block = std::move(block);
                         slot->done = true;
                         slot->changed.NotifyAll();
                       });
    base::MutexLock lock(&slot->mutex);
    while (!slot->done) {
      slot->changed.WaitFor(&slot->mutex, kCancelTick);
      if (!slot->done && Cancelled(cancelled)) return absl::CancelledError("cancelled");
    }
    return std::move(slot->block);
  }

  const std::shared_ptr<fetch::Object> object_;
  const fetch::Priority priority_;
  const std::shared_ptr<std::atomic<bool>> given_up_ = std::make_shared<std::atomic<bool>>(false);
};

}  // namespace

std::string GuestSource(absl::string_view identity) { return absl::StrCat("guest:", identity); }

FetchSpace::FetchSpace(uint64_t budget_bytes, size_t threads, tier::TieredCache* cache,
                       base::Clock* clock)
    : pool_(budget_bytes), memory_(&pool_) {
  queue_ =
      std::make_unique<fetch::FetchQueue>(threads, &pool_, [this] { return memory_.DropOldest(); });
  shared_.cache = cache;
  shared_.pool = &pool_;
  shared_.queue = queue_.get();
  shared_.memory = &memory_;
  shared_.keeps_unread = false;
  shared_.clock = clock;
}

// A range of a file that is on its way from the store.
struct Files::OnItsWay {
  const Source* source;
  std::string path;
  uint64_t offset;
  uint64_t end;
};

class Files::Watch {
 public:
  Watch(Files* files, const Source* source, std::string path, uint64_t offset, uint64_t end)
      : files_(files), source_(source), path_(std::move(path)), offset_(offset), end_(end) {
    base::MutexLock lock(&files_->way_mutex_);
    files_->watches_.push_back(this);
  }
  ~Watch() {
    base::MutexLock lock(&files_->way_mutex_);
    files_->watches_.erase(std::find(files_->watches_.begin(), files_->watches_.end(), this));
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  bool Covers(const OnItsWay& way) const {
    return way.source == source_ && way.path == path_ && way.offset < end_ && way.end > offset_;
  }
  void Count(uint64_t bytes) const { bytes_.fetch_add(bytes, std::memory_order_relaxed); }
  uint64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

 private:
  Files* const files_;
  const Source* const source_;
  const std::string path_;
  const uint64_t offset_;
  const uint64_t end_;
  mutable std::atomic<uint64_t> bytes_{0};
};

// Around the real store, below what asks other workers first: knows what is on its way from it.
class Files::StorePhase final : public store::StoreDecorator {
 public:
  StorePhase(Files* files, const Source* source, std::shared_ptr<store::Store> store)
      : StoreDecorator(std::move(store)), files_(files), source_(source) {}

  absl::Status Get(const store::GetRequest& request, store::BodySink sink,
                   const store::CallOptions& call) override {
    const OnItsWay way = {source_, request.path, request.offset, request.offset + request.length};
    {
      base::MutexLock lock(&files_->way_mutex_);
      files_->from_store_.push_back(&way);
    }
    uint64_t bytes = 0;
    const absl::Status status = store_->Get(
        request,
        [&](absl::string_view piece) {
          bytes += piece.size();
          return sink(piece);
        },
        call);
    base::MutexLock lock(&files_->way_mutex_);
    files_->from_store_.erase(
        std::find(files_->from_store_.begin(), files_->from_store_.end(), &way));
    for (const Watch* watch : files_->watches_) {
      if (watch->Covers(way)) watch->Count(bytes);
    }
    return status;
  }

 private:
  Files* const files_;
  const Source* const source_;
};

// Above all of them: tells what has come.
class Files::OwnedStore final : public store::StoreDecorator {
 public:
  OwnedStore(Files* files, const Source* source, std::shared_ptr<store::Store> store)
      : StoreDecorator(std::move(store)), files_(files), source_(source) {}

  absl::Status Get(const store::GetRequest& request, store::BodySink sink,
                   const store::CallOptions& call) override {
    RETURN_IF_ERROR(store_->Get(request, sink, call));
    if (files_->options_.fetched != nullptr && request.file_size > 0) {
      files_->options_.fetched(
          {source_->identity, request.path, request.version, request.file_size}, request.offset,
          request.length);
    }
    return absl::OkStatus();
  }

 private:
  Files* const files_;
  const Source* const source_;
};

// What a guest is to take for the store: this worker's owned space, which asks the real one. So a
// range is fetched once, whoever wants it here.
class Files::OwnBytes final : public store::StoreDecorator {
 public:
  OwnBytes(Files* files, size_t source, std::shared_ptr<store::Store> store)
      : StoreDecorator(std::move(store)), files_(files), source_(source) {}

  absl::Status Get(const store::GetRequest& request, store::BodySink sink,
                   const store::CallOptions& call) override {
    if (request.file_size == 0 || request.version.empty()) {
      return store_->Get(request, sink, call);
    }
    const proto::FileName file = {files_->sources_[source_]->identity, request.path,
                                  request.version, request.file_size};
    ASSIGN_OR_RETURN(std::shared_ptr<fetch::Object> object,
                     files_->FindObject(source_, /*guest=*/false, file));
    if (request.from != nullptr) *request.from = store::BytesFrom::kWorker;
    return BlockReader(std::move(object), static_cast<fetch::Priority>(request.urgency))
        .Read(request.offset, request.length, request.from, sink, call.cancelled);
  }

 private:
  Files* const files_;
  const size_t source_;
};

Files::Files(const Options& options, tier::TieredCache* cache, const Ranks* ranks, pool::Pool* pool,
             std::vector<store::OpenedSource> sources)
    : options_(options),
      cache_(cache),
      ranks_(ranks),
      owned_(options.buffer_bytes - options.buffer_bytes / kGuestMemoryShare, options.connections,
             cache, options.clock),
      guest_(options.buffer_bytes / kGuestMemoryShare, options.connections, cache, options.clock) {
  for (store::OpenedSource& opened : sources) {
    auto source = std::make_unique<Source>();
    source->identity = opened.source.identity;
    source->url = opened.source.url;
    source->store = opened.store;
    const size_t index = sources_.size();
    std::shared_ptr<store::Store> owned =
        std::make_shared<StorePhase>(this, source.get(), opened.store);
    std::shared_ptr<store::Store> guest = std::make_shared<OwnBytes>(this, index, opened.store);
    if (pool != nullptr) {
      owned = pool->WrapForOwner(source->identity, std::move(owned));
      guest = pool->Wrap(source->identity, std::move(guest));
    }
    source->owned = std::make_shared<OwnedStore>(this, source.get(), std::move(owned));
    source->guest = std::move(guest);
    sources_.push_back(std::move(source));
  }
}

Files::~Files() { Stop(); }

void Files::Stop() {
  // Guests wait for owned fetches.
  owned_.Stop();
  guest_.Stop();
  std::deque<std::shared_ptr<fetch::Object>> objects;
  base::MutexLock lock(&mutex_);
  objects.swap(recent_);
}

const Files::Source* Files::FindSource(absl::string_view identity) const {
  for (const auto& source : sources_) {
    if (source->identity == identity) return source.get();
  }
  return nullptr;
}

// --- Finding ------------------------------------------------------------------------------------

absl::StatusOr<Files::Found> Files::Find(const proto::FileName& file, proto::Role role,
                                         uint64_t offset) {
  size_t source = 0;
  while (source < sources_.size() && sources_[source]->identity != file.source) ++source;
  if (source == sources_.size()) {
    return absl::NotFoundError("the worker was not started with this source");
  }
  if (file.version.empty()) return absl::InvalidArgumentError("a file without a version");
  if (role == proto::Role::kCached) return FindCached(source, file, offset);
  const bool guest = role == proto::Role::kGuest && !ranks_->OwnsAll(KeyOf(file.source, file));
  ASSIGN_OR_RETURN(std::shared_ptr<fetch::Object> object, FindObject(source, guest, file));
  return Found{std::move(object), source, true};
}

absl::StatusOr<Files::Found> Files::FindCached(size_t source, const proto::FileName& file,
                                               uint64_t offset) {
  const uint64_t block = offset / tier::kBlockSize;
  for (const bool guest : {false, true}) {
    const std::string name = guest ? GuestSource(file.source) : file.source;
    const std::shared_ptr<tier::CachedFile> cached = cache_->Find(KeyOf(name, file));
    if (cached == nullptr || !cached->HasBlock(block)) continue;
    ASSIGN_OR_RETURN(std::shared_ptr<fetch::Object> object, FindObject(source, guest, file));
    return Found{std::move(object), source, false};
  }
  if (std::shared_ptr<fetch::Object> coming = Living(source, false, file)) {
    return Found{std::move(coming), source, false};
  }
  return absl::NotFoundError("not here");
}

std::shared_ptr<fetch::Object> Files::Living(size_t source, bool guest,
                                             const proto::FileName& file) {
  base::MutexLock lock(&mutex_);
  const auto found = spaces_[guest ? 1 : 0].entries.find(EntryName(source, file.path));
  if (found == spaces_[guest ? 1 : 0].entries.end() || found->second.version != file.version ||
      found->second.size != file.size) {
    return nullptr;
  }
  return found->second.object.lock();
}

absl::StatusOr<std::shared_ptr<fetch::Object>> Files::FindObject(size_t source, bool guest,
                                                                 const proto::FileName& file) {
  const std::string name = EntryName(source, file.path);
  {
    bool check = false;
    {
      base::MutexLock lock(&mutex_);
      Space& space = spaces_[guest ? 1 : 0];
      const auto found = space.entries.find(name);
      if (found != space.entries.end()) {
        const Entry& entry = found->second;
        if (entry.version == file.version && entry.size == file.size) {
          if (std::shared_ptr<fetch::Object> object = entry.object.lock()) return object;
        } else {
          if (options_.clock->Monotonic() - entry.checked < kStatKept) {
            return absl::FailedPreconditionError("the store has another version");
          }
          // A client whose listing is old must not push out what the others read.
          check = true;
        }
      }
    }
    if (check) RETURN_IF_ERROR(CheckVersion(source, file));
  }
  const Source& served = *sources_[source];
  fetch::Shared* const shared = (guest ? guest_ : owned_).shared();
  auto object =
      std::make_shared<fetch::Object>(KeyOf(guest ? GuestSource(file.source) : file.source, file),
                                      guest ? served.guest : served.owned, shared);
  std::shared_ptr<fetch::Object> dropped;
  base::MutexLock lock(&mutex_);
  Space& space = spaces_[guest ? 1 : 0];
  Entry& entry = space.entries[name];
  if (entry.version == file.version && entry.size == file.size) {
    if (std::shared_ptr<fetch::Object> other = entry.object.lock()) return other;
  }
  const absl::Duration checked =
      entry.version.empty() ? -absl::InfiniteDuration() : options_.clock->Monotonic();
  entry = Entry{file.version, file.size, object, checked};
  if (space.entries.size() > kEntriesMax) Sweep(&space);
  recent_.push_back(object);
  if (recent_.size() > kRecentMax) {
    dropped = std::move(recent_.front());
    recent_.pop_front();
  }
  return object;
}

absl::Status Files::CheckVersion(size_t source, const proto::FileName& file) {
  store::CallOptions call;
  call.timeout = kStatTimeout;
  const absl::StatusOr<store::Entry> entry = sources_[source]->store->Stat(file.path, call);
  if (entry.ok() && entry->version == file.version && entry->size == file.size) {
    return absl::OkStatus();
  }
  if (entry.ok() || absl::IsNotFound(entry.status())) {
    base::MutexLock lock(&mutex_);
    for (Space& space : spaces_) {
      const auto found = space.entries.find(EntryName(source, file.path));
      if (found == space.entries.end() || !entry.ok()) continue;
      if (found->second.version == entry->version) {
        found->second.checked = options_.clock->Monotonic();
      }
    }
    return absl::FailedPreconditionError("the store has another version");
  }
  return entry.status();
}

void Files::Sweep(Space* space) {
  absl::erase_if(space->entries, [](const auto& entry) { return entry.second.object.expired(); });
}

std::shared_ptr<tier::CachedFile> Files::FindComplete(const proto::FileName& file) {
  if (FindSource(file.source) == nullptr) return nullptr;
  for (const std::string& name : {file.source, GuestSource(file.source)}) {
    std::shared_ptr<tier::CachedFile> found = cache_->Find(KeyOf(name, file));
    if (found != nullptr && found->complete()) return found;
  }
  return nullptr;
}

void Files::Failed(const Found& found, const absl::Status& status) {
  // Who only asked for what is here learns nothing of the store, and must not take the file from
  // those whose fetch is about to fill it.
  if (!found.fetch) return;
  if (!absl::IsFailedPrecondition(status) && !absl::IsNotFound(status)) return;
  const tier::FileKey& key = found.object->key();
  cache_->ForgetEmpty(key);
  std::shared_ptr<fetch::Object> dropped;
  base::MutexLock lock(&mutex_);
  for (Space& space : spaces_) {
    const auto entry = space.entries.find(EntryName(found.source, key.path));
    if (entry == space.entries.end()) continue;
    if (entry->second.object.lock() == found.object) space.entries.erase(entry);
  }
  const auto kept = std::find(recent_.begin(), recent_.end(), found.object);
  if (kept == recent_.end()) return;
  dropped = std::move(*kept);
  recent_.erase(kept);
}

// --- What is on its way -------------------------------------------------------------------------

bool Files::MayWait(absl::string_view asker, const Found& found, uint64_t offset) const {
  // Edges lead from a smaller id to a larger one, or to a fetch that waits for nobody: no circle.
  if (asker < ranks_->options().id) return true;
  const Source* const source = sources_[found.source].get();
  base::MutexLock lock(&way_mutex_);
  return std::any_of(from_store_.begin(), from_store_.end(), [&](const OnItsWay* way) {
    return way->source == source && way->path == found.object->key().path &&
           way->offset <= offset && offset < way->end;
  });
}

std::shared_ptr<const Files::Watch> Files::WatchStore(const Found& found, uint64_t offset,
                                                      uint64_t length) {
  return std::make_shared<Watch>(this, sources_[found.source].get(), found.object->key().path,
                                 offset, offset + length);
}

uint64_t Files::FromStore(const Watch& watch) { return watch.bytes(); }

// --- The rest -----------------------------------------------------------------------------------

uint64_t Files::Evict(const Source& source, absl::string_view path) {
  const uint64_t freed =
      cache_->Evict(source.identity, path) + cache_->Evict(GuestSource(source.identity), path);
  // Objects that are only held in case hold what was dropped, and its space with it. They die
  // outside the lock.
  std::deque<std::shared_ptr<fetch::Object>> kept;
  std::deque<std::shared_ptr<fetch::Object>> dropped;
  base::MutexLock lock(&mutex_);
  for (std::shared_ptr<fetch::Object>& object : recent_) {
    (object->Evicted() ? dropped : kept).push_back(std::move(object));
  }
  recent_.swap(kept);
  return freed;
}

void Files::Trim() {
  owned_.Trim();
  guest_.Trim();
}

}  // namespace millrace::worker
