#include "common/base/mount_table.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/file_text.h"
#include "common/base/status_macros.h"

namespace millrace::base {
namespace {

// The kernel's seq_file writes space, tab, newline and backslash as three octal digits.
std::string Unescape(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](size_t at, char highest) {
      return at < text.size() && text[at] >= '0' && text[at] <= highest;
    };
    if (text[i] == '\\' && digit(i + 1, '3') && digit(i + 2, '7') && digit(i + 3, '7')) {
      out.push_back(static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                      (text[i + 3] - '0')));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

// 36 35 98:0 /root /mnt rw,noatime shared:1 - ext4 /dev/root rw,errors=continue
// (1)(2)(3)   (4)   (5)  (6)        (7)…    (8)(9)  (10)      (11)
std::optional<MountEntry> ParseLine(absl::string_view line) {
  const std::vector<absl::string_view> fields = absl::StrSplit(line, ' ', absl::SkipEmpty());
  size_t separator = 6;
  while (separator < fields.size() && fields[separator] != "-") ++separator;
  if (separator + 2 >= fields.size()) return std::nullopt;
  const std::vector<absl::string_view> device = absl::StrSplit(fields[2], ':');
  MountEntry entry;
  if (device.size() != 2 || !absl::SimpleAtoi(device[0], &entry.device_major) ||
      !absl::SimpleAtoi(device[1], &entry.device_minor)) {
    return std::nullopt;
  }
  entry.mountpoint = Unescape(fields[4]);
  entry.fs_type = Unescape(fields[separator + 1]);
  entry.source = Unescape(fields[separator + 2]);
  entry.options = std::string(fields[5]);
  if (separator + 3 < fields.size()) absl::StrAppend(&entry.options, ",", fields[separator + 3]);
  return entry;
}

}  // namespace

std::vector<MountEntry> ParseMountInfo(absl::string_view text) {
  std::vector<MountEntry> table;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    if (std::optional<MountEntry> entry = ParseLine(line)) table.push_back(*std::move(entry));
  }
  return table;
}

absl::StatusOr<std::vector<MountEntry>> ReadMountTable() {
  // 64 MiB is a table of some 300,000 mounts; the kernel's default limit is 100,000.
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile("/proc/self/mountinfo", 64 << 20));
  return ParseMountInfo(text);
}

std::optional<MountEntry> FindMount(const std::vector<MountEntry>& table, absl::string_view path) {
  for (auto entry = table.rbegin(); entry != table.rend(); ++entry) {
    if (entry->mountpoint == path) return *entry;
  }
  return std::nullopt;
}

}  // namespace millrace::base
