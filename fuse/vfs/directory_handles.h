// The open directory streams of a mount, by the number that the kernel has of each.
//
// Threads. Safe for concurrent use.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/base/mutex.h"
#include "fuse/vfs/tree.h"

namespace millrace::vfs {

class DirectoryHandles {
 public:
  // `generation` tells the processes that served one mount one after the other apart: the kernel
  // still uses the numbers of all of them.
  explicit DirectoryHandles(uint32_t generation) : next_(uint64_t{generation} << 40 | 1) {}

  uint64_t Add(std::shared_ptr<DirectoryHandle> handle);
  // The stream of this number, opened in `tree` if nobody knows it.
  absl::StatusOr<std::shared_ptr<DirectoryHandle>> Find(Tree* tree, NodeId node, uint64_t number);
  void Remove(uint64_t number);

 private:
  struct alignas(64) Shard {
    base::Mutex mutex;
    absl::flat_hash_map<uint64_t, std::shared_ptr<DirectoryHandle>> handles ABSL_GUARDED_BY(mutex);
  };
  Shard& ShardOf(uint64_t number) { return shards_[number % kShards]; }
  static constexpr size_t kShards = 16;

  std::atomic<uint64_t> next_;
  std::array<Shard, kShards> shards_;
};

}  // namespace millrace::vfs
