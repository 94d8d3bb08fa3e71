// What a mount reads of this machine: for the keeper, which gives the daemon a user who may.
#pragma once

#include "cache/store/local_files.h"
#include "fuse/options/options.h"

namespace millrace::options {

// Of all sources together, and the files of --worker-certificate. A source that is wrong is left
// out: opening it will say so.
store::LocalFiles LocalFilesOf(const MountOptions& options, const store::Environment& environment);

}  // namespace millrace::options
