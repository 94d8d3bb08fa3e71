// The files that are open or were read lately, by node.
//
// Handles carry no state that a successor of this process could not make anew: a handle is a
// number, kept in the ledger with its node and mode, and all that is known about it here is how it
// reads.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "cache/fetch/object.h"
#include "common/base/mutex.h"
#include "fuse/vfs/ledger.h"
#include "fuse/vfs/read_pattern.h"
#include "fuse/vfs/tree.h"

namespace millrace::vfs {

// SEAM: registers cache files with the kernel for passthrough, through the process that may. Safe
// for concurrent use.
class BackingFiles {
 public:
  virtual ~BackingFiles() = default;
  // The kernel's id (> 0) for the file behind `fd`, which may be closed afterwards. A node that has
  // an id already gets the same again: a predecessor may have died before it could keep it.
  virtual absl::StatusOr<int> Open(NodeId node, int fd) = 0;
  virtual void Close(NodeId node, int backing_id) = 0;
};

// How an open file is served. The kernel refuses (EIO) to mix passthrough with the others on one
// inode, so that choice is made at the first open and kept while any open lasts.
//   kCached       through the page cache
//   kDirect       read straight into the reader's memory: a file that fills in a tier of memory,
//                 which the page cache would keep a second time, or one that nobody keeps, read for
//                 the first time: two copies less are half of the processor time of the read
//   kPassthrough  by the kernel from the cache file
enum class OpenMode : uint8_t { kCached, kDirect, kPassthrough };

class File {
 public:
  // What a predecessor left: opens that the kernel still has, and the file's backing id.
  struct Restored {
    uint64_t opens_cached = 0;
    uint64_t opens_passthrough = 0;
    int backing_id = 0;
    Ledger::Slot backing_slot = 0;
  };

  // Without `backing` no passthrough. Without `ledger` a backing id ends with the process.
  File(FileRef ref, std::shared_ptr<fetch::Object> object, BackingFiles* backing, Ledger* ledger,
       const Restored& restored);
  ~File();

  const FileRef& ref() const { return ref_; }
  fetch::Object& object() { return *object_; }
  const fetch::Object& object() const { return *object_; }

  // What the page cache is for while the file is not complete.
  enum class PageCache : uint8_t {
    kUsed,      // As ever.
    kSecond,    // A copy of what a tier of memory keeps.
    kOnReturn,  // All that keeps it; worth it for who comes a second time.
  };
  // Counts an open. Passthrough when the cache has the whole file and the kernel takes it; direct
  // where the page cache is not worth its price.
  struct Opened {
    OpenMode mode = OpenMode::kCached;
    int backing_id = 0;
  };
  Opened Open(PageCache page_cache);
  // The backing id of a handle that is open with passthrough already; 0: none.
  int backing_id() const;
  // The opposite of Open. True when no open is left.
  bool Close(OpenMode mode, uint64_t handle);
  bool IsOpen() const;
  // Gives the backing id back. False, and nothing happens, while an open lasts.
  bool GiveBack();

  // What a read tells about those to come, by handle; 0 stands for all readers of a mount without
  // OPEN.
  struct Outlook {
    absl::InlinedVector<Range, 4> ahead;  // To be fetched.
    bool random = false;
  };
  Outlook OnRead(uint64_t handle, uint64_t offset, uint64_t size, uint64_t window_max);

  // True once: this read is the first that had to go to the store.
  bool FirstMiss() { return !missed_.exchange(true, std::memory_order_relaxed); }

  // Complete in the cache, remembered: the answer does not change back while the object holds
  // the cached file.
  bool KnownComplete();

 private:
  // Registers the cached file, if there is a complete one.
  void Register() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Unregister() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const FileRef ref_;
  const std::shared_ptr<fetch::Object> object_;
  BackingFiles* const backing_;  // Null: no passthrough.
  Ledger* const ledger_;         // May be null.
  std::atomic<bool> missed_{false};
  std::atomic<bool> complete_{false};

  mutable base::Mutex mutex_;
  uint64_t opens_cached_ ABSL_GUARDED_BY(mutex_) = 0;  // And direct.
  uint64_t opens_passthrough_ ABSL_GUARDED_BY(mutex_) = 0;
  bool opened_before_ ABSL_GUARDED_BY(mutex_) = false;
  int backing_id_ ABSL_GUARDED_BY(mutex_) = 0;  // Kept for the next open; 0: none.
  Ledger::Slot backing_slot_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<uint64_t, ReadPattern> patterns_ ABSL_GUARDED_BY(mutex_);
};

// Keeps every open file, and up to `idle_max` others, least recently used out first. A node has one
// File at a time as long as anybody uses it: of two, each would register and give back the backing
// id of the other.
// Thread-safe.
class FileTable {
 public:
  explicit FileTable(size_t idle_max) : idle_max_(idle_max) {}

  std::shared_ptr<File> Find(NodeId node);
  // The file of `node`: the one already there, or `file`.
  std::shared_ptr<File> Insert(NodeId node, std::shared_ptr<File> file);
  // Lets go of a file unless it is open (its cached data was evicted, its node forgotten).
  void Drop(NodeId node);
  // Lets go of all that are not open and whose `match` is true.
  void DropIf(absl::FunctionRef<bool(const File&)> match);

 private:
  // Sixteen tables, so that threads do not meet.
  static constexpr size_t kShards = 16;
  struct Shard {
    base::Mutex mutex;
    struct Slot {
      std::shared_ptr<File> file;
      std::list<NodeId>::iterator use;
    };
    absl::flat_hash_map<NodeId, Slot> files ABSL_GUARDED_BY(mutex);
    std::list<NodeId> uses ABSL_GUARDED_BY(mutex);  // Most recent first.
  };
  // Lets go of a file that nobody uses, in an order in which its node never has two.
  void Retire(NodeId node, const std::shared_ptr<File>& file);
  Shard& ShardOf(NodeId node) { return shards_[(node ^ node >> 32) % kShards]; }

  const size_t idle_max_;
  std::array<Shard, kShards> shards_;
};

}  // namespace millrace::vfs
