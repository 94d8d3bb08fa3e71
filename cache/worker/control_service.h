// The control port: gRPC in front of a Worker. Checks each request, bounds how many there are, ends
// what nobody waits for; the gRPC health service answers beside it.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cache/worker/worker.h"

namespace millrace::worker {

struct ControlOptions {
  std::string address = ":7450";  // HOST:PORT; no host: every interface; port 0: any.
  // PEM files for mutual TLS: all three or none. Read again when they change.
  std::string certificate;
  std::string key;
  std::string authority;                         // Of the clients' certificates.
  absl::Duration look_every = absl::Seconds(5);  // At the files; whole seconds.
  // Loads, and clients that follow a drain, at once; more get ResourceExhausted. Each has a thread.
  int streams_max = 16;
};

class ControlService {
 public:
  // Listens when it returns. `worker` must outlive the service. InvalidArgument for certificates
  // that cannot be used; Unavailable when it cannot listen there.
  static absl::StatusOr<std::unique_ptr<ControlService>> Start(const ControlOptions& options,
                                                               Worker* worker);
  // Stops: calls on their way are cancelled and waited for.
  virtual ~ControlService() = default;

  virtual int port() const = 0;
};

}  // namespace millrace::worker
