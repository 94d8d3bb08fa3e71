// A pool with its outside as parameters: for tests that have workers without sockets or names
// without a DNS server.
#pragma once

#include <memory>

#include "cache/pool/member.h"
#include "cache/pool/pool.h"
#include "cache/pool/resolver.h"

namespace millrace::pool {

struct PoolParts {
  Dialer dial;
  Resolver::LookUpFunction look_up;
};

absl::StatusOr<std::unique_ptr<Pool>> CreatePool(const PoolOptions& options, PoolParts parts);

}  // namespace millrace::pool
