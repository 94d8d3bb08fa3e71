// Asks a worker on its control port. The connection is made by the first call that needs it and
// again after it was lost; a call that finds nobody fails within `connect_timeout`.
//
// Thread-safe; calls block.
//
// Errors, beside the worker's own:
//   Unavailable       nobody answers at the address, or the connection was lost during the call;
//                     also what a failed TLS handshake looks like
//   DeadlineExceeded  the worker said nothing for `answer_timeout`
//   Cancelled         `cancelled` became true, or the caller's `report` returned false
// The message names the address.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/proto/worker_api.h"

namespace millrace::proto {

inline constexpr uint16_t kControlPort = 7450;

struct WorkerClientOptions {
  std::string address;  // "HOST:PORT" or "[IPv6]:PORT".
  // PEM files for mutual TLS: all three or none. Read again when they change.
  std::string certificate;
  std::string key;
  std::string authority;
  std::string server_name;  // The worker's certificate must be for it; empty: the address's host.
  absl::Duration connect_timeout = absl::Seconds(3);
  absl::Duration answer_timeout = absl::Seconds(60);
  const std::atomic<bool>* cancelled = nullptr;  // Looked at every 100 ms; may be null.
};

class WorkerClient {
 public:
  // Connects to nobody yet. InvalidArgument, or the errno's code, for files that cannot be used.
  static absl::StatusOr<std::unique_ptr<WorkerClient>> Create(const WorkerClientOptions& options);
  virtual ~WorkerClient() = default;

  virtual absl::StatusOr<LocateReply> Locate(const LocateRequest& request) = 0;
  virtual absl::StatusOr<StatReply> Stat(const StatRequest& request) = 0;
  virtual absl::StatusOr<ListReply> List(const ListRequest& request) = 0;
  virtual absl::StatusOr<uint64_t> Evict(const EvictRequest& request) = 0;  // Bytes freed.
  virtual absl::StatusOr<WorkerReport> Report() = 0;

  // `report` gets each progress, on the calling thread; false ends the call. The last one is
  // returned. To end a Load this way ends it in the worker too; a drain goes on there.
  virtual absl::StatusOr<LoadProgress> Load(
      const LoadRequest& request, absl::FunctionRef<bool(const LoadProgress&)> report) = 0;
  virtual absl::StatusOr<DrainProgress> Drain(
      bool watch_only, absl::FunctionRef<bool(const DrainProgress&)> report) = 0;
};

}  // namespace millrace::proto
