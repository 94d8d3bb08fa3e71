#include "fuse/daemon/direct_session.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"

namespace millrace::daemon {
namespace {

// include/uapi/linux/fuse.h of Linux 6.9, which Debian 12's headers do not have yet.
struct BackingMap {
  int32_t fd;
  uint32_t flags;
  uint64_t padding;
};
constexpr unsigned long kBackingOpen = _IOW(229, 1, BackingMap);
constexpr unsigned long kBackingClose = _IOW(229, 2, uint32_t);

class DirectBackingFiles final : public vfs::BackingFiles {
 public:
  explicit DirectBackingFiles(int device) : device_(fcntl(device, F_DUPFD_CLOEXEC, 0)) {}
  absl::StatusOr<int> Open(vfs::NodeId, int fd) override {
    BackingMap map = {fd, 0, 0};
    const int id = ioctl(device_.get(), kBackingOpen, &map);
    if (id <= 0) return base::ErrnoStatus(errno, "FUSE_DEV_IOC_BACKING_OPEN");
    return id;
  }
  void Close(vfs::NodeId, int backing_id) override {
    uint32_t id = static_cast<uint32_t>(backing_id);
    ioctl(device_.get(), kBackingClose, &id);
  }

 private:
  const base::UniqueFd device_;
};

}  // namespace

absl::StatusOr<DirectSession> MountDirectly(const std::string& mountpoint,
                                            const std::string& source, bool allow_other) {
  DirectSession direct;
  direct.session.device = base::UniqueFd(open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!direct.session.device.valid()) return base::ErrnoStatus(errno, "open of /dev/fuse");
  const std::string options = absl::StrCat(
      "fd=", direct.session.device.get(), ",rootmode=40000,user_id=", getuid(),
      ",group_id=", getgid(), ",default_permissions", allow_other ? ",allow_other" : "");
  if (mount(source.c_str(), mountpoint.c_str(), "fuse.millrace", MS_RDONLY | MS_NOSUID | MS_NODEV,
            options.c_str()) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("mount on ", mountpoint));
  }
  direct.backing = std::make_unique<DirectBackingFiles>(direct.session.device.get());
  direct.session.backing = direct.backing.get();
  return direct;
}

void UnmountDirectly(const std::string& mountpoint) { umount2(mountpoint.c_str(), MNT_DETACH); }

}  // namespace millrace::daemon
