// The retrying store of registry.h with its clock and its dice as parameters, for tests.
#pragma once

#include <functional>
#include <memory>

#include "cache/store/registry.h"
#include "common/base/clock.h"

namespace millrace::store {

// `dice` returns a number in [0, 1); both must be safe for concurrent use and outlive the store.
std::shared_ptr<Store> NewRetryingStore(std::shared_ptr<Store> store, const RetryOptions& options,
                                        base::Clock* clock, std::function<double()> dice);

}  // namespace millrace::store
