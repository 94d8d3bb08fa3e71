// Small text files, whole: configuration, records, files of /proc.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::base {

// The whole file. The errno is a payload (ErrnoOf); InvalidArgument when it is larger than
// `size_max`, so that a wrong path cannot fill the memory.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t size_max);

// Replaces the file at once: readers see the old text or the new, never a part. Not synced.
absl::Status WriteTextFile(const std::string& path, absl::string_view text, mode_t mode);

}  // namespace millrace::base
