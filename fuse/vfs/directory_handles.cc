#include "fuse/vfs/directory_handles.h"

#include <utility>

#include "common/base/status_macros.h"

namespace millrace::vfs {

uint64_t DirectoryHandles::Add(std::shared_ptr<DirectoryHandle> handle) {
  const uint64_t number = next_.fetch_add(1, std::memory_order_relaxed);
  Shard& shard = ShardOf(number);
  const base::MutexLock lock(&shard.mutex);
  shard.handles.emplace(number, std::move(handle));
  return number;
}

absl::StatusOr<std::shared_ptr<DirectoryHandle>> DirectoryHandles::Find(Tree* tree, NodeId node,
                                                                        uint64_t number) {
  Shard& shard = ShardOf(number);
  {
    const base::MutexLock lock(&shard.mutex);
    const auto found = shard.handles.find(number);
    if (found != shard.handles.end()) return found->second;
  }
  ASSIGN_OR_RETURN(std::shared_ptr<DirectoryHandle> opened, tree->OpenDirectory(node));
  const base::MutexLock lock(&shard.mutex);
  // Two reads of one stream may come at once: both get the first one's.
  return shard.handles.try_emplace(number, std::move(opened)).first->second;
}

void DirectoryHandles::Remove(uint64_t number) {
  Shard& shard = ShardOf(number);
  std::shared_ptr<DirectoryHandle> removed;  // Destroyed without the lock.
  const base::MutexLock lock(&shard.mutex);
  const auto found = shard.handles.find(number);
  if (found == shard.handles.end()) return;
  removed = std::move(found->second);
  shard.handles.erase(found);
}

}  // namespace millrace::vfs
