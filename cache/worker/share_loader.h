// Loads what a worker owns of the files below some paths of a source: walks the store's listings,
// and keeps a bounded number of fetches on their way.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cache/worker/files.h"
#include "cache/worker/worker.h"
#include "common/base/clock.h"

namespace millrace::worker {

// Blocks until all is there, the observer has had enough (Cancelled), or the names cannot be listed
// (the store's error). A file that fails is counted in the progress. No paths: the whole source.
absl::Status LoadShare(Files& files, const Files::Source& source,
                       const std::vector<std::string>& paths, base::Clock& clock,
                       LoadObserver observer);

}  // namespace millrace::worker
