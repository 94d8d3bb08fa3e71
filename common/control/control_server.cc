#include "common/control/control_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/control/line_socket.h"
#include "common/control/protocol.h"

namespace millrace::control {
namespace {

// A reader that takes nothing for this long is stuck, not slow: its handler must not wait on it.
constexpr absl::Duration kWriteDeadline = absl::Seconds(5);

class SocketStream : public ResponseStream {
 public:
  SocketStream(int fd, const std::atomic<bool>* stopping) : fd_(fd), stopping_(stopping) {}

  absl::Status Progress(const base::Json& line) override {
    return WriteLine(fd_, base::JsonLine(line), kWriteDeadline);
  }

  void Result(base::Json line) override {
    if (line.is_object()) result_ = std::move(line);
  }

  bool Cancelled() override { return stopping_->load(std::memory_order_relaxed) || PeerGone(fd_); }

  base::Json TakeResult() {
    result_["done"] = true;
    return std::move(result_);
  }

 private:
  const int fd_;
  const std::atomic<bool>* const stopping_;
  base::Json result_ = base::Json::object();
};

}  // namespace

struct ControlServer::Connection {
  explicit Connection(base::UniqueFd fd) : socket(std::move(fd)) {}
  const base::UniqueFd socket;
  std::thread thread;
  std::atomic<bool> ended{false};
};

absl::StatusOr<std::unique_ptr<ControlServer>> ControlServer::Start(Options options,
                                                                    Handler handler) {
  base::UniqueFd listener = std::move(options.listener);
  if (!listener.valid()) {
    ASSIGN_OR_RETURN(listener, ListenAt(options.socket_path, SOCK_STREAM));
  }
  base::UniqueFd wakeup(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wakeup.valid()) return base::ErrnoStatus(errno, "eventfd");
  std::unique_ptr<ControlServer> server(new ControlServer(std::move(options), std::move(handler),
                                                          std::move(listener), std::move(wakeup)));
  server->acceptor_ = std::thread([raw = server.get()] { raw->Accept(); });
  return server;
}

ControlServer::ControlServer(Options options, Handler handler, base::UniqueFd listener,
                             base::UniqueFd wakeup)
    : options_(std::move(options)),
      handler_(std::move(handler)),
      listener_(std::move(listener)),
      wakeup_(std::move(wakeup)) {}

ControlServer::~ControlServer() { Stop(); }

void ControlServer::Stop() {
  if (stopping_.exchange(true)) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wakeup_.get(), &one, sizeof(one));
  acceptor_.join();
  // Nobody adds to the list any more. Only the reading half is shut: a handler that ends may still
  // say why.
  std::list<std::unique_ptr<Connection>> connections;
  {
    base::MutexLock lock(&mutex_);
    connections.swap(connections_);
  }
  for (const auto& connection : connections) shutdown(connection->socket.get(), SHUT_RD);
  for (const auto& connection : connections) connection->thread.join();
  if (!options_.socket_path.empty()) unlink(options_.socket_path.c_str());
}

void ControlServer::Accept() {
  while (!stopping_.load()) {
    pollfd waited[2] = {{listener_.get(), POLLIN, 0}, {wakeup_.get(), POLLIN, 0}};
    if (poll(waited, 2, -1) < 0 && errno != EINTR) {
      base::Log(base::Severity::kError, "control socket failed",
                {{"cause", base::ErrnoStatus(errno, "poll").ToString()}});
      return;
    }
    JoinEnded();
    if ((waited[0].revents & POLLIN) == 0) continue;
    base::UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket.valid()) {
      Admit(std::move(socket));
    } else if (errno == EMFILE || errno == ENFILE) {
      // The connection stays in the backlog and poll reports it at once: do not spin on it.
      pollfd wakeup = {wakeup_.get(), POLLIN, 0};
      poll(&wakeup, 1, 100);
    }
  }
}

void ControlServer::Admit(base::UniqueFd socket) {
  absl::Status status = CheckPeer(socket.get());
  base::MutexLock lock(&mutex_);
  if (status.ok() && connections_.size() >= kConnectionsMax) {
    status = absl::ResourceExhaustedError(
        absl::StrCat("more than ", kConnectionsMax,
                     " commands talk to this mount at once; wait until one of them has ended"));
  }
  if (!status.ok()) {
    // One attempt: the acceptor must not wait for a client.
    (void)WriteLine(socket.get(), base::JsonLine(ErrorLine(status)), absl::ZeroDuration());
    return;
  }
  connections_.push_back(std::make_unique<Connection>(std::move(socket)));
  Connection* const connection = connections_.back().get();
  connection->thread = std::thread([this, connection] { Serve(connection); });
}

void ControlServer::Serve(Connection* connection) {
  Answer(connection);
  // The descriptor closes only when the thread is joined, perhaps much later: the peer must see
  // the end now.
  shutdown(connection->socket.get(), SHUT_RDWR);
  connection->ended.store(true);
  // Wakes the acceptor to join this thread.
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wakeup_.get(), &one, sizeof(one));
}

void ControlServer::Answer(Connection* connection) {
  const int fd = connection->socket.get();
  LineReader reader(fd, kRequestSizeMax);
  absl::StatusOr<absl::optional<std::string>> line = reader.ReadLine(options_.read_deadline);
  if (line.ok() && !line->has_value()) return;  // Came and went.
  SocketStream stream(fd, &stopping_);
  const absl::Status status = [&]() -> absl::Status {
    RETURN_IF_ERROR(line.status());
    ASSIGN_OR_RETURN(const base::Json request, base::ParseJson(**line));
    if (base::JsonString(request, "op").empty()) {
      return absl::InvalidArgumentError("not a request: an object with a field \"op\" is expected");
    }
    try {
      return handler_(request, stream);
    } catch (const std::exception& error) {
      // Nothing of ours throws; a library below a handler may (bad_alloc, system_error).
      return absl::InternalError(absl::StrCat("request failed: ", error.what()));
    }
  }();
  // A peer that left does not get its answer; there is nobody to tell.
  (void)WriteLine(fd, base::JsonLine(status.ok() ? stream.TakeResult() : ErrorLine(status)),
                  kWriteDeadline);
}

void ControlServer::JoinEnded() {
  uint64_t count;
  [[maybe_unused]] const ssize_t drained = read(wakeup_.get(), &count, sizeof(count));
  std::list<std::unique_ptr<Connection>> ended;
  {
    base::MutexLock lock(&mutex_);
    for (auto it = connections_.begin(); it != connections_.end();) {
      const auto next = std::next(it);
      if ((*it)->ended.load()) ended.splice(ended.end(), connections_, it);
      it = next;
    }
  }
  for (const auto& connection : ended) connection->thread.join();
}

}  // namespace millrace::control
