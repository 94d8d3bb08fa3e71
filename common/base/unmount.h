// Takes a mount away, as root or with the program that lets everybody else do it.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace millrace::base {

// `lazy` detaches a mount that is in use: programs keep the files they have. EBUSY (ErrnoOf) when
// it is in use and not lazy; EINVAL when nothing is mounted there. Blocks for the length of a
// system call, or of a run of fusermount3.
absl::Status Unmount(const std::string& mountpoint, bool lazy);

}  // namespace millrace::base
