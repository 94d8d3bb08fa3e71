// One worker as its clients know it: where it is, who it says it is, whether it answers, and the
// connections that are kept to it. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cache/pool/breaker.h"
#include "cache/pool/connection.h"
#include "cache/pool/pool.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "common/net/address.h"
#include "common/net/stream.h"
#include "common/proto/data_protocol.h"

namespace millrace::pool {

struct Endpoint {
  std::string shown;        // As people know it: HOST:PORT or unix:PATH.
  net::Address address;     // With a numeric host: connecting looks nothing up.
  std::string certificate;  // The name that the worker's certificate must have.

  bool operator==(const Endpoint& other) const {
    return shown == other.shown && address == other.address && certificate == other.certificate;
  }
};

// Connects, TLS included. The seam of tests that have workers without sockets.
using Dialer = std::function<absl::StatusOr<std::unique_ptr<net::Stream>>(const Endpoint& endpoint,
                                                                          absl::Duration timeout)>;

// What all members of a pool share. Must outlive them.
struct MemberContext {
  Dialer dial;
  proto::Hello hello;
  absl::Duration connect_timeout;
  base::Clock* clock = nullptr;
  std::atomic<uint64_t> faults{0};
  std::atomic<uint64_t> damaged_frames{0};
  // A member failed: somebody should look soon whether it is back.
  std::function<void()> on_failure;
};

class Member {
 public:
  // A client's threads, and a worker's, each have one; more wait.
  static constexpr size_t kConnectionsMax = 256;
  static constexpr size_t kIdleMax = 64;
  static constexpr absl::Duration kIdleTime = absl::Seconds(30);

  Member(Endpoint endpoint, MemberContext* context, uint64_t seed)
      : endpoint_(std::move(endpoint)), context_(context), breaker_(seed) {}

  const Endpoint& endpoint() const { return endpoint_; }
  bool is_local() const { return endpoint_.address.is_unix(); }
  // The breaker is closed. One relaxed load.
  bool usable() const { return usable_.load(std::memory_order_acquire); }
  // What it said last; an empty id until it has answered once.
  proto::Welcome welcome() const;

  // Runs `call` with a connection: a kept one, or a new one. A kept one that turns out to be closed
  // before a byte of the answer was used is replaced by a new one, once: `call` may run twice, and
  // says through `used` that it must not. Counts, logs (once a minute at most) and by-passes what
  // fails.
  using Call = absl::FunctionRef<Outcome(Connection& connection)>;
  Outcome Do(const Patience& patience, const bool* used, Call call);

  // A new connection that is the caller's, who reports how calls on it fail.
  absl::StatusOr<std::unique_ptr<Connection>> Detached();
  // Counts, logs and by-passes. REQUIRES: outcome.end is kTransport or kDamaged, or nothing is
  // done.
  void Report(const Outcome& outcome);

  // Is it there? Asks with a PING, or a HELLO on a new connection, and closes or opens the breaker.
  // Of several at once only one asks; an answer of the last second is good enough for `fresh`
  // false.
  bool Probe(bool fresh);
  // When it is to be probed next, on the clock's Monotonic(): as the breaker wants, and every
  // `refresh` while it answers.
  absl::Duration NextProbe(absl::Duration refresh) const;

  // Closes kept connections that nobody used for kIdleTime.
  void CloseIdle();
  MemberStatus Status() const;
  // Why it is not placed although it answers. Shown until the next fault or an empty text.
  void SetComplaint(const std::string& complaint);

 private:
  struct Taken {
    std::unique_ptr<Connection> connection;
    bool kept = false;
  };
  Outcome Take(const Patience& patience, bool may_be_kept, Taken* taken);
  void Give(std::unique_ptr<Connection> connection);
  absl::StatusOr<std::unique_ptr<Connection>> Dial();
  void Failed(const Outcome& outcome);
  void DropIdle();
  bool Ask();
  void Learn(const proto::Welcome& welcome) ABSL_LOCKS_EXCLUDED(mutex_);

  const Endpoint endpoint_;
  MemberContext* const context_;
  std::atomic<bool> usable_{false};

  mutable base::Mutex mutex_;
  base::CondVar changed_;
  Breaker breaker_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Connection>> idle_ ABSL_GUARDED_BY(mutex_);  // Last used last.
  size_t connections_ ABSL_GUARDED_BY(mutex_) = 0;
  proto::Welcome welcome_ ABSL_GUARDED_BY(mutex_);
  std::string last_error_ ABSL_GUARDED_BY(mutex_);
  std::string complaint_ ABSL_GUARDED_BY(mutex_);
  absl::Duration logged_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
  bool probing_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration probed_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
};

}  // namespace millrace::pool
