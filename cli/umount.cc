// millrace umount: ends a mount and waits until its daemon has written its cache out.
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/mount_users.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "common/base/clock.h"
#include "common/base/errno_status.h"
#include "common/base/flags.h"
#include "common/base/mount_table.h"
#include "common/base/paths.h"
#include "common/base/status_macros.h"
#include "common/base/unmount.h"
#include "common/control/run_directory.h"

namespace millrace::cli {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(200);
constexpr absl::Duration kQuiet = absl::Seconds(2);
// A daemon flushes gigabytes to a slow disk in minutes, not in hours.
constexpr absl::Duration kExitMax = absl::Minutes(30);
constexpr size_t kUsersShown = 5;

// The keeper asks the mount whether it answers, some microseconds every second: a mount that is
// busy for longer is busy with something else.
constexpr absl::Duration kBusyGrace = absl::Milliseconds(300);
constexpr int kBusyTickMs = 5;

absl::Status UnmountUnlessBusy(const std::string& mountpoint, bool lazy) {
  const absl::Duration end = base::RealClock()->Monotonic() + kBusyGrace;
  while (true) {
    const absl::Status status = base::Unmount(mountpoint, lazy);
    if (base::ErrnoOf(status) != EBUSY || base::RealClock()->Monotonic() > end) return status;
    poll(nullptr, 0, kBusyTickMs);
  }
}

absl::Status Busy(const std::string& mountpoint, pid_t daemon) {
  std::vector<MountUser> users = FindMountUsers(mountpoint, daemon, kUsersShown);
  // This command inherits its caller's directory and files; it is on its way out.
  users.erase(std::remove_if(users.begin(), users.end(),
                             [](const MountUser& user) { return user.pid == getpid(); }),
              users.end());
  return absl::FailedPreconditionError(absl::StrCat(
      mountpoint, " is in use",
      users.empty() ? " by processes this user cannot see"
                    : absl::StrCat(" by ", DescribeUsers(users)),
      "; end them, or detach the mount now and let them finish: millrace umount --lazy ",
      mountpoint));
}

// Waits until keeper and daemon have dropped their lock, which they do by exiting.
absl::Status WaitForDaemon(const control::FoundMount& mount) {
  StatusLine line(STDERR_FILENO);
  // The keeper ends last.
  const pid_t last = mount.record.keeper_pid != 0 ? mount.record.keeper_pid : mount.record.pid;
  const base::UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, last, 0)));
  const absl::Duration start = base::RealClock()->Monotonic();
  for (int tick = 0; control::IsAlive(mount.paths); ++tick) {
    const absl::Duration elapsed = base::RealClock()->Monotonic() - start;
    if (elapsed > kExitMax) {
      return absl::DeadlineExceededError(absl::StrCat("unmounted, but the daemon (process ",
                                                      mount.record.pid, ") is still running; see ",
                                                      mount.paths.log()));
    }
    if (Interrupted().load()) {
      return absl::CancelledError(absl::StrCat("unmounted; the daemon (process ", mount.record.pid,
                                               ") goes on writing its cache out"));
    }
    if (elapsed >= kQuiet) {
      line.Show(absl::StrCat(std::string(1, SpinnerAt(tick)), " writing the cache out, ",
                             absl::ToInt64Seconds(elapsed), " s"));
    }
    // The descriptor ends the wait at once when the process does; the lock decides.
    pollfd waited = {process.get(), POLLIN, 0};
    poll(&waited, 1, static_cast<int>(absl::ToInt64Milliseconds(kTick)));
  }
  return absl::OkStatus();
}

absl::Status NothingToUnmount(const std::string& path,
                              const absl::StatusOr<control::FoundMount>& record) {
  if (!record.ok()) {
    return absl::NotFoundError(
        absl::StrCat(path, " is not a mount; millrace status lists the mounts there are"));
  }
  if (record->alive) return WaitForDaemon(*record);  // Unmounted by hand; it is on its way out.
  control::RemoveStale(record->paths);
  printf("%s was not mounted any more; cleaned up after its daemon\n", path.c_str());
  return absl::OkStatus();
}

absl::Status UmountCommand(const std::string& mountpoint, bool lazy) {
  const std::string path = base::ResolvePath(mountpoint);
  ASSIGN_OR_RETURN(const std::vector<base::MountEntry> table, base::ReadMountTable());
  const std::optional<base::MountEntry> entry = base::FindMount(table, path);
  const absl::StatusOr<control::FoundMount> record = control::FindMountRecord(path);
  if (!entry.has_value()) return NothingToUnmount(path, record);
  if (entry->fs_type != base::kMillraceFsType) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is a mount of ", entry->fs_type,
                                                      ", not of Millrace; use: umount ", path));
  }
  const absl::Status status = UnmountUnlessBusy(path, lazy);
  if (base::ErrnoOf(status) == EBUSY) return Busy(path, record.ok() ? record->record.pid : 0);
  RETURN_IF_ERROR(status);
  if (!record.ok()) return absl::OkStatus();  // Of another user: nothing of ours to wait for.
  if (lazy && record->alive) {
    printf("%s is detached; its daemon ends when the last file is closed\n", path.c_str());
    return absl::OkStatus();
  }
  NoteInterrupts();
  RETURN_IF_ERROR(WaitForDaemon(*record));
  // A daemon that ended well removed its record. Else the log may say why, but the mount is gone,
  // and a stale record would make status show it.
  control::RemoveStale(record->paths);
  return absl::OkStatus();
}

}  // namespace

int UmountMain(const Arguments& arguments) {
  bool lazy = false;
  base::FlagSet flags({.usage = "millrace umount [OPTION...] MOUNTPOINT...",
                       .summary = "Ends mounts and waits until their daemons have written their "
                                  "caches out. The caches stay for the next mount.",
                       .examples = {"millrace umount /data", "millrace umount --lazy /data"}});
  flags.Switch("lazy", &lazy, "detach a mount that is in use; programs keep the files they have");
  const absl::StatusOr<base::ParsedArguments> parsed = flags.Parse(arguments);
  if (!parsed.ok()) return Report(parsed.status());
  if (parsed->help) {
    fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (const absl::Status applied = flags.Apply(*parsed); !applied.ok()) return Report(applied);
  if (parsed->positionals.empty()) {
    return Report(absl::InvalidArgumentError(
        "which mount? millrace umount MOUNTPOINT; millrace status lists the mounts"));
  }
  int exit_code = 0;
  for (const std::string& mountpoint : parsed->positionals) {
    exit_code = std::max(exit_code, Report(UmountCommand(mountpoint, lazy)));
  }
  return exit_code;
}

}  // namespace millrace::cli
