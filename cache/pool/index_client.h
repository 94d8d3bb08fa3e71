// The names of a source out of the index that its owner keeps: a store whose List, Stat and Sample
// are answered here, without asking the real store, when the caller can do with an answer of the
// index's age. Everything else, and everything while there is no index that is new enough, is the
// real store's.
//
// How old an answer is. An index is as old as the beginning of the listing that last confirmed it.
// The worker tells its age in milliseconds, and it counts from the moment it was asked for: no
// clocks are compared, and an age is too high, if anything. CallOptions::age_max is the caller's
// bound (the mount's --refresh, less what it needs itself: fuse/SEMANTICS.md), ListPage::age is
// what he gets.
//
// Names that the index does not have are asked of the store: they may be new.
//
// Where it is kept. In a file without a name, in memory or in a directory; while one version
// replaces another there are two. A larger index than allowed is not fetched.
//
// Threads. Thread-safe. One thread asks for the index, from the first call that may use it on,
// every twelfth part of `refresh`, and stops while nobody used it for ten times `refresh`.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cache/store/store_decorator.h"
#include "common/base/clock.h"
#include "common/proto/data_protocol.h"

namespace millrace::pool {

struct IndexClientOptions {
  std::string source;  // Its identity.
  // Of the mount. Below ten seconds no index is ever new enough, and none is asked for.
  absl::Duration refresh = absl::Seconds(60);
  uint64_t bytes_max = uint64_t{256} << 20;
  std::string directory;  // Of the file; empty: in memory.
  // How long from the first call on calls wait for the index before they ask the store.
  absl::Duration first_wait = absl::Milliseconds(500);
  base::Clock* clock = nullptr;  // Null: the machine's.
};

struct IndexClientStats {
  uint64_t entries = 0;  // 0: there is no index.
  uint64_t file_bytes = 0;
  absl::Duration age = absl::InfiniteDuration();
  uint64_t answers = 0;         // Calls answered from an index.
  uint64_t asked_store = 0;     // Calls that could have been.
  uint64_t bytes_received = 0;  // Indexes and deltas.
};

class IndexClient : public store::StoreDecorator {
 public:
  using store::StoreDecorator::StoreDecorator;

  // Asks the pool for the index: Pool::Index.
  using Fetch = std::function<absl::Status(const proto::IndexGet& get, store::BodySink sink,
                                           const store::CallOptions& call)>;

  // The pool that `fetch` asks must outlive the result.
  static std::shared_ptr<IndexClient> Create(const IndexClientOptions& options,
                                             std::shared_ptr<store::Store> store, Fetch fetch);

  // Asks for the index now, and returns when it is there: what the thread does by itself.
  virtual absl::Status Update() = 0;

  virtual IndexClientStats Stats() const = 0;
};

}  // namespace millrace::pool
