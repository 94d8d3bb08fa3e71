// A sample of a store that has real directories, for its Store::Sample.
#pragma once

#include <vector>

#include "cache/store/store.h"

namespace millrace::store {

// Up to `max_objects` objects from one page each of the root and of directories below it, breadth
// first. Looks into `directories_max` directories at most, however few objects they hold. The root
// must be there; another directory that went away or is closed to us is no sample.
absl::StatusOr<std::vector<Entry>> SampleDirectories(Store& store, size_t max_objects,
                                                     size_t directories_max,
                                                     const CallOptions& call);

}  // namespace millrace::store
