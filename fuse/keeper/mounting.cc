#include "fuse/keeper/mounting.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/errno_status.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "common/base/unmount.h"

extern char** environ;

namespace millrace::keeper {
namespace {

constexpr char kDevice[] = "/dev/fuse";
// The variable fusermount3 looks for, and the descriptor it sends the device through.
constexpr char kCommunication[] = "_FUSE_COMMFD=3";
constexpr int kCommunicationFd = 3;

// include/uapi/linux/mount.h of Linux 6.5, which Debian 12's headers do not have yet.
constexpr unsigned kMoveBeneath = 0x200;

// Who may do what: the part of a mount's options that root's mount and fusermount3 share.
std::string Permissions(const MountRequest& request) {
  return absl::StrCat(request.check_permissions ? ",default_permissions" : "",
                      request.allow_other ? ",allow_other" : "");
}

absl::StatusOr<base::UniqueFd> OpenDevice() {
  base::UniqueFd device(open(kDevice, O_RDWR | O_CLOEXEC));
  if (!device.valid()) {
    return base::ErrnoStatus(
        errno,
        absl::StrCat("cannot open ", kDevice,
                     " (is the module fuse loaded, and the device given to this container?)"));
  }
  return device;
}

absl::StatusOr<base::UniqueFd> MountAsRoot(const MountRequest& request) {
  ASSIGN_OR_RETURN(base::UniqueFd device, OpenDevice());
  const std::string data = absl::StrCat("fd=", device.get(), ",rootmode=40000,user_id=", geteuid(),
                                        ",group_id=", getegid(), Permissions(request));
  if (mount(request.source_text.c_str(), request.mountpoint.c_str(), base::kMillraceFsType,
            MS_RDONLY | MS_NOSUID | MS_NODEV, data.c_str()) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("mount on ", request.mountpoint));
  }
  return device;
}

// The same mount, but beneath the one that is on top there.
absl::StatusOr<base::UniqueFd> MountBeneath(const MountRequest& request) {
  ASSIGN_OR_RETURN(base::UniqueFd device, OpenDevice());
  const base::UniqueFd context(fsopen("fuse", FSOPEN_CLOEXEC));
  const auto set = [&](const char* key, const std::string& value) {
    return fsconfig(context.get(), FSCONFIG_SET_STRING, key, value.c_str(), 0) == 0;
  };
  const auto flag = [&](const char* key) {
    return fsconfig(context.get(), FSCONFIG_SET_FLAG, key, nullptr, 0) == 0;
  };
  const bool made = context.valid() && set("source", request.source_text) &&
                    set("subtype", "millrace") && set("fd", absl::StrCat(device.get())) &&
                    set("rootmode", "40000") && set("user_id", absl::StrCat(geteuid())) &&
                    set("group_id", absl::StrCat(getegid())) &&
                    (!request.check_permissions || flag("default_permissions")) &&
                    (!request.allow_other || flag("allow_other")) && flag("ro") &&
                    fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) == 0;
  if (!made) return base::ErrnoStatus(errno, "making a mount");
  const base::UniqueFd mounted(fsmount(context.get(), FSMOUNT_CLOEXEC,
                                       MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV));
  if (!mounted.valid() || move_mount(mounted.get(), "", AT_FDCWD, request.mountpoint.c_str(),
                                     MOVE_MOUNT_F_EMPTY_PATH | kMoveBeneath) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("mount beneath ", request.mountpoint));
  }
  return device;
}

// The device that fusermount3 sends.
absl::StatusOr<base::UniqueFd> ReceiveDevice(int socket) {
  char byte;
  iovec piece = {&byte, 1};
  alignas(cmsghdr) char space[CMSG_SPACE(sizeof(int))];
  msghdr header = {};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  header.msg_control = space;
  header.msg_controllen = sizeof(space);
  ssize_t size;
  while ((size = recvmsg(socket, &header, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR) {
  }
  const cmsghdr* const rights = size > 0 ? CMSG_FIRSTHDR(&header) : nullptr;
  if (rights == nullptr || rights->cmsg_type != SCM_RIGHTS) {
    return absl::InternalError("fusermount3 mounted nothing");
  }
  int fd;
  std::memcpy(&fd, CMSG_DATA(rights), sizeof(fd));
  return base::UniqueFd(fd);
}

absl::StatusOr<base::UniqueFd> MountWithFusermount(const MountRequest& request) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return base::ErrnoStatus(errno, "socketpair");
  }
  const base::UniqueFd ours(ends[0]);
  base::UniqueFd theirs(ends[1]);
  // A dup onto itself would keep it close-on-exec.
  theirs = base::UniqueFd(fcntl(theirs.get(), F_DUPFD_CLOEXEC, kCommunicationFd + 1));
  if (!theirs.valid()) return base::ErrnoStatus(errno, "dup");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, theirs.get(), kCommunicationFd);
  std::vector<std::string> words = {"fusermount3", "-o", FusermountOptions(request), "--",
                                    request.mountpoint};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::string communication = kCommunication;
  std::vector<char*> environment = {communication.data()};
  for (char** each = environ; *each != nullptr; ++each) environment.push_back(*each);
  environment.push_back(nullptr);
  pid_t pid = 0;
  const int failed =
      posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environment.data());
  posix_spawn_file_actions_destroy(&actions);
  theirs.Reset();
  if (failed != 0) {
    return absl::UnavailableError(
        "fusermount3 is not installed, and only root mounts without it; install the package fuse3");
  }
  absl::StatusOr<base::UniqueFd> device = ReceiveDevice(ours.get());
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!device.ok() || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    // It has said why on standard error, which is our log.
    return absl::FailedPreconditionError(absl::StrCat(
        "fusermount3 could not mount on ", request.mountpoint, "; its words are in the log"));
  }
  return device;
}

}  // namespace

std::string FusermountOptions(const MountRequest& request) {
  std::string source;
  for (const char c : request.source_text) {
    if (c == ',' || c == '\\') source.push_back('\\');
    source.push_back(c);
  }
  return absl::StrCat("ro,nosuid,nodev,subtype=millrace,fsname=", source, Permissions(request));
}

absl::StatusOr<base::UniqueFd> MountFuse(const MountRequest& request) {
  return geteuid() == 0 ? MountAsRoot(request) : MountWithFusermount(request);
}

absl::StatusOr<base::UniqueFd> ReplaceFuse(const MountRequest& request) {
  if (geteuid() == 0) {
    absl::StatusOr<base::UniqueFd> device = MountBeneath(request);
    if (device.ok()) {
      RETURN_IF_ERROR(base::Unmount(request.mountpoint, /*lazy=*/true));
      return device;
    }
  }
  RETURN_IF_ERROR(base::Unmount(request.mountpoint, /*lazy=*/true));
  return MountFuse(request);
}

std::optional<base::MountEntry> FindMillraceMount(const std::string& mountpoint) {
  const absl::StatusOr<std::vector<base::MountEntry>> table = base::ReadMountTable();
  if (!table.ok()) return std::nullopt;
  std::optional<base::MountEntry> mount = base::FindMount(*table, mountpoint);
  if (!mount.has_value() || mount->fs_type != base::kMillraceFsType) return std::nullopt;
  return mount;
}

bool RaiseReadAhead(const base::MountEntry& mount, unsigned kib) {
  std::ofstream file(absl::StrCat("/sys/class/bdi/", mount.device_major, ":", mount.device_minor,
                                  "/read_ahead_kb"));
  file << kib << std::flush;
  return file.good();
}

bool IsMountDead(const std::string& mountpoint, absl::Duration timeout) {
  struct Answer {
    base::Mutex mutex;
    base::CondVar there;
    std::optional<int> error ABSL_GUARDED_BY(mutex);
  };
  const auto answer = std::make_shared<Answer>();
  std::thread([answer, mountpoint] {
    struct statfs ignored;
    const int error = statfs(mountpoint.c_str(), &ignored) == 0 ? 0 : errno;
    base::MutexLock lock(&answer->mutex);
    answer->error = error;
    answer->there.NotifyAll();
  }).detach();
  const absl::Duration deadline = base::RealClock()->Monotonic() + timeout;
  base::MutexLock lock(&answer->mutex);
  while (!answer->error.has_value()) {
    const absl::Duration left = deadline - base::RealClock()->Monotonic();
    if (left <= absl::ZeroDuration()) return false;
    answer->there.WaitFor(&answer->mutex, left);
  }
  return *answer->error == ENOTCONN || *answer->error == ECONNABORTED;
}

}  // namespace millrace::keeper
