// What a mount reads of this machine: for the keeper, which gives the daemon a user who may.
#pragma once

#include <string>

#include "cache/store/local_files.h"
#include "fuse/options/options.h"

namespace millrace::options {

// Of all sources together, and the files of --worker-certificate. A source that is wrong is left
// out: opening it will say so.
store::LocalFiles LocalFilesOf(const MountOptions& options, const store::Environment& environment);

// The socket of this node's worker; empty: none is used.
std::string WorkerSocketOf(const MountOptions& options);

}  // namespace millrace::options
