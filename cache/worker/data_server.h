// The doors of a worker: the data port and the Unix socket. Threads that share one epoll serve
// connections, each as long as there is something to send; a connection that waits, for its client
// or for bytes on their way, has no thread. So many idle or waiting clients are cheap, a slow one
// holds at most one thread, and back-pressure is the socket's.
//
// Thread-safe.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cache/index/index_keeper.h"
#include "cache/worker/files.h"
#include "cache/worker/served_connection.h"
#include "common/base/clock.h"
#include "common/base/unique_fd.h"
#include "common/net/tls.h"
#include "common/proto/data_protocol.h"

namespace millrace::worker {

// Told what the doors see. Thread-safe.
class DoorObserver {
 public:
  virtual ~DoorObserver() = default;
  virtual void OnRefused(Refusal refusal) = 0;
  virtual void OnSent(size_t source, fetch::Origin origin, uint64_t bytes) = 0;
  virtual void OnAnswered(size_t source, fetch::Origin origin, absl::Duration duration) = 0;
  virtual void OnHandedOver(absl::string_view source, uint64_t file_size) = 0;
};

struct DataServerOptions {
  std::string cluster;
  std::function<proto::Welcome()> welcome;
  std::optional<gid_t> socket_group;  // May use the Unix socket, beside root and this user.
  net::Tls* tls = nullptr;            // For TCP; null: plain.
  base::Clock* clock = nullptr;
  // For tests: the user that this process counts as.
  std::optional<uid_t> own_uid;
  size_t connections_max = 4096;
  size_t threads_max = 128;
  // Buffers read into or held for clients at once, of the fetch spaces' budget.
  size_t blocks_max = 256;
  absl::Duration progress_timeout = absl::Seconds(10);
  absl::Duration tick = absl::Milliseconds(100);  // How often overdue connections are looked for.
};

class DataServer {
 public:
  struct Listener {
    base::UniqueFd socket;  // Listening.
    bool is_unix = false;
  };
  // Serves when it returns. `files`, `indexes` and `observer` must outlive it; fetches must have
  // ended (Files::Stop) before it is destroyed.
  static absl::StatusOr<std::unique_ptr<DataServer>> Start(const DataServerOptions& options,
                                                           std::vector<Listener> listeners,
                                                           Files* files,
                                                           index::IndexKeeper* indexes,
                                                           DoorObserver* observer);
  virtual ~DataServer() = default;

  // Closes the listeners.
  virtual void StopAccepting() = 0;
  // True when no request is on its way any more, or false after `grace`.
  virtual bool AwaitIdle(absl::Duration grace) = 0;
  // Ends all connections and threads. Idempotent.
  virtual void Stop() = 0;

  virtual size_t connections() const = 0;
  virtual uint64_t leases() const = 0;
  virtual size_t threads() const = 0;
};

}  // namespace millrace::worker
