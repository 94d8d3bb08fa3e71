// Parsed options against the machine: may this mount be made here? And the defaults that depend on
// the machine.
//
// Looks only: nothing is created or changed. Errors: InvalidArgument for what the user wrote
// wrongly (exit 2), FailedPrecondition and NotFound for what is in the way (exit 1), each with the
// remedy. What these checks cannot exclude (another process acts in between) is caught later by
// whoever makes the thing.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/base/mount_table.h"
#include "fuse/options/options.h"

namespace millrace::options {

// Makes mountpoint and tier paths absolute, fills in the default tier, and checks all of them.
// `mounts` is the machine's mount table, `cache_base` the directory of default tiers
// (control::CacheBase()).
absl::Status ValidateMount(const std::vector<base::MountEntry>& mounts,
                           absl::string_view cache_base, MountOptions* options);

// Whether requests can come through io_uring, by the two switches a machine has for that: files
// with the text of the fuse module's parameter, and of the sysctl kernel.io_uring_disabled.
absl::Status CheckUringTransport(const std::string& module_parameter,
                                 const std::string& io_uring_disabled);

}  // namespace millrace::options
