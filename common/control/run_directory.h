// Where a mount keeps its socket, its record and its log, and how the command finds them.
//
// One directory per mount, named after the hash of the mountpoint, below /run/millrace (root) or
// $XDG_RUNTIME_DIR/millrace (everybody else; /tmp/millrace-<uid> where there is none):
//   control.sock   the daemon's control socket (control_server.h)
//   keeper.sock    the keeper's, in the same protocol
//   adopt.sock     where a keeper finds a daemon that has lost its own (fuse/keeper)
//   mount.json     the MountRecord, written when the mount answers
//   daemon.log     what keeper and daemon say; daemon.log.old is that of the mount before
//   lock           the keeper's pid, for people. Held with an open-file-description lock that
//   keeper
//                  and daemon share while either lives: the kernel drops it with the last of them,
//                  whatever ends it. That, not a pid, tells a living mount from what a killed one
//                  left behind.
//
// Errors are for people: cause and remedy. Functions without a class are safe for concurrent use.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/unique_fd.h"

namespace millrace::control {

// 16 hexadecimal digits that name the mount at `mountpoint` (base::ResolvePath).
std::string MountHash(absl::string_view mountpoint);

// The directory above all run directories of this user. Not created.
std::string RuntimeBase();

// The default directory of the caches of this user: /var/cache/millrace (root), else
// $XDG_CACHE_HOME/millrace or ~/.cache/millrace. Not created.
std::string CacheBase();

struct RunPaths {
  std::string directory;
  std::string socket() const { return directory + "/control.sock"; }
  std::string keeper_socket() const { return directory + "/keeper.sock"; }
  std::string adoption_socket() const { return directory + "/adopt.sock"; }
  std::string record() const { return directory + "/mount.json"; }
  std::string log() const { return directory + "/daemon.log"; }
  std::string old_log() const { return directory + "/daemon.log.old"; }
  std::string lock() const { return directory + "/lock"; }
};

// Paths of the mount at `mountpoint`; nothing is created.
RunPaths RunPathsOf(absl::string_view mountpoint);

// What mount.json says.
struct MountRecord {
  std::string mountpoint;
  pid_t pid = 0;                     // The daemon of the moment.
  pid_t keeper_pid = 0;              // 0: it was written by a version without keeper.
  std::vector<std::string> sources;  // NAME=URL or URL, without options.
  absl::Time started;
  std::string version;
};

// A mount's run directory in the hands of its keeper. Not thread-safe.
class RunDirectory {
 public:
  // Makes the directory (mode 0700) and takes the lock. FailedPrecondition when another daemon
  // serves `mountpoint`, or when the directory belongs to somebody else.
  static absl::StatusOr<RunDirectory> Create(absl::string_view mountpoint);
  // The same below another directory than RuntimeBase(), made if missing: for tests.
  static absl::StatusOr<RunDirectory> CreateBelow(const std::string& base,
                                                  absl::string_view mountpoint);

  // One that is locked already, by the open file description of `lock`.
  static RunDirectory Inherit(absl::string_view mountpoint, base::UniqueFd lock) {
    return RunDirectory(RunPathsOf(mountpoint), std::move(lock));
  }

  RunDirectory(RunDirectory&&) = default;
  RunDirectory& operator=(RunDirectory&&) = default;
  // Does not remove anything: a directory without a record is a mount that never answered.
  ~RunDirectory() = default;

  const RunPaths& paths() const { return paths_; }
  int lock() const { return lock_.get(); }
  absl::Status WriteRecord(const MountRecord& record) const;
  // Removes sockets and record: the last act. The log stays for whoever asks why; the
  // lock file stays because removing it would let two daemons hold "the" lock.
  void Clear() const;

 private:
  RunDirectory(RunPaths paths, base::UniqueFd lock)
      : paths_(std::move(paths)), lock_(std::move(lock)) {}

  RunPaths paths_;
  base::UniqueFd lock_;
};

// One run directory as the command sees it.
struct FoundMount {
  RunPaths paths;
  MountRecord record;
  bool alive = false;  // The lock is held.
};

// NotFound when there is no record; InvalidArgument when it cannot be read.
absl::StatusOr<FoundMount> FindMountRecord(absl::string_view mountpoint);

// All mounts of this user that have a record, living and dead, ordered by mountpoint.
std::vector<FoundMount> ListMountRecords();
std::vector<FoundMount> ListMountRecordsBelow(const std::string& base);

// True while a keeper or a daemon holds the lock of `paths`. Takes no lock itself.
bool IsAlive(const RunPaths& paths);

// Removes what a dead daemon left behind, log included. Does nothing while a daemon lives.
void RemoveStale(const RunPaths& paths);

// The last `lines` lines of a log, each indented by two spaces; empty when there is none.
std::string LogTail(const std::string& path, size_t lines);

}  // namespace millrace::control
