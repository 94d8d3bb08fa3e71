// The tree of names of one mount: sources joined under one root, directories listed from their
// stores on demand, kept, refreshed, and given stable node ids.
//
// Identity. A node is a (path, version): when a listing shows a new version of a file, the name
// gets a new node, and the old one lives on, unchanged, until the kernel forgets it. So one open
// file can never mix versions, whatever the kernel caches. Ids are stable hashes of path and
// version (directories: of the path): the same after a restart, which a take-over needs.
//
// Listing. The first lookup in a directory lists it, once for all who ask; a name is answered as
// soon as its page arrived, or by a Stat when it was not on the pages so far and more are coming.
// Names the kernel must not see are left out and counted (name_rules.h, SEMANTICS.md).
//
// Threads. All methods are safe for concurrent use. What is known is answered inline; what needs
// the store is answered from a thread of the tree. Callbacks run without any lock of the tree.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cache/store/registry.h"
#include "common/base/clock.h"

namespace millrace::vfs {

class Ledger;

using NodeId = uint64_t;
inline constexpr NodeId kRootNode = 1;

struct Attributes {
  NodeId id = 0;
  bool is_directory = false;
  uint64_t size = 0;
  absl::Time mtime = absl::UnixEpoch();
};

// What it takes to read a file: which object, of which version.
struct FileRef {
  NodeId id = 0;
  size_t source = 0;  // Index into TreeOptions::sources.
  std::string path;   // Below the source's root.
  std::string version;
  uint64_t size = 0;
};

struct SourcePath {
  size_t source = 0;
  std::string path;  // Below the source's root; "" for all of it.
};

// Told when what the kernel may have cached is no longer true. Calls come from threads of the
// tree, never from inside one of its methods (a notification from a request's thread deadlocks
// in the kernel).
class Invalidator {
 public:
  virtual ~Invalidator() = default;
  virtual void EntryChanged(NodeId parent, absl::string_view name) = 0;
  virtual void DirectoryChanged(NodeId directory) = 0;  // Its cached listing.
  // Nothing is known to have changed, but the tree no longer watches: ask again at the next use,
  // and keep the node and its pages if the answer is the same (FUSE_EXPIRE_ONLY). Without such a
  // way, forgetting the entry is right too, and costs the pages.
  virtual void EntryExpired(NodeId parent, absl::string_view name) { EntryChanged(parent, name); }
};

struct TreeOptions {
  std::vector<store::OpenedSource> sources;    // One without a name, or any number with names.
  absl::Duration refresh = absl::Seconds(60);  // absl::InfiniteDuration(): never list again.
  size_t threads = 8;                          // For calls to the stores.
  uint64_t entries_max = 50'000'000;           // Bound of what is kept; least used directories go.
  base::Clock* clock = base::RealClock();
  // Refreshes in the background. Tests that move `clock` by hand turn it off and call Refresh.
  bool refresh_thread = true;
  // Where the nodes that the kernel holds are kept for a successor of this process, and what a
  // predecessor left is found. Null: a mount ends with its process. Must outlive the tree.
  Ledger* ledger = nullptr;
};

struct TreeStats {
  uint64_t directories = 0;   // Listed and kept now.
  uint64_t files = 0;         // In these.
  uint64_t names_hidden = 0;  // In these, left out by name_rules.h.
  uint64_t listings = 0;      // Completed since the start, refreshes included.
  uint64_t changes = 0;       // New versions, removed and added names seen by a refresh.
};

// A listing that is being read. Entries have stable positions: `offset` of ReadDirectory is what
// the sink got with the last entry it took. Offset 0 takes the listing that serves then (so
// rewinddir sees what is new); from there on the handle sees the directory as it was at that
// moment, plus pages still arriving, whatever a refresh finds meanwhile. May outlive the tree.
class DirectoryHandle;

class Tree {
 public:
  virtual ~Tree() = default;

  // Starts threads: call it after a process has forked for the last time. The destructor ends
  // calls to the stores, answers what still waits with Cancelled, and returns when every callback
  // has returned.
  static std::unique_ptr<Tree> Create(TreeOptions options);

  // Before the first request; `invalidator` must outlive the tree. May be null.
  virtual void SetInvalidator(Invalidator* invalidator) = 0;

  // NotFound for a name that is not there, and for an unknown parent; Unavailable and so on from
  // the store. On success the node's lookup count grew by one: the kernel gives it back with
  // Forget.
  using LookupDone = absl::AnyInvocable<void(absl::StatusOr<Attributes>) &&>;
  virtual void Lookup(NodeId parent, absl::string_view name, LookupDone done) = 0;

  // Never touches the store: attributes belong to the node's version. NotFound (stale) for an
  // unknown id.
  virtual absl::StatusOr<Attributes> GetAttributes(NodeId node) = 0;
  virtual absl::StatusOr<FileRef> File(NodeId node) = 0;

  virtual void Forget(NodeId node, uint64_t count) = 0;

  // The directory a node was found in; kRootNode for the root and for unknown ids.
  virtual NodeId Parent(NodeId node) = 0;

  // The parts of the sources that a path inside the mount stands for, without asking a store: one,
  // or all of them for the root over named sources. InvalidArgument for ".." and the like,
  // NotFound for an unknown source name.
  virtual absl::StatusOr<std::vector<SourcePath>> Resolve(absl::string_view path) = 0;

  // NotFound for an unknown id, FailedPrecondition for a file.
  virtual absl::StatusOr<std::shared_ptr<DirectoryHandle>> OpenDirectory(NodeId node) = 0;

  // Feeds entries from `offset` to `sink` until it returns false or no entry is at hand; waits for
  // the store only when there is none to give at all. `done` gets OK when the sink was fed or the
  // end was reached. `sink` is called without locks that matter, only before `done`. With `plus`
  // each entry taken (sink returned true) counts as a lookup. "." and ".." are not included.
  struct DirectoryEntry {
    absl::string_view name;
    const Attributes* attributes;
    uint64_t next_offset;
  };
  using EntrySink = absl::AnyInvocable<bool(const DirectoryEntry&)>;
  using ReadDone = absl::AnyInvocable<void(absl::Status) &&>;
  virtual void ReadDirectory(const std::shared_ptr<DirectoryHandle>& handle, uint64_t offset,
                             bool plus, EntrySink sink, ReadDone done) = 0;

  // Files of the directory that holds `node`, in listing order: candidates for look-ahead. `cursor`
  // is an index into the listing and is moved behind what was returned; kAfterNode starts behind
  // `node` itself, 0 with the directory's first file. Only what is known already; empty at the end.
  static constexpr size_t kAfterNode = SIZE_MAX;
  virtual std::vector<FileRef> Siblings(NodeId node, size_t* cursor, size_t max) = 0;

  // Walks everything at or below `path` ("" for all; a path inside the mount), listing as needed,
  // blocking, `visit` per file until it returns false: for `millrace warm`. Depth first, in listing
  // order, in memory bounded by the depth. InvalidArgument for "." and ".." in `path`, NotFound;
  // the first error of a store ends the walk. A directory that vanishes meanwhile is passed over.
  virtual absl::Status Walk(absl::string_view path,
                            absl::FunctionRef<bool(const FileRef&)> visit) = 0;

  // Lists `directory` again now, blocking, and returns when the changes were delivered to the
  // Invalidator. OK, and nothing done, when there is no listing that could be old. An error leaves
  // the old listing in place.
  virtual absl::Status Refresh(NodeId directory) = 0;

  // The same for every directory that is kept. Returns how many changes were seen; the first error
  // of a store is returned when all were tried.
  virtual absl::StatusOr<uint64_t> RefreshAll() = 0;

  virtual TreeStats Stats() const = 0;
};

}  // namespace millrace::vfs
