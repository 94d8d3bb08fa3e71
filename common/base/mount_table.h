// The mounts this process sees: /proc/self/mountinfo, taken apart.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::base {

// The file-system type of our mounts in the kernel's table ("fuse" and the subtype).
inline constexpr char kMillraceFsType[] = "fuse.millrace";

struct MountEntry {
  std::string mountpoint;  // Escapes (\040 for a space) undone.
  std::string fs_type;
  std::string source;
  std::string options;  // Per mount and per file system, joined with a comma.
  unsigned device_major = 0;
  unsigned device_minor = 0;
};

// Lines that do not have the shape of proc(5) are passed over. Later mounts come later; the last
// one of a mountpoint is the one on top.
std::vector<MountEntry> ParseMountInfo(absl::string_view text);

absl::StatusOr<std::vector<MountEntry>> ReadMountTable();

// The topmost mount exactly at `path` (absolute, without a trailing slash).
std::optional<MountEntry> FindMount(const std::vector<MountEntry>& table, absl::string_view path);

}  // namespace millrace::base
