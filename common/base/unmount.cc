#include "common/base/unmount.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/unique_fd.h"

extern char** environ;

namespace millrace::base {
namespace {

// fusermount3 is what a user without privileges unmounts with. Returns what it said.
absl::Status RunFusermount(const std::string& mountpoint, bool lazy) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDERR_FILENO);
  std::vector<std::string> words = {"fusermount3", "-u"};
  if (lazy) words.push_back("-z");
  words.insert(words.end(), {"--", mountpoint});
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  const int failed = posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  write_end.Reset();
  if (failed != 0) {
    return absl::UnavailableError(
        "fusermount3 is not installed, and only root unmounts without it; install the package "
        "fuse3");
  }
  std::string said;
  char chunk[1024];
  for (ssize_t size; (size = read(read_end.get(), chunk, sizeof(chunk))) != 0;) {
    if (size > 0) said.append(chunk, static_cast<size_t>(size));
    if (size < 0 && errno != EINTR) break;
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  // It has one exit code for everything; its text tells a busy mount.
  if (absl::StrContains(said, "busy")) return ErrnoStatus(EBUSY, mountpoint);
  if (absl::StrContains(said, "not found in")) return ErrnoStatus(EINVAL, mountpoint);
  return absl::InternalError(
      absl::StrCat("cannot unmount ", mountpoint, ": ",
                   absl::Utf8SafeCHexEscape(absl::StripAsciiWhitespace(said))));
}

}  // namespace

absl::Status Unmount(const std::string& mountpoint, bool lazy) {
  if (geteuid() != 0) return RunFusermount(mountpoint, lazy);
  if (umount2(mountpoint.c_str(), UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0) {
    return absl::OkStatus();
  }
  return ErrnoStatus(errno, absl::StrCat("cannot unmount ", mountpoint));
}

}  // namespace millrace::base
