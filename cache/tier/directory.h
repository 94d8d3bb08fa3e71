// What the tiers need of directories, symbolic links never followed. Stateless.
#pragma once

#include <dirent.h>

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace millrace::tier {

absl::StatusOr<base::UniqueFd> OpenDirectoryAt(int at, const std::string& name);
// The same, made first if it is missing (mode 0700).
absl::StatusOr<base::UniqueFd> MakeDirectoryAt(int at, const std::string& name);

// Files made in the directory from now on have no access times, nor do they keep any when they are
// moved. Where the file system knows such a thing (ext4, XFS, tmpfs since Linux 6.6); else nothing.
void ForgoAccessTimes(int directory);

// Calls `each` with every name but "." and "..".
absl::Status ForEachName(int directory, absl::FunctionRef<void(const char* name)> each);
// The same with the kind of each, where the file system tells it (d_type).
absl::Status ForEachEntry(int directory, absl::FunctionRef<void(const dirent& entry)> each);

// Up to 4 KiB of a small file.
absl::StatusOr<std::string> ReadSmallFile(int at, const char* name);

}  // namespace millrace::tier
