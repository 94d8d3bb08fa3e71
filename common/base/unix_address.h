// The address of a Unix socket by its path, also where the path is longer than an address holds.
#pragma once

#include <sys/un.h>

#include <string>

#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace millrace::base {

// An address for `path`. A long path goes through its directory, which `directory` keeps open:
// keep it until the address was used. InvalidArgument when even the name alone is too long.
absl::StatusOr<sockaddr_un> UnixAddress(const std::string& path, UniqueFd* directory);

}  // namespace millrace::base
