#include "fuse/keeper/line_server.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/control/line_socket.h"
#include "common/control/protocol.h"

namespace millrace::keeper {
namespace {

constexpr absl::Duration kRequestTimeout = absl::Seconds(5);

}  // namespace

LineServer::LineServer(PollLoop* loop, int listener, Handler handler)
    : loop_(loop), listener_(listener), handler_(std::move(handler)) {
  watch_ = loop_->Watch(listener_, POLLIN, [this](short) { Accept(); });
}

void LineServer::Accept() {
  base::UniqueFd socket(accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) return;
  absl::Status status = control::CheckPeer(socket.get());
  if (status.ok() && connections_.size() >= kConnectionsMax) {
    status = absl::ResourceExhaustedError("too many commands talk to this keeper at once");
  }
  if (!status.ok()) {
    (void)control::WriteLine(socket.get(), base::JsonLine(control::ErrorLine(status)),
                             absl::ZeroDuration());
    return;
  }
  const uint64_t id = next_id_++;
  Connection& connection = connections_[id];
  connection.socket = std::move(socket);
  connection.watch =
      loop_->Watch(connection.socket.get(), POLLIN, [this, id](short) { OnReadable(id); });
  connection.timeout = loop_->After(kRequestTimeout, [this, id] {
    Reply(id, absl::DeadlineExceededError("no request came in time"));
  });
}

void LineServer::OnReadable(uint64_t id) {
  Connection& connection = connections_.at(id);
  char chunk[4096];
  const ssize_t size = recv(connection.socket.get(), chunk, sizeof(chunk), 0);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (size <= 0) {
    connections_.erase(id);
    return;
  }
  connection.received.append(chunk, static_cast<size_t>(size));
  const size_t newline = connection.received.find('\n');
  if (newline == std::string::npos) {
    if (connection.received.size() < control::kRequestSizeMax) return;
    return Reply(id, absl::InvalidArgumentError("the request is too long"));
  }
  // One request a connection: what else comes, the client's leaving included, is not looked at.
  connection.watch.Reset();
  connection.timeout.Reset();
  Handle(id, connection.received.substr(0, newline));
}

void LineServer::Handle(uint64_t id, const std::string& line) {
  const absl::StatusOr<base::Json> request = base::ParseJson(line);
  if (!request.ok()) return Reply(id, request.status());
  handler_(*request, [weak = std::weak_ptr<LineServer*>(self_),
                      id](const absl::StatusOr<base::Json>& answer) {
    if (const std::shared_ptr<LineServer*> self = weak.lock()) (*self)->Reply(id, answer);
  });
}

void LineServer::Reply(uint64_t id, const absl::StatusOr<base::Json>& answer) {
  const auto connection = connections_.find(id);
  if (connection == connections_.end()) return;
  base::Json line = answer.ok() ? *answer : control::ErrorLine(answer.status());
  line["done"] = true;
  // It fits into an empty socket buffer; a client that is gone does not get it.
  (void)control::WriteLine(connection->second.socket.get(), base::JsonLine(line),
                           absl::ZeroDuration());
  connections_.erase(connection);
}

}  // namespace millrace::keeper
