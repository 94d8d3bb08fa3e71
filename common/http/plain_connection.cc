#include "common/http/plain_connection.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace millrace::http {
namespace {

PlainConnection::Outcome OutcomeOfErrno() {
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
    return PlainConnection::Outcome::kNothingYet;
  }
  return PlainConnection::Outcome::kReset;
}

}  // namespace

bool PlainConnection::Adopt(int socket, std::string origin) {
  Close();
  socket_ = socket;
  const timeval patience = {.tv_sec = 0, .tv_usec = kPatienceMillis * 1000};
  const int flags = fcntl(socket_, F_GETFL);
  if (flags < 0 || fcntl(socket_, F_SETFL, flags & ~O_NONBLOCK) != 0 ||
      setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) != 0 ||
      setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) != 0) {
    Close();
    return false;
  }
  origin_ = std::move(origin);
  if (buffer_ == nullptr) buffer_ = std::make_unique<char[]>(kBufferBytes);
  return true;
}

void PlainConnection::Close() {
  if (socket_ >= 0) close(socket_);
  socket_ = -1;
  origin_.clear();
}

PlainConnection::Outcome PlainConnection::Send(absl::string_view* data) {
  const ssize_t sent = send(socket_, data->data(), data->size(), MSG_NOSIGNAL);
  if (sent < 0) return OutcomeOfErrno();
  data->remove_prefix(static_cast<size_t>(sent));
  return data->empty() ? Outcome::kDone : Outcome::kNothingYet;
}

PlainConnection::Outcome PlainConnection::Receive(size_t size, absl::string_view* data) {
  const ssize_t got = recv(socket_, buffer_.get(), std::min(size, kBufferBytes), 0);
  if (got < 0) return OutcomeOfErrno();
  if (got == 0) return Outcome::kClosed;
  *data = absl::string_view(buffer_.get(), static_cast<size_t>(got));
  return Outcome::kDone;
}

}  // namespace millrace::http
