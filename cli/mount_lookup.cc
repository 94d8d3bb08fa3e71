#include "cli/mount_lookup.h"

#include <unistd.h>

#include <climits>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/paths.h"
#include "common/base/status_macros.h"

namespace millrace::cli {
namespace {

absl::Status NotOurs(absl::string_view mountpoint, const base::MountEntry& mount) {
  if (mount.fs_type != base::kMillraceFsType) {
    return absl::FailedPreconditionError(
        absl::StrCat(mountpoint, " is a mount of ", mount.fs_type, ", not of Millrace; ",
                     "millrace status lists the mounts there are"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat(mountpoint,
                   " is a Millrace mount that another user made; ask as that user, "
                   "or as root if root made it: sudo millrace ..."));
}

}  // namespace

absl::StatusOr<control::FoundMount> FindLivingMount(absl::string_view mountpoint) {
  const std::string path = base::ResolvePath(mountpoint);
  absl::StatusOr<control::FoundMount> found = control::FindMountRecord(path);
  if (found.ok() && found->alive) return found;
  ASSIGN_OR_RETURN(const std::vector<base::MountEntry> table, base::ReadMountTable());
  const std::optional<base::MountEntry> mount = base::FindMount(table, path);
  if (found.ok()) {
    return absl::UnavailableError(
        absl::StrCat("the daemon of ", path, " (process ", found->record.pid,
                     ") is gone; its last words are in ", found->paths.log(),
                     "; clean up with: millrace umount ", path));
  }
  if (mount.has_value()) return NotOurs(path, *mount);
  for (const control::FoundMount& each : control::ListMountRecords()) {
    const std::string& root = each.record.mountpoint;
    if (!base::IsAtOrBelow(path, root)) continue;
    return absl::InvalidArgumentError(absl::StrCat(path, " lies inside the mount ", root,
                                                   "; give the mountpoint first, as in ", root, " ",
                                                   path.substr(root.size() + 1)));
  }
  return absl::NotFoundError(
      absl::StrCat(path, " is not a Millrace mount; millrace status lists the mounts there are"));
}

absl::StatusOr<std::vector<std::string>> PathsInside(absl::string_view mountpoint,
                                                     absl::string_view cwd,
                                                     const std::vector<std::string>& paths) {
  std::vector<std::string> inside;
  const absl::string_view base = base::IsAtOrBelow(cwd, mountpoint) ? cwd : mountpoint;
  for (const std::string& path : paths) {
    const std::string whole = base::NormalizePath(path, base);
    if (!base::IsAtOrBelow(whole, mountpoint)) {
      return absl::InvalidArgumentError(absl::StrCat("\"", path, "\" is not inside the mount ",
                                                     mountpoint, "; give paths below it, as in ",
                                                     mountpoint, "/train or train"));
    }
    absl::string_view rest = whole;
    rest.remove_prefix(mountpoint.size());
    if (absl::StartsWith(rest, "/")) rest.remove_prefix(1);
    inside.emplace_back(rest);
  }
  return inside;
}

std::string CurrentDirectory() {
  char buffer[PATH_MAX];
  return getcwd(buffer, sizeof(buffer)) == nullptr ? "/" : buffer;
}

}  // namespace millrace::cli
