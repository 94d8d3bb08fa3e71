#include "test/support/connection_server.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <utility>

#include "test/support/socket.h"

namespace millrace::test {

ConnectionServer::ConnectionServer(uint16_t port, Serve serve) : serve_(std::move(serve)) {
  listener_ = Listen(port, &port_);
  if (listener_.valid()) acceptor_ = std::thread([this] { AcceptLoop(); });
}

ConnectionServer::~ConnectionServer() {
  std::vector<std::thread> threads;
  {
    base::MutexLock lock(&mutex_);
    stopping_ = true;
    for (const int fd : open_) shutdown(fd, SHUT_RDWR);
    threads.swap(threads_);
  }
  if (listener_.valid()) shutdown(listener_.get(), SHUT_RDWR);
  if (acceptor_.joinable()) acceptor_.join();
  for (std::thread& thread : threads) thread.join();
}

void ConnectionServer::AcceptLoop() {
  while (true) {
    base::UniqueFd connection = Accept(listener_.get());
    if (!connection.valid()) return;
    base::MutexLock lock(&mutex_);
    if (stopping_) return;
    // `serve_` closes its descriptor when it likes; the duplicate is ours.
    const int watched = fcntl(connection.get(), F_DUPFD_CLOEXEC, 0);
    open_.insert(watched);
    threads_.emplace_back([this, watched, fd = connection.Release()] {
      serve_(base::UniqueFd(fd));
      base::MutexLock relock(&mutex_);
      open_.erase(watched);
      // A reset must not wait for the duplicate: closing it is what sends it.
      close(watched);
    });
  }
}

}  // namespace millrace::test
