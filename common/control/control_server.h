// The daemon's side of the control protocol: a Unix socket, one request per connection.
//
// One thread accepts; each connection has its own short-lived thread, kConnectionsMax at most (a
// 17th gets an error line). A request must arrive within the read deadline, and the peer must be
// this user or root. What is not a request gets one error line and the connection is closed.
// Nothing thrown by a handler gets out.
#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/json.h"
#include "common/base/mutex.h"
#include "common/base/unique_fd.h"

namespace millrace::control {

// Where a handler writes its answer. Used by the handler's thread alone, except Cancelled().
class ResponseStream {
 public:
  virtual ~ResponseStream() = default;
  // One line before the last, such as progress. An error means that nobody reads any more: the
  // handler should end.
  virtual absl::Status Progress(const base::Json& line) = 0;
  // The fields of the last line; "done": true is added. Without a call it is {"done": true}.
  virtual void Result(base::Json line) = 0;
  // The peer hung up, or the server is stopping. Long handlers ask several times a second.
  virtual bool Cancelled() = 0;
};

class ControlServer {
 public:
  static constexpr size_t kConnectionsMax = 16;

  // Runs in a connection's thread, many at a time. An error becomes the error line.
  using Handler = std::function<absl::Status(const base::Json& request, ResponseStream& stream)>;

  struct Options {
    std::string socket_path;  // Listened at, and removed at the end.
    // Or one that listens already, and outlives this server; `socket_path` is empty then.
    base::UniqueFd listener;
    absl::Duration read_deadline = absl::Seconds(5);
  };

  // Listens when it returns. `handler` must be callable until Stop() has returned.
  static absl::StatusOr<std::unique_ptr<ControlServer>> Start(Options options, Handler handler);
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  // Accepts nothing more, cancels the running handlers and waits for them. Idempotent.
  void Stop();

 private:
  struct Connection;

  ControlServer(Options options, Handler handler, base::UniqueFd listener, base::UniqueFd wakeup);
  void Accept();
  void Admit(base::UniqueFd socket);
  void Serve(Connection* connection);
  void Answer(Connection* connection);
  void JoinEnded() ABSL_LOCKS_EXCLUDED(mutex_);

  // Constant after construction.
  const Options options_;
  const Handler handler_;
  const base::UniqueFd listener_;
  const base::UniqueFd wakeup_;  // An eventfd that ends the accept thread's wait.

  std::atomic<bool> stopping_{false};
  std::thread acceptor_;

  base::Mutex mutex_;
  std::list<std::unique_ptr<Connection>> connections_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::control
