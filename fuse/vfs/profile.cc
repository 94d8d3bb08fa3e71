#include "fuse/vfs/profile.h"

namespace millrace::vfs {
namespace {

constexpr uint64_t kSmallFile = 1 << 20;

}  // namespace

absl::string_view ProfileName(Profile profile) {
  switch (profile) {
    case Profile::kSmallFiles:
      return "small-files";
    case Profile::kLargeFiles:
      return "large-files";
    case Profile::kAuto:
      return "auto";
  }
  return "auto";
}

Profile ChooseProfile(const std::vector<store::Entry>& sample) {
  uint64_t files = 0;
  uint64_t small_files = 0;
  double bytes = 0;
  double small_bytes = 0;
  for (const store::Entry& entry : sample) {
    if (entry.kind == store::EntryKind::kDirectory) continue;
    ++files;
    bytes += static_cast<double>(entry.size);
    if (entry.size >= kSmallFile) continue;
    ++small_files;
    small_bytes += static_cast<double>(entry.size);
  }
  const bool small = files > 0 && small_files * 10 >= files * 9 && small_bytes * 2 >= bytes;
  return small ? Profile::kSmallFiles : Profile::kLargeFiles;
}

}  // namespace millrace::vfs
