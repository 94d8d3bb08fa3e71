// The files of a directory tree, listed once before anything is timed.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace millrace::bench {

// The regular files below `directory`, as paths that begin with it, sorted. Symbolic links and
// special files are left out. NotFound and the like name the directory that could not be read;
// FailedPrecondition when there is no file at all.
absl::StatusOr<std::vector<std::string>> ListFiles(const std::string& directory);

// `path` itself when it is a file, ListFiles when it is a directory.
absl::StatusOr<std::vector<std::string>> FilesAt(const std::string& path);

}  // namespace millrace::bench
