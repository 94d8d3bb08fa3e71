// The files that the worker of this node has handed over: their descriptors, and the leases that
// keep it from evicting them. Thread-safe.
//
// All leases are of one connection, which ends with the process, and them with it. When it breaks,
// descriptors stay readable; the next file is asked for on a new one.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "cache/pool/member.h"
#include "cache/tier/tiered_cache.h"

namespace millrace::pool {

class Leases : public std::enable_shared_from_this<Leases> {
 public:
  explicit Leases(MemberContext* context) : context_(context) {}

  // Asks `local`. NotFound: it has not all of the file. Unavailable: it does not answer.
  absl::StatusOr<std::shared_ptr<const tier::OpenData>> Open(const std::shared_ptr<Member>& local,
                                                             const tier::FileKey& file);
  // Drops the connection: nothing is asked any more, and leases that still live do nothing. Before
  // the context ends.
  void Close();

 private:
  class Leased;
  void Release(uint64_t generation, uint64_t lease);
  // The leases of this connection hold, as far as anybody has noticed.
  bool Holds(uint64_t generation) const {
    return holds_.load(std::memory_order_relaxed) == generation;
  }
  void Drop() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  MemberContext* const context_;
  base::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<Connection> connection_ ABSL_GUARDED_BY(mutex_);
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;  // Of the connection.
  std::atomic<uint64_t> holds_{0};                   // The same; 0 without a connection.
};

}  // namespace millrace::pool
