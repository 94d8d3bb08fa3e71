// A directory in use: its listing, who waits for it, and when it was used and refreshed. Kept
// apart from its node, since most directories of a large tree are never entered.
//
// Threads. Fields say what guards them. A Directory's mutex is a leaf but for the node table's:
// no store call and no callback runs under it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/base/mutex.h"
#include "fuse/vfs/listing.h"
#include "fuse/vfs/node_table.h"
#include "fuse/vfs/tree.h"

namespace millrace::vfs {

// Lookups that wait for one name.
struct NameWait {
  std::vector<Tree::LookupDone> done;
  bool stat_asked = false;  // One Stat per name and listing.
};

// A ReadDirectory that found nothing to give yet.
struct ReaderWait {
  std::shared_ptr<DirectoryHandle> handle;
  std::shared_ptr<Listing> listing;
  uint64_t offset = 0;
  bool plus = false;
  Tree::EntrySink sink;
  Tree::ReadDone done;
};

// In Directory::early: a predecessor told of two nodes of this name, and which one came last is not
// known. No name has this node.
inline constexpr NodeId kToldUnknown = kRootNode;

using RefreshDone = absl::AnyInvocable<void(absl::Status) &&>;

struct Directory {
  // Takes over a pin of `node`.
  Directory(std::shared_ptr<NodeTable> node_table, Node* node, size_t source_index,
            std::string path_in_source)
      : nodes(std::move(node_table)),
        node(node),
        source(source_index),
        path(std::move(path_in_source)) {}
  ~Directory() { nodes->Unpin(node); }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  // Constant after construction.
  const std::shared_ptr<NodeTable> nodes;
  Node* const node;
  const size_t source;
  const std::string path;        // Below the source's root.
  bool is_sources_root = false;  // The directory of the named sources: nothing to list.

  std::atomic<int64_t> last_used_ns = 0;  // By the tree's monotonic clock.

  // The use after which, idle again, the kernel was asked to ask again.
  std::atomic<int64_t> expired_after_ns = -1;

  base::Mutex mutex;
  // The one that serves: finished, or the first one while it arrives. Null before first use and
  // after a failure.
  std::shared_ptr<Listing> listing ABSL_GUARDED_BY(mutex);
  bool dropped ABSL_GUARDED_BY(mutex) = false;  // No longer in the table: find it again.
  absl::Status failure ABSL_GUARDED_BY(mutex);  // Of the last first listing.
  absl::Duration failed_at ABSL_GUARDED_BY(mutex) = -absl::InfiniteDuration();
  absl::flat_hash_map<std::string, NameWait> waiting ABSL_GUARDED_BY(mutex);
  std::vector<ReaderWait> readers ABSL_GUARDED_BY(mutex);
  // What was answered by a Stat ahead of the listing: 0 for names that were not there. When the
  // listing is complete, what it contradicts is taken back from the kernel.
  absl::flat_hash_map<std::string, NodeId> early ABSL_GUARDED_BY(mutex);
  // The kernel knows this directory from a predecessor of this process, and these names in it, but
  // for those in `early`: as good as a listing until there is one. Null: it does not.
  std::unique_ptr<Listing> told ABSL_GUARDED_BY(mutex);
  bool refreshing ABSL_GUARDED_BY(mutex) = false;
  std::vector<RefreshDone> refresh_waiters ABSL_GUARDED_BY(mutex);
  // Came while it was being listed, perhaps from an index.
  std::vector<RefreshDone> fresh_waiters ABSL_GUARDED_BY(mutex);
  absl::Duration refresh_due ABSL_GUARDED_BY(mutex) = absl::InfiniteDuration();
  bool refresh_failure_logged ABSL_GUARDED_BY(mutex) = false;
  bool hidden_logged ABSL_GUARDED_BY(mutex) = false;
};

// See tree.h. The listing is taken at the first read, so that opening a directory costs no
// listing; reading from offset 0 again takes the one that serves then.
class DirectoryHandle {
 public:
  explicit DirectoryHandle(NodeId node) : node(node) {}

  const NodeId node;
  base::Mutex mutex;  // Taken before the Directory's.
  std::shared_ptr<Directory> directory ABSL_GUARDED_BY(mutex);
  std::shared_ptr<Listing> listing ABSL_GUARDED_BY(mutex);
};

// The directories in use, by node id. Safe for concurrent use.
class DirectoryTable {
 public:
  std::shared_ptr<Directory> Find(NodeId id) {
    Shard& shard = ShardOf(id);
    const base::MutexLock lock(&shard.mutex);
    const auto found = shard.directories.find(id);
    return found == shard.directories.end() ? nullptr : found->second;
  }

  // Returns the one that is there already, else `directory`.
  std::shared_ptr<Directory> Insert(std::shared_ptr<Directory> directory) {
    Shard& shard = ShardOf(directory->node->id());
    const base::MutexLock lock(&shard.mutex);
    return shard.directories.try_emplace(directory->node->id(), directory).first->second;
  }

  void Erase(const std::shared_ptr<Directory>& directory) {
    Shard& shard = ShardOf(directory->node->id());
    const base::MutexLock lock(&shard.mutex);
    const auto found = shard.directories.find(directory->node->id());
    if (found != shard.directories.end() && found->second == directory) {
      shard.directories.erase(found);
    }
  }

  std::vector<std::shared_ptr<Directory>> All() {
    std::vector<std::shared_ptr<Directory>> all;
    for (Shard& shard : shards_) {
      const base::MutexLock lock(&shard.mutex);
      for (const auto& [id, directory] : shard.directories) all.push_back(directory);
    }
    return all;
  }

  void Clear() {
    for (Shard& shard : shards_) {
      absl::flat_hash_map<NodeId, std::shared_ptr<Directory>> directories;
      {
        const base::MutexLock lock(&shard.mutex);
        directories.swap(shard.directories);
      }
    }
  }

 private:
  struct alignas(64) Shard {
    base::Mutex mutex;
    absl::flat_hash_map<NodeId, std::shared_ptr<Directory>> directories ABSL_GUARDED_BY(mutex);
  };
  Shard& ShardOf(NodeId id) { return shards_[id % kShards]; }
  static constexpr size_t kShards = 32;
  std::array<Shard, kShards> shards_;
};

}  // namespace millrace::vfs
