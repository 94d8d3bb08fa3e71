// What a worker serves: its sources, and their files in two spaces of one cache.
//
//   owned  files that are placed on this worker, under FileKey.source = the source's identity. What
//          is missing comes from other workers that have it, else from the store.
//   guest  what readers on this node read although others own it, under "guest:" + identity. What
//          is missing comes from its owners, whose own bytes this worker may be.
//
// A request of another worker or of a far client only ever reaches the owned space, and that only
// asks others for what they have already: no request goes round in circles. The spaces have
// buffers and fetch threads of their own, because a guest's fetch waits for an owned one.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/fetch/object.h"
#include "cache/pool/pool.h"
#include "cache/store/registry.h"
#include "cache/tier/tiered_cache.h"
#include "cache/worker/ranks.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "common/proto/data_protocol.h"

namespace millrace::worker {

// FileKey::source of guest files.
std::string GuestSource(absl::string_view identity);

// The buffers and fetch threads of one space.
class FetchSpace {
 public:
  FetchSpace(uint64_t budget_bytes, size_t threads, tier::TieredCache* cache, base::Clock* clock);
  ~FetchSpace() { Stop(); }
  void Stop() { queue_->Stop(); }
  void Trim() { pool_.Trim(); }
  fetch::Shared* shared() { return &shared_; }
  uint64_t used_bytes() const { return pool_.used_blocks() * fetch::kBlockSize; }

 private:
  fetch::BufferPool pool_;
  fetch::MemoryCache memory_;
  fetch::Shared shared_;
  std::unique_ptr<fetch::FetchQueue> queue_;
};

class Files {
 public:
  struct Options {
    uint64_t buffer_bytes = 0;  // Of both spaces together.
    size_t connections = 16;    // Fetches at once, of each space.
    base::Clock* clock = nullptr;
    // Told, from a fetch thread, of each range that came into the owned space. May be null.
    std::function<void(const tier::FileKey&, uint64_t offset, uint64_t length)> fetched;
  };
  // `cache`, `ranks` and `pool` must outlive it; `pool` is null for a worker on its own.
  Files(const Options& options, tier::TieredCache* cache, const Ranks* ranks, pool::Pool* pool,
        std::vector<store::OpenedSource> sources);
  ~Files();
  // Ends all fetches; what waits for them is told so.
  void Stop();

  struct Source {
    std::string identity;
    std::string url;
    std::shared_ptr<store::Store> store;  // The real one.
    std::shared_ptr<store::Store> owned;
    std::shared_ptr<store::Store> guest;
  };
  const std::vector<std::unique_ptr<Source>>& sources() const { return sources_; }
  // Null if there is none.
  const Source* FindSource(absl::string_view identity) const;

  // A file as one request sees it.
  struct Found {
    std::shared_ptr<fetch::Object> object;
    size_t source = 0;  // Index of sources().
    bool fetch = true;  // Else only what is here or on its way.
  };
  // NotFound: an unknown source, or, for kCached, nothing of the range's first block.
  // FailedPrecondition: the store has another version of it by now. May ask the store which
  // version there is, for up to kStatTimeout.
  absl::StatusOr<Found> Find(const proto::FileName& file, proto::Role role, uint64_t offset);
  // The file, if all of it is here, in either space.
  std::shared_ptr<tier::CachedFile> FindComplete(const proto::FileName& file);
  // A request for the file ended with an error: if it says that there is no such version, nothing
  // of it is kept.
  void Failed(const Found& found, const absl::Status& status);

  // Two workers may fetch the same extent, each asking the other for what is on its way there:
  // one of them must not wait. The fetch of this block may be waited for by `asker`, as it is on
  // its way from the store, or by its id's order.
  bool MayWait(absl::string_view asker, const Found& found, uint64_t offset) const;

  // Counts what comes from the store of a range, until it dies.
  class Watch;
  std::shared_ptr<const Watch> WatchStore(const Found& found, uint64_t offset, uint64_t length);
  static uint64_t FromStore(const Watch& watch);

  bool HasRoom(uint64_t bytes) const { return cache_->RoomBytes() >= bytes; }
  uint64_t Evict(const Source& source, absl::string_view path);
  tier::TieredCache& cache() const { return *cache_; }
  const Ranks& ranks() const { return *ranks_; }

  void Trim();
  uint64_t memory_used_bytes() const { return owned_.used_bytes() + guest_.used_bytes(); }

 private:
  static constexpr absl::Duration kStatTimeout = absl::Seconds(5);
  // How long the answer of a Stat is believed.
  static constexpr absl::Duration kStatKept = absl::Seconds(1);
  // Objects kept beyond those in use: what they remember of failures and blocks no cache took.
  static constexpr size_t kRecentMax = 128;
  static constexpr size_t kEntriesMax = 1 << 16;

  class OwnedStore;
  class StorePhase;
  class OwnBytes;
  struct OnItsWay;

  struct Entry {
    std::string version;
    uint64_t size = 0;
    std::weak_ptr<fetch::Object> object;
    absl::Duration checked = -absl::InfiniteDuration();  // When the store last said so.
  };
  struct Space {
    absl::flat_hash_map<std::string, Entry> entries;  // By source index and path.
  };

  absl::StatusOr<std::shared_ptr<fetch::Object>> FindObject(size_t source, bool guest,
                                                            const proto::FileName& file);
  // The object if it lives.
  std::shared_ptr<fetch::Object> Living(size_t source, bool guest, const proto::FileName& file);
  absl::StatusOr<Found> FindCached(size_t source, const proto::FileName& file, uint64_t offset);
  // OK if `file` is the version that the store has.
  absl::Status CheckVersion(size_t source, const proto::FileName& file);
  void Sweep(Space* space) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  tier::TieredCache* const cache_;
  const Ranks* const ranks_;
  std::vector<std::unique_ptr<Source>> sources_;
  FetchSpace owned_;
  FetchSpace guest_;

  mutable base::Mutex way_mutex_;
  std::vector<const OnItsWay*> from_store_ ABSL_GUARDED_BY(way_mutex_);
  std::vector<const Watch*> watches_ ABSL_GUARDED_BY(way_mutex_);

  base::Mutex mutex_;
  Space spaces_[2] ABSL_GUARDED_BY(mutex_);  // Owned, guest.
  std::deque<std::shared_ptr<fetch::Object>> recent_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::worker
