// A directory of this machine (or of a network file system mounted on it) as a store.
//
// No name leads out of the root: paths are resolved by the kernel with openat2(RESOLVE_BENEATH). A
// symbolic link that stays inside the root is followed; one that leaves it, or is absolute, does
// not exist. Neither do devices, sockets and pipes. On kernels without openat2 (before 5.6) no
// symbolic link is followed.
//
// A version is "<mtime ns>-<size>".
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cache/store/store.h"

namespace millrace::store {

// `root` is an absolute path. NotFound or PermissionDenied names it and the cause.
absl::StatusOr<std::shared_ptr<Store>> NewFileStore(const std::string& root);

}  // namespace millrace::store
