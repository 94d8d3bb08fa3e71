#include "fuse/vfs/name_rules.h"

#include <limits>

#include "absl/strings/str_cat.h"

namespace millrace::vfs {

Hidden HiddenByName(absl::string_view name) {
  if (name.empty() || name.back() == '/') return Hidden::kMarker;
  if (name == "." || name == "..") return Hidden::kDots;
  for (const char c : name) {
    if (c == '/') return Hidden::kSlash;
    if (c == '\0') return Hidden::kNul;
  }
  if (name.size() > kNameBytesMax) return Hidden::kTooLong;
  return Hidden::kNo;
}

Hidden HiddenByRule(const store::Entry& entry) {
  const Hidden by_name = HiddenByName(entry.name);
  if (by_name != Hidden::kNo || entry.kind == store::EntryKind::kDirectory) return by_name;
  // The kernel's file sizes are signed.
  if (entry.size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return Hidden::kTooLarge;
  }
  if (entry.version.size() > std::numeric_limits<uint16_t>::max()) return Hidden::kVersionTooLong;
  return Hidden::kNo;
}

absl::string_view HiddenReason(Hidden hidden) {
  switch (hidden) {
    case Hidden::kNo:
      return "shown";
    case Hidden::kMarker:
      return "directory marker";
    case Hidden::kDots:
      return "dot or dot-dot";
    case Hidden::kSlash:
      return "slash in name";
    case Hidden::kNul:
      return "NUL in name";
    case Hidden::kTooLong:
      return "name too long";
    case Hidden::kTooLarge:
      return "size over 2^63-1";
    case Hidden::kVersionTooLong:
      return "version too long";
    case Hidden::kFileAndDirectory:
      return "file of a directory's name";
    case Hidden::kDuplicate:
      return "duplicate name";
  }
  return "unknown";
}

void HiddenCounts::Count(Hidden hidden, absl::string_view name) {
  if (hidden == Hidden::kNo) return;
  constexpr size_t kExampleBytesMax = 300;
  if (total() == 0) example_ = std::string(name.substr(0, kExampleBytesMax));
  ++counts_[static_cast<size_t>(hidden)];
}

uint64_t HiddenCounts::total() const {
  uint64_t sum = 0;
  for (const uint32_t count : counts_) sum += count;
  return sum;
}

std::string HiddenCounts::ToString() const {
  std::string text;
  for (size_t i = 1; i < kHiddenReasons; ++i) {
    if (counts_[i] == 0) continue;
    absl::StrAppend(&text, text.empty() ? "" : ", ", HiddenReason(static_cast<Hidden>(i)), ": ",
                    counts_[i]);
  }
  return text;
}

}  // namespace millrace::vfs
