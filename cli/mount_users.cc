#include "cli/mount_users.h"

#include <dirent.h>
#include <unistd.h>

#include <climits>
#include <memory>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cli/terminal.h"
#include "common/base/file_text.h"
#include "common/base/paths.h"

namespace millrace::cli {
namespace {

using Directory = std::unique_ptr<DIR, int (*)(DIR*)>;

std::string LinkTarget(const std::string& path) {
  char target[PATH_MAX];
  const ssize_t size = readlink(path.c_str(), target, sizeof(target));
  return size <= 0 ? "" : std::string(target, static_cast<size_t>(size));
}

bool IsInside(absl::string_view path, absl::string_view mountpoint) {
  return !path.empty() && path[0] == '/' && base::IsAtOrBelow(path, mountpoint);
}

std::optional<std::string> OpenFile(const std::string& process, absl::string_view mountpoint) {
  const Directory listing(opendir(absl::StrCat(process, "/fd").c_str()), closedir);
  if (listing == nullptr) return std::nullopt;
  while (const dirent* const entry = readdir(listing.get())) {
    const std::string target = LinkTarget(absl::StrCat(process, "/fd/", entry->d_name));
    if (IsInside(target, mountpoint)) return absl::StrCat("has ", Printable(target), " open");
  }
  return std::nullopt;
}

std::optional<std::string> MappedFile(const std::string& process, absl::string_view mountpoint) {
  const absl::StatusOr<std::string> maps =
      base::ReadTextFile(absl::StrCat(process, "/maps"), 64 << 20);
  if (!maps.ok()) return std::nullopt;
  for (const absl::string_view line : absl::StrSplit(*maps, '\n')) {
    const size_t slash = line.find('/');
    if (slash != absl::string_view::npos && IsInside(line.substr(slash), mountpoint)) {
      return absl::StrCat("maps ", Printable(line.substr(slash)));
    }
  }
  return std::nullopt;
}

std::optional<std::string> FirstUse(const std::string& process, absl::string_view mountpoint) {
  for (const char* const link : {"/cwd", "/root"}) {
    const std::string target = LinkTarget(process + link);
    if (IsInside(target, mountpoint)) return absl::StrCat("works in ", Printable(target));
  }
  if (std::optional<std::string> use = OpenFile(process, mountpoint)) return use;
  return MappedFile(process, mountpoint);
}

}  // namespace

std::vector<MountUser> FindMountUsers(absl::string_view mountpoint, pid_t except, size_t max) {
  std::vector<MountUser> users;
  const Directory listing(opendir("/proc"), closedir);
  if (listing == nullptr) return users;
  while (const dirent* const entry = readdir(listing.get())) {
    if (users.size() >= max) break;
    pid_t pid = 0;
    if (!absl::SimpleAtoi(entry->d_name, &pid) || pid == except) continue;
    const std::string process = absl::StrCat("/proc/", pid);
    std::optional<std::string> use = FirstUse(process, mountpoint);
    if (!use.has_value()) continue;
    const std::string name = base::ReadTextFile(process + "/comm", 4096).value_or("?");
    users.push_back({pid, Printable(absl::StripAsciiWhitespace(name)), *std::move(use)});
  }
  return users;
}

std::string DescribeUsers(const std::vector<MountUser>& users) {
  return absl::StrJoin(users, ", ", [](std::string* out, const MountUser& user) {
    absl::StrAppend(out, user.pid, " ", user.command, " (", user.how, ")");
  });
}

}  // namespace millrace::cli
