// A cache worker: the cache of one machine with a door. What it keeps, it serves to mounts and to
// other workers over the data port and a Unix socket (common/proto/data_protocol.h); the control
// port (gRPC) is put in front of this class by main.cc.
//
// Thread-safe but for Start and Stop. Calls block, as long as they say.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cache/worker/options.h"
#include "common/metrics/metrics.h"
#include "common/net/address.h"
#include "common/proto/worker_api.h"

namespace millrace::worker {

// Told of progress from the calling thread, at least every half second; false ends the call with
// Cancelled. What was done stays.
using LoadObserver = absl::FunctionRef<bool(const proto::LoadProgress&)>;
using DrainObserver = absl::FunctionRef<bool(const proto::DrainProgress&)>;

class Worker {
 public:
  // Opens sources, cache and listeners; it serves when this returns. Each store is asked whether
  // it can be read: an error names the source. Errors leave nothing behind.
  static absl::StatusOr<std::unique_ptr<Worker>> Start(const WorkerOptions& options);
  virtual ~Worker() = default;

  // Takes no new connections, lets requests end for `grace`, ends the others, writes the journal
  // and the cache's clean mark. Once; afterwards only the destructor may be called.
  virtual absl::Status Stop(absl::Duration grace) = 0;

  // Where it listens, with the real ports.
  virtual net::Address data_address() const = 0;
  virtual std::string socket_path() const = 0;  // Empty: there is none.
  virtual int metrics_port() const = 0;
  virtual metrics::Metrics& metrics() = 0;

  virtual proto::WorkerReport Report() const = 0;

  // For these three and Load: NotFound for a source the worker was not started with, or an object
  // that the store has not; other errors are the store's.
  virtual absl::StatusOr<proto::LocateReply> Locate(const proto::LocateRequest& request) = 0;
  virtual absl::StatusOr<proto::StatReply> Stat(const proto::StatRequest& request) = 0;
  virtual absl::StatusOr<proto::ListReply> List(const proto::ListRequest& request) = 0;

  // Loads the parts that this worker owns of everything below the paths, and returns when they are
  // there. Files that fail are counted in the progress; the result is about the whole: Cancelled,
  // or that the names could not be listed.
  virtual absl::Status Load(const proto::LoadRequest& request, LoadObserver observer) = 0;

  // Drops what is cached at or below the path, in both spaces. Returns the bytes freed.
  virtual absl::StatusOr<uint64_t> Evict(const proto::EvictRequest& request) = 0;

  // From now on the worker says that it is draining, and hands what it owns to those who own it
  // without it. Idempotent: one drain per process. Returns at once.
  virtual void StartDrain() = 0;
  // Reports until the drain is done. FailedPrecondition where none was started.
  virtual absl::Status WatchDrain(DrainObserver observer) = 0;
};

}  // namespace millrace::worker
