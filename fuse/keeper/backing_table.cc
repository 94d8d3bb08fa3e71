#include "fuse/keeper/backing_table.h"

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "fuse/keeper/fuse_wire.h"

namespace millrace::keeper {

absl::StatusOr<int> BackingTable::Open(int device, uint64_t node, int fd) {
  const auto found = ids_.find(node);
  if (found != ids_.end()) return found->second;
  if (ids_.size() >= kEntriesMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("more than ", kEntriesMax, " files are registered for passthrough"));
  }
  wire::BackingMap map = {fd, 0, 0};
  const int id = ioctl(device, wire::kBackingOpen, &map);
  if (id <= 0) return base::ErrnoStatus(errno, "FUSE_DEV_IOC_BACKING_OPEN");
  ids_[node] = id;
  return id;
}

void BackingTable::Close(int device, uint64_t node) {
  const auto found = ids_.find(node);
  if (found == ids_.end()) return;
  uint32_t id = static_cast<uint32_t>(found->second);
  ioctl(device, wire::kBackingClose, &id);
  ids_.erase(found);
}

}  // namespace millrace::keeper
