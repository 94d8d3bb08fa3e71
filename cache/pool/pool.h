// The client of the workers: finds who holds a part of a file, asks it, and asks the next one, at
// last the store, when it does not answer. No fault of a worker is an error of a read.
//
// Used by the FUSE daemon, and by workers among themselves. Thread-safe; calls block.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cache/pool/placement.h"
#include "cache/store/store.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/clock.h"
#include "common/base/unique_fd.h"
#include "common/proto/data_protocol.h"

namespace millrace::pool {

// "--workers ADDRESS[,ADDRESS…]", repeatable: HOST:PORT; dns:NAME:PORT, a name whose SRV or A
// records are the members; unix:PATH, the socket of the worker on this node.
struct PoolOptions {
  std::vector<std::string> workers;
  std::string cluster = "millrace";
  std::string self;         // The id of the worker whose pool this is: never asked. Else empty.
  std::string peer;         // Who asks, for the workers' logs; empty: self, or the host's name.
  std::string certificate;  // PEM files for mutual TLS: all three or none.
  std::string key;
  std::string authority;
  absl::Duration connect_timeout = absl::Seconds(1);
  absl::Duration answer_timeout = absl::Seconds(10);  // Without a byte of an answer.
  absl::Duration members_refresh =
      absl::Seconds(5);  // How often names are resolved, members asked.
  // The --refresh of a mount whose names come from its sources' indexes (index_client.h), and what
  // an index may take: in memory, or in a directory. Zero: all names come from the store.
  absl::Duration index_refresh = absl::ZeroDuration();
  uint64_t index_bytes_max = uint64_t{256} << 20;
  std::string index_directory;
  base::Clock* clock = nullptr;  // Null: the machine's.
  uint64_t seed = 0;             // Of delays by chance; 0: by chance too.
};

struct MemberStatus {
  std::string address;  // HOST:PORT, or unix:PATH.
  std::string id;       // Empty until it has answered once.
  uint64_t capacity_bytes = 0;
  bool draining = false;
  bool reachable = false;  // The breaker is closed.
  std::string last_error;
};

struct PoolStats {
  uint64_t bytes_remote = 0;         // Had by a worker.
  uint64_t bytes_through_store = 0;  // A worker fetched them for this call.
  uint64_t bytes_short_circuit = 0;  // Of files whose descriptor was handed over, at open.
  uint64_t bypassed = 0;             // Ranges that came from the store because no worker answered.
  uint64_t faults = 0;               // Failed calls to workers.
  uint64_t damaged_frames = 0;
  uint64_t names_from_index = 0;  // Listings and questions for a name, and those that went to the
  uint64_t names_from_store = 0;  // store for want of an index that is new enough.
};

class Pool {
 public:
  // Checks the options, connects to nobody yet. InvalidArgument names what is wrong.
  static absl::StatusOr<std::unique_ptr<Pool>> Create(const PoolOptions& options);
  virtual ~Pool() = default;

  // The source as seen through the pool: gets from workers, from `store` what no worker gives.
  // `source` is its identity. The pool must outlive the store. In a worker's own pool, its place in
  // the ranking means `store`: who made that knows where its own bytes are. Names are those of
  // the source's index where PoolOptions ask for one, else the store's.
  virtual std::shared_ptr<store::Store> Wrap(std::string source,
                                             std::shared_ptr<store::Store> store) = 0;

  // For a worker that owns a part of the file and lacks it: the other ranks are asked for what they
  // have (Role::kCached), in order, then `store`. Brings an extent from its owner before the pool
  // changed, and a replica from the first in rank. Not all are asked, and none for long: as many
  // as there are replicas and two, and those that are draining.
  virtual std::shared_ptr<store::Store> WrapForOwner(std::string source,
                                                     std::shared_ptr<store::Store> store) = 0;

  // The file's descriptor from the worker of this node, if it has all of it, held by a lease as
  // long as the result lives. NotFound: it has not (yet), or there is no such worker.
  virtual absl::StatusOr<std::shared_ptr<const tier::OpenData>> OpenLocal(
      const tier::FileKey& file) = 0;

  // The answer to a question for an index (cache/index/answer.h), from the owner of (source, "",
  // extent 0) or who is next in rank. NotFound: it has no such source; Unavailable: it has no index
  // yet, or nobody answers. After a failure the sink has seen a prefix of no use.
  virtual absl::Status Index(const proto::IndexGet& get, store::BodySink sink,
                             const store::CallOptions& call) = 0;

  // Lets the owners of [offset, offset + length) load it, several at once. Returns when they have;
  // the bytes that are present then. Unavailable when no worker answers.
  virtual absl::StatusOr<proto::Done> Load(const tier::FileKey& file, uint64_t offset,
                                           uint64_t length, const store::CallOptions& call) = 0;

  virtual std::vector<MemberStatus> Members() const = 0;
  virtual PoolStats Stats() const = 0;
  // False until a member has answered.
  virtual bool has_local_worker() const = 0;
};

}  // namespace millrace::pool
