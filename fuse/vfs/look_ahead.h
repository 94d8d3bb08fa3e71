// Fetches the neighbours of small files before they are asked for.
//
// An epoch reads every file of a directory once, in any order. When several files of a directory
// were read from the store, its others will be too: they are fetched on connections that would
// idle, at most as many as twice what the application itself has read there, so that a reader of
// a few files costs the store little, and never more than the cache has room to keep.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "common/base/mutex.h"
#include "fuse/vfs/tree.h"

namespace millrace::vfs {

class LookAhead {
 public:
  struct Options {
    size_t outstanding_max = 24;  // Files on their way at once.
    uint64_t misses_min = 4;      // Files of a directory read before look-ahead begins.
  };
  // Starts fetching a file and calls `done` when it ended; false when it need not or cannot be
  // fetched (already cached, too large, no room).
  using Fetch = std::function<bool(const FileRef&, std::function<void()> done)>;

  // `tree` must outlive this; so must whatever `fetch` uses.
  LookAhead(Options options, Tree* tree, Fetch fetch);

  // A file of directory `directory` was read from the store by an application.
  void OnMiss(NodeId directory, NodeId file);

 private:
  struct Walk {
    NodeId file = 0;  // Any file of the directory: what Siblings starts from.
    size_t cursor = 0;
    uint64_t misses = 0;
    uint64_t issued = 0;
    bool ended = false;
  };
  void Pump(NodeId directory);

  const Options options_;
  Tree* const tree_;
  const Fetch fetch_;

  base::Mutex mutex_;
  size_t outstanding_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<NodeId, Walk> walks_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::vfs
