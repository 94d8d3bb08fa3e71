// What the files of a mount are like, and so how they are opened.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "cache/store/store.h"

namespace millrace::vfs {

// What a mount's files are like decides how they are opened (ARCHITECTURE.md has the figures).
enum class Profile : uint8_t {
  // No OPEN at all, page cache kept: hot small files at native speed. Holds for the whole mount.
  kSmallFiles,
  // OPEN with passthrough: a complete file is read at native speed at any temperature.
  kLargeFiles,
  // Decided from a sample of the source before the first OPEN is answered.
  kAuto,
};
absl::string_view ProfileName(Profile profile);  // "small-files", …

// Small files, if at least nine of ten files are below 1 MiB and they hold half of the bytes.
// An empty sample says large files: passthrough is never slow.
Profile ChooseProfile(const std::vector<store::Entry>& sample);

}  // namespace millrace::vfs
