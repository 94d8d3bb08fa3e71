#include "test/support/socket.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

#include "absl/time/clock.h"

namespace millrace::test {
namespace {

sockaddr_in Address(const char* host, uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  inet_pton(AF_INET, host, &address.sin_addr);
  return address;
}

void NoDelay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

}  // namespace

base::UniqueFd Listen(uint16_t port, uint16_t* bound_port) {
  base::UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in address = Address("127.0.0.1", port);
  socklen_t length = sizeof(address);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      listen(fd.get(), 128) != 0 ||
      getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return {};
  }
  *bound_port = ntohs(address.sin_port);
  return fd;
}

base::UniqueFd Accept(int listener) {
  while (true) {
    base::UniqueFd fd(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd.valid() && errno == EINTR) continue;
    if (fd.valid()) NoDelay(fd.get());
    return fd;
  }
}

base::UniqueFd Connect(const std::string& host, uint16_t port) {
  base::UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in address = Address(host == "localhost" ? "127.0.0.1" : host.c_str(), port);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return {};
  }
  NoDelay(fd.get());
  return fd;
}

uint16_t FreePort() {
  uint16_t port = 0;
  const base::UniqueFd listener = Listen(0, &port);
  return port;
}

bool WaitForPort(uint16_t port, absl::Duration timeout) {
  const absl::Time give_up = absl::Now() + timeout;
  while (!Connect("127.0.0.1", port).valid()) {
    if (absl::Now() > give_up) return false;
    poll(nullptr, 0, 20);
  }
  return true;
}

bool SendAll(int fd, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

bool ReceiveSome(int fd, std::string* buffer) {
  char piece[65536];
  while (true) {
    const ssize_t bytes = recv(fd, piece, sizeof(piece), 0);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) return false;
    buffer->append(piece, static_cast<size_t>(bytes));
    return true;
  }
}

void AwaitClose(int fd) {
  pollfd ready{fd, POLLRDHUP, 0};
  poll(&ready, 1, 30'000);
}

void ResetConnection(base::UniqueFd fd) {
  const linger abort{1, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
}

}  // namespace millrace::test
