// The cache of a process that has none: it refuses every file. What is read through it is held in
// memory, and only as long as it is read (a mount with workers and without a tier).
#pragma once

#include <memory>

#include "cache/tier/tiered_cache.h"

namespace millrace::tier {

std::unique_ptr<TieredCache> NewNoCache();

}  // namespace millrace::tier
