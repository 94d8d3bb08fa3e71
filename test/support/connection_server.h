// A loopback TCP server that runs one function per connection, each in a thread of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <thread>
#include <vector>

#include "common/base/mutex.h"
#include "common/base/unique_fd.h"

namespace millrace::test {

class ConnectionServer {
 public:
  using Serve = std::function<void(base::UniqueFd connection)>;

  // Listens at once; `port` 0 takes a free one. `serve` is called from many threads.
  ConnectionServer(uint16_t port, Serve serve);
  // Ends all connections and waits for their threads.
  ~ConnectionServer();
  ConnectionServer(const ConnectionServer&) = delete;
  ConnectionServer& operator=(const ConnectionServer&) = delete;

  // 0 when the port could not be had.
  uint16_t port() const { return port_; }

 private:
  void AcceptLoop();

  const Serve serve_;
  uint16_t port_ = 0;
  base::UniqueFd listener_;
  base::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<int> open_ ABSL_GUARDED_BY(mutex_);  // Duplicates of the connections, to end them.
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mutex_);
  std::thread acceptor_;
};

}  // namespace millrace::test
