// A TCP proxy before an HTTP store that makes it as slow as a real one.
//
// It holds the bytes of all connections together to a rate, in each direction as on a full-duplex
// line, and lets every HTTP request wait for a while before the store sees it: a store far away.
// A pipelined request begins its wait when the one before it was passed on, as if the store
// answered one at a time. The bytes themselves are not changed, so signatures stay valid.
//
// One thread and epoll; answers go through a pipe with splice, uncopied, since the proxy shares the
// machine's cores with what is measured. Connections take turns, so none gets more than its share.
//
// Threads: Run is called once; Stop and counters() from any thread.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/limiter/request_scanner.h"
#include "bench/limiter/token_bucket.h"
#include "common/base/unique_fd.h"

namespace millrace::bench {

class Proxy {
 public:
  struct Options {
    std::string listen;             // "127.0.0.1:7071"; port 0 takes a free one
    std::string target;             // "127.0.0.1:7070"
    uint64_t bytes_per_second = 0;  // 0: as fast as it goes
    absl::Duration delay = absl::ZeroDuration();
  };

  struct Counters {
    uint64_t connections = 0;
    uint64_t connections_open = 0;
    uint64_t requests = 0;  // whose wait is over
    uint64_t bytes_to_store = 0;
    uint64_t bytes_to_client = 0;
    uint64_t malformed = 0;  // connections closed because what came was no HTTP/1.x
  };

  // Listens. InvalidArgument for an address that is none, and the errno of bind.
  static absl::StatusOr<std::unique_ptr<Proxy>> Create(const Options& options);
  ~Proxy();

  // The port it listens on.
  uint16_t port() const { return port_; }
  // Serves until Stop. Internal when epoll fails.
  absl::Status Run();
  void Stop();
  Counters counters() const;

 private:
  struct Connection;
  enum class Turn { kIdle, kMore, kStarved, kDead };

  struct Timer {
    absl::Time at;
    uint64_t connection;
    bool operator>(const Timer& other) const { return at > other.at; }
  };

  explicit Proxy(const Options& options);

  absl::Status Listen();
  void Accept();
  void Enqueue(Connection* connection);
  void Destroy(uint64_t id);
  void RunTimers(absl::Time now);
  void RunTurns(absl::Time now);
  absl::Duration WaitFor(absl::Time now);
  void OnEvent(uint64_t tag, uint32_t events);

  Turn TakeTurn(Connection* connection, absl::Time now);
  // Asks to be woken when `bucket` has bytes again.
  Turn Starve(TokenBucket* bucket, absl::Time now);
  // Client to store.
  Turn PumpRequests(Connection* connection, absl::Time now);
  // Sends what was released. kIdle when nothing (more) can be sent.
  Turn SendReleased(Connection* connection, absl::Time now);
  // Lets bytes of the next request pass once its wait is over. kMore when some were released.
  Turn Release(Connection* connection, absl::Time now);
  Turn ReceiveRequests(Connection* connection);
  // Store to client.
  Turn PumpAnswers(Connection* connection, absl::Time now);

  const Options options_;
  uint16_t port_ = 0;
  std::string target_address_;  // a sockaddr
  base::UniqueFd listener_;
  base::UniqueFd epoll_;
  base::UniqueFd stop_;

  // Used by Run's thread alone.
  TokenBucket to_store_;
  TokenBucket to_client_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Connection>> connections_;
  std::deque<uint64_t> turns_;
  std::deque<uint64_t> starved_;
  std::priority_queue<Timer, std::vector<Timer>, std::greater<Timer>> timers_;
  absl::Time refill_at_ = absl::InfiniteFuture();
  uint64_t next_id_ = 1;
  bool stopping_ = false;

  // Written by Run's thread, read by any.
  std::atomic<uint64_t> accepted_{0};
  std::atomic<uint64_t> open_{0};
  std::atomic<uint64_t> requests_{0};
  std::atomic<uint64_t> bytes_to_store_{0};
  std::atomic<uint64_t> bytes_to_client_{0};
  std::atomic<uint64_t> malformed_{0};
};

}  // namespace millrace::bench
