// What opening a source reads of this machine's file system: for whoever starts the process that
// opens it, under a user who must be able to.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/store/credentials.h"

namespace millrace::store {

struct LocalFiles {
  std::vector<std::string> directories;  // The source itself, of file://.
  std::vector<std::string> files;        // Keys, profiles, certificates; they may be missing.
};

// Of URL or NAME=URL, as OpenSource takes them. Looks at nothing but the environment.
absl::StatusOr<LocalFiles> LocalFilesOf(absl::string_view source, const Environment& environment);

}  // namespace millrace::store
