// The files registered with the kernel for passthrough, by node: registering takes CAP_SYS_ADMIN,
// which the daemon does not have.
//
// Not thread-safe.
#pragma once

#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

namespace millrace::keeper {

class BackingTable {
 public:
  // Each registered file is kernel memory that no limit of a process counts.
  static constexpr size_t kEntriesMax = 1 << 18;

  // The kernel's id for the file behind `fd`; the id that `node` has already, if it has one: its
  // daemon died before it could keep it.
  absl::StatusOr<int> Open(int device, uint64_t node, int fd);
  void Close(int device, uint64_t node);

  // An id registered by a keeper before this one.
  void Adopt(uint64_t node, int id) { ids_[node] = id; }
  // The connection of all of them ended, and took them with it.
  void Forget() { ids_.clear(); }
  size_t size() const { return ids_.size(); }

 private:
  absl::flat_hash_map<uint64_t, int> ids_;
};

}  // namespace millrace::keeper
