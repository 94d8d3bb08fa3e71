// What a successor of this process must know to go on serving the same mount: the nodes the kernel
// holds, the open handles, the registered backing files. It lives in a memory file that another
// process holds too, so it is there after a SIGKILL at any instruction.
//
// Layout. A header, a table of slots of 32 bytes (open handles and backing files), then an arena of
// records of whole 32-byte units (nodes), in a sparse file of one fixed size: what was never used
// takes no memory. Records are only ever reached from the scan at Open or by the index that Add
// gave, and hold no pointers.
//
// Order of writes. A record's length is there before the arena's end moves behind it, its body
// before the flag that makes it live; a slot's body before its state. A process that dies between
// two of these leaves a record or slot that is not live. Counts are only ever too high: a lookup is
// counted before its reply leaves, and given back after the kernel asked for it.
//
// What is read at Open was written by a process that may have been another version, or damaged:
// everything is checked, nothing is trusted, and what does not fit is one clear error.
//
// Threads. Safe for concurrent use. The file has one writer at a time: a successor opens it when
// its predecessor is dead or has called Detach.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/mutex.h"
#include "common/base/unique_fd.h"
#include "fuse/vfs/profile.h"

namespace millrace::vfs {

// A node as it is kept: names and versions in the form of node_table.h.
struct NodeRecord {
  uint64_t id = 0;
  uint64_t parent = 0;  // Its id. A parent that is no root has a record too.
  uint64_t size = 0;
  int64_t mtime_ns = 0;
  uint8_t flags = 0;  // Node's own; not looked at here.
  absl::string_view name;
  absl::string_view version;
};

class Ledger {
 public:
  // Of a new session's file. What a mount may need at most: 50 million names of 17 bytes, 16
  // million handles.
  struct Size {
    uint64_t bytes = uint64_t{16} << 30;
    uint32_t slots = 1 << 24;
  };

  // Takes over a memory file: an empty one begins a session, any other is a predecessor's.
  // FailedPrecondition for a layout of another version, DataLoss for what is damaged.
  static absl::StatusOr<std::unique_ptr<Ledger>> Open(base::UniqueFd memfd);
  static absl::StatusOr<std::unique_ptr<Ledger>> Open(base::UniqueFd memfd, const Size& size);
  // Whether Open will know the layout of a file that its writer still uses. Changes nothing.
  static absl::Status CheckLayout(int memfd);
  ~Ledger();
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  // A predecessor wrote here: this is a take-over.
  bool restored() const { return generation_ > 1; }
  // Counts the processes that opened the file, from 1.
  uint32_t generation() const { return generation_; }

  // The profile chosen in this session; kAuto while there is none. The kernel remembers for the
  // life of the mount whether OPEN was refused, so it is chosen once.
  Profile profile() const;
  void SetProfile(Profile profile);

  // From now on what this process writes stays its own. The file belongs to the successor.
  void Detach();
  bool detached() const { return detached_.load(std::memory_order_acquire); }

  // ---- Nodes ----

  using Index = uint32_t;  // Of a record; 0: none.

  // Keeps a node, with no lookups yet. 0 when the arena is full: the node is then unknown after a
  // take-over (ESTALE), which is counted, and logged once.
  Index Add(const NodeRecord& node);
  // REQUIRES, for all that follow: `record` is live.
  void AddLookups(Index record, uint64_t count);
  void TakeLookups(Index record, uint64_t count);
  void SetMtime(Index record, int64_t mtime_ns);
  // The kernel may hold a listing of this directory.
  void MarkListed(Index record);
  void Remove(Index record);

  // Every live record, in the order of the arena. Not while others add or remove.
  struct Restored {
    Index record = 0;
    uint64_t lookups = 0;
    bool listed = false;
    NodeRecord node;  // Its names point into the arena.
  };
  void ForEachNode(absl::FunctionRef<void(const Restored&)> visit) const;
  Restored At(Index record) const;

  // ---- Handles and backing files ----

  using Slot = uint32_t;  // 0: none.

  struct Handle {
    uint64_t node = 0;
    bool passthrough = false;
    uint64_t unique = 0;  // Of the OPEN request, without the bit of a re-sent one.
  };
  // Beyond the table's size a number that no successor will know.
  Slot AddHandle(const Handle& handle);
  // The handle that an OPEN request got from a predecessor that died before its reply left; slot 0
  // if it got none.
  std::pair<Slot, Handle> FindHandle(uint64_t node, uint64_t unique) const;
  // False for one that is not open, or not of this node and request (the low half of its unique
  // number): a RELEASE may come again when its slot is another's already.
  bool RemoveHandle(Slot slot, uint64_t node, uint32_t unique);
  void ForEachHandle(absl::FunctionRef<void(Slot, const Handle&)> visit) const;

  // 0 when the table is full: the file must then not be used for passthrough.
  Slot AddBacking(uint64_t node, int backing_id);
  // Before the id is given back: an id in the ledger is one that the kernel has.
  void RemoveBacking(Slot slot);
  void ForEachBacking(absl::FunctionRef<void(Slot, uint64_t node, int backing_id)> visit) const;
  // For a keeper that takes this daemon over from one that died.
  std::vector<std::pair<uint64_t, int>> BackingIds() const;

  struct Stats {
    uint64_t nodes = 0;
    uint64_t slots = 0;
    uint64_t bytes = 0;  // Of memory, at most.
    uint64_t lost = 0;   // Nodes and handles that found no room.
  };
  Stats stats() const;

 private:
  struct Header;
  struct Record;
  struct SlotRecord;

  Ledger(base::UniqueFd memfd, char* memory, uint64_t size)
      : memfd_(std::move(memfd)), memory_(memory), size_(size) {}

  void Begin(uint32_t slots);
  absl::Status CheckHeader() const;
  absl::Status ScanRecords();
  absl::Status ScanSlots();

  Header* header() const;
  Record* RecordAt(uint64_t unit) const;
  Record* RecordOf(Index record) const { return RecordAt(uint64_t{record} - 1); }
  SlotRecord* SlotOf(Slot slot) const;
  uint64_t units_max() const;
  Slot TakeSlot();
  void FreeSlot(Slot slot);
  void CountLost(absl::string_view what) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Constant after Open.
  const base::UniqueFd memfd_;
  char* const memory_;
  const uint64_t size_;
  uint32_t generation_ = 0;

  std::atomic<bool> detached_{false};

  mutable base::Mutex mutex_;  // A leaf. Allocation only.
  // Free records by their number of units, free slots.
  absl::flat_hash_map<uint32_t, std::vector<Index>> free_records_ ABSL_GUARDED_BY(mutex_);
  std::vector<Slot> free_slots_ ABSL_GUARDED_BY(mutex_);
  Slot beyond_ ABSL_GUARDED_BY(mutex_) = 0;  // Handles given that have no slot.
  uint64_t nodes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t slots_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t lost_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace millrace::vfs
