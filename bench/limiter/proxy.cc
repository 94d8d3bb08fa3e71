#include "bench/limiter/proxy.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace millrace::bench {
namespace {

// Bytes of one turn: large enough that a turn is cheap, small enough that eight connections share
// the few milliseconds of bytes in a bucket.
constexpr size_t kTurnBytes = 256 * base::kKiB;
// Of a pipe: two turns. A larger one may need a privilege (fs.pipe-max-size).
constexpr int kPipeBytes = 512 * base::kKiB;
// What a client may send ahead of what the store has taken.
constexpr size_t kPendingBytesMax = 256 * base::kKiB;
constexpr size_t kReceiveBytes = 64 * base::kKiB;
constexpr int kTurnsPerPoll = 64;
constexpr int kEventsPerPoll = 64;
constexpr int kBacklog = 1024;

// Tags of epoll: these two, or a connection's id, shifted, with a bit for its side.
constexpr uint64_t kListenerTag = 0;
constexpr uint64_t kStopTag = 1;
constexpr uint64_t kStoreSide = 1;

// Deadlines are counted on the monotonic clock; absl::Time serves as its scale.
absl::Time Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return absl::TimeFromTimespec(now);
}

bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

// The first address of "HOST:PORT", as the bytes of a sockaddr.
absl::StatusOr<std::string> Resolve(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("\"", address, "\" is not HOST:PORT"));
  }
  const addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  const int error = getaddrinfo(address.substr(0, colon).c_str(), address.substr(colon + 1).c_str(),
                                &hints, &found);
  if (error != 0) {
    return absl::InvalidArgumentError(absl::StrCat(address, ": ", gai_strerror(error)));
  }
  std::string bytes(reinterpret_cast<const char*>(found->ai_addr), found->ai_addrlen);
  freeaddrinfo(found);
  return bytes;
}

const sockaddr* AsSockaddr(const std::string& bytes) {
  return reinterpret_cast<const sockaddr*>(bytes.data());
}

void SetNoDelay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

absl::Status Watch(int epoll, int fd, uint32_t events, uint64_t tag) {
  epoll_event event = {.events = events, .data = {.u64 = tag}};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0) return absl::OkStatus();
  return base::ErrnoStatus(errno, "epoll_ctl");
}

}  // namespace

// Readiness is remembered from edge-triggered events until a call says EAGAIN.
struct Proxy::Connection {
  uint64_t id = 0;
  bool queued = false;

  base::UniqueFd client;
  bool client_readable = false;
  bool client_writable = false;
  bool client_ended = false;
  bool client_shut = false;

  base::UniqueFd store;
  bool store_readable = false;
  bool store_writable = false;
  bool store_ended = false;
  bool store_shut = false;

  // Requests: received and not sent yet, of which the first `released` bytes may go.
  std::string pending;
  size_t released = 0;
  RequestScanner scanner;
  bool waiting = false;
  absl::Time release_at;

  // Answers: a pipe with `in_pipe` bytes.
  base::UniqueFd pipe_out;
  base::UniqueFd pipe_in;
  size_t in_pipe = 0;
};

Proxy::Proxy(const Options& options)
    : options_(options),
      to_store_(options.bytes_per_second, Now()),
      to_client_(options.bytes_per_second, Now()) {}

Proxy::~Proxy() = default;

absl::StatusOr<std::unique_ptr<Proxy>> Proxy::Create(const Options& options) {
  std::unique_ptr<Proxy> proxy(new Proxy(options));
  ASSIGN_OR_RETURN(proxy->target_address_, Resolve(options.target));
  RETURN_IF_ERROR(proxy->Listen());
  return proxy;
}

absl::Status Proxy::Listen() {
  ASSIGN_OR_RETURN(const std::string address, Resolve(options_.listen));
  listener_ = base::UniqueFd(
      socket(AsSockaddr(address)->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  epoll_ = base::UniqueFd(epoll_create1(EPOLL_CLOEXEC));
  stop_ = base::UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!listener_.valid() || !epoll_.valid() || !stop_.valid()) {
    return base::ErrnoStatus(errno, "socket, epoll_create1 or eventfd");
  }
  const int on = 1;
  setsockopt(listener_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(listener_.get(), AsSockaddr(address), address.size()) != 0 ||
      listen(listener_.get(), kBacklog) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("listening on ", options_.listen));
  }
  sockaddr_storage bound = {};
  socklen_t length = sizeof(bound);
  getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&bound), &length);
  // The port is at the same place for IPv4 and IPv6.
  port_ = ntohs(reinterpret_cast<const sockaddr_in*>(&bound)->sin_port);
  RETURN_IF_ERROR(Watch(epoll_.get(), listener_.get(), EPOLLIN, kListenerTag));
  return Watch(epoll_.get(), stop_.get(), EPOLLIN, kStopTag);
}

void Proxy::Stop() {
  const uint64_t one = 1;
  // Cannot fail: the counter is far from its maximum.
  [[maybe_unused]] const ssize_t put = write(stop_.get(), &one, sizeof(one));
}

Proxy::Counters Proxy::counters() const {
  return {.connections = accepted_.load(std::memory_order_relaxed),
          .connections_open = open_.load(std::memory_order_relaxed),
          .requests = requests_.load(std::memory_order_relaxed),
          .bytes_to_store = bytes_to_store_.load(std::memory_order_relaxed),
          .bytes_to_client = bytes_to_client_.load(std::memory_order_relaxed),
          .malformed = malformed_.load(std::memory_order_relaxed)};
}

absl::Status Proxy::Run() {
  std::vector<epoll_event> events(kEventsPerPoll);
  while (!stopping_) {
    const absl::Time now = Now();
    RunTimers(now);
    RunTurns(now);
    const absl::Duration wait = WaitFor(Now());
    const timespec timeout = absl::ToTimespec(wait);
    const int count = epoll_pwait2(epoll_.get(), events.data(), kEventsPerPoll,
                                   wait == absl::InfiniteDuration() ? nullptr : &timeout, nullptr);
    if (count < 0 && errno != EINTR) return base::ErrnoStatus(errno, "epoll_pwait2");
    for (int i = 0; i < count; ++i) OnEvent(events[i].data.u64, events[i].events);
  }
  connections_.clear();
  open_.store(0, std::memory_order_relaxed);
  return absl::OkStatus();
}

void Proxy::OnEvent(uint64_t tag, uint32_t events) {
  if (tag == kListenerTag) {
    Accept();
    return;
  }
  if (tag == kStopTag) {
    stopping_ = true;
    return;
  }
  const auto found = connections_.find(tag >> 1);
  if (found == connections_.end()) return;
  Connection* const connection = found->second.get();
  // After an error both directions are tried: the calls find out what happened.
  const bool readable = (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
  const bool writable = (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
  if ((tag & kStoreSide) != 0) {
    connection->store_readable |= readable;
    connection->store_writable |= writable;
  } else {
    connection->client_readable |= readable;
    connection->client_writable |= writable;
  }
  Enqueue(connection);
}

void Proxy::Accept() {
  for (;;) {
    auto connection = std::make_unique<Connection>();
    connection->client =
        base::UniqueFd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!connection->client.valid()) return;
    connection->store = base::UniqueFd(socket(AsSockaddr(target_address_)->sa_family,
                                              SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    int pipe_ends[2];
    if (!connection->store.valid() || pipe2(pipe_ends, O_CLOEXEC | O_NONBLOCK) != 0) continue;
    connection->pipe_out = base::UniqueFd(pipe_ends[0]);
    connection->pipe_in = base::UniqueFd(pipe_ends[1]);
    // Refused where many pipes are open without privilege; the proxy is then only slower.
    fcntl(pipe_ends[1], F_SETPIPE_SZ, kPipeBytes);
    SetNoDelay(connection->client.get());
    SetNoDelay(connection->store.get());
    if (connect(connection->store.get(), AsSockaddr(target_address_), target_address_.size()) !=
            0 &&
        errno != EINPROGRESS) {
      continue;
    }
    connection->id = next_id_++;
    const uint64_t tag = connection->id << 1;
    constexpr uint32_t kEvents = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    if (!Watch(epoll_.get(), connection->client.get(), kEvents, tag).ok() ||
        !Watch(epoll_.get(), connection->store.get(), kEvents, tag | kStoreSide).ok()) {
      continue;
    }
    accepted_.fetch_add(1, std::memory_order_relaxed);
    open_.fetch_add(1, std::memory_order_relaxed);
    connections_[connection->id] = std::move(connection);
  }
}

void Proxy::Enqueue(Connection* connection) {
  if (connection->queued) return;
  connection->queued = true;
  turns_.push_back(connection->id);
}

void Proxy::Destroy(uint64_t id) {
  connections_.erase(id);
  open_.fetch_sub(1, std::memory_order_relaxed);
}

void Proxy::RunTimers(absl::Time now) {
  while (!timers_.empty() && timers_.top().at <= now) {
    const auto found = connections_.find(timers_.top().connection);
    timers_.pop();
    if (found != connections_.end()) Enqueue(found->second.get());
  }
  if (refill_at_ > now) return;
  refill_at_ = absl::InfiniteFuture();
  // Those that starved come first, in the order in which they did.
  turns_.insert(turns_.begin(), starved_.begin(), starved_.end());
  starved_.clear();
}

void Proxy::RunTurns(absl::Time now) {
  for (int i = 0; i < kTurnsPerPoll && !turns_.empty(); ++i) {
    const uint64_t id = turns_.front();
    turns_.pop_front();
    const auto found = connections_.find(id);
    if (found == connections_.end()) continue;
    Connection* const connection = found->second.get();
    switch (TakeTurn(connection, now)) {
      case Turn::kIdle:
        connection->queued = false;
        break;
      case Turn::kMore:
        turns_.push_back(id);
        break;
      case Turn::kStarved:
        starved_.push_back(id);
        break;
      case Turn::kDead:
        Destroy(id);
        break;
    }
  }
}

absl::Duration Proxy::WaitFor(absl::Time now) {
  if (!turns_.empty()) return absl::ZeroDuration();
  if (starved_.empty()) {
    to_store_.Rest(now);
    to_client_.Rest(now);
  }
  const absl::Time timer = timers_.empty() ? absl::InfiniteFuture() : timers_.top().at;
  return std::max(std::min(timer, refill_at_) - now, absl::ZeroDuration());
}

Proxy::Turn Proxy::TakeTurn(Connection* connection, absl::Time now) {
  const Turn requests = PumpRequests(connection, now);
  if (requests == Turn::kDead) return Turn::kDead;
  const Turn answers = PumpAnswers(connection, now);
  if (answers == Turn::kDead) return Turn::kDead;
  if (connection->client_shut && connection->store_shut) return Turn::kDead;
  // Starving in one direction must not stop the other.
  if (requests == Turn::kMore || answers == Turn::kMore) return Turn::kMore;
  if (requests == Turn::kStarved || answers == Turn::kStarved) return Turn::kStarved;
  return Turn::kIdle;
}

Proxy::Turn Proxy::Starve(TokenBucket* bucket, absl::Time now) {
  refill_at_ = std::min(refill_at_, bucket->NextRefill(now));
  return Turn::kStarved;
}

Proxy::Turn Proxy::PumpRequests(Connection* connection, absl::Time now) {
  for (size_t passed = 0; passed < kTurnBytes;) {
    const size_t before = connection->pending.size();
    const Turn sent = SendReleased(connection, now);
    if (sent != Turn::kIdle && sent != Turn::kMore) return sent;
    passed += before - connection->pending.size();
    const Turn released = Release(connection, now);
    if (released == Turn::kDead) return Turn::kDead;
    const Turn received = ReceiveRequests(connection);
    if (received == Turn::kDead) return Turn::kDead;
    if (sent == Turn::kIdle && released == Turn::kIdle && received == Turn::kIdle) {
      if (connection->client_ended && connection->pending.empty() && !connection->store_shut) {
        shutdown(connection->store.get(), SHUT_WR);
        connection->store_shut = true;
      }
      return Turn::kIdle;
    }
  }
  return Turn::kMore;
}

Proxy::Turn Proxy::SendReleased(Connection* connection, absl::Time now) {
  if (connection->released == 0 || !connection->store_writable) return Turn::kIdle;
  const uint64_t available = to_store_.Available(now);
  if (available == 0) return Starve(&to_store_, now);
  const ssize_t sent = send(connection->store.get(), connection->pending.data(),
                            std::min<uint64_t>(connection->released, available), MSG_NOSIGNAL);
  if (sent < 0) {
    if (!WouldBlock()) return Turn::kDead;
    connection->store_writable = errno == EINTR;
    return Turn::kIdle;
  }
  to_store_.Take(sent);
  bytes_to_store_.fetch_add(sent, std::memory_order_relaxed);
  connection->pending.erase(0, sent);
  connection->released -= sent;
  return Turn::kMore;
}

Proxy::Turn Proxy::Release(Connection* connection, absl::Time now) {
  if (connection->pending.size() == connection->released) return Turn::kIdle;
  if (connection->scanner.at_start()) {
    if (!connection->waiting && options_.delay > absl::ZeroDuration()) {
      connection->waiting = true;
      connection->release_at = now + options_.delay;
      timers_.push({.at = connection->release_at, .connection = connection->id});
    }
    if (connection->waiting && now < connection->release_at) return Turn::kIdle;
    connection->waiting = false;
    requests_.fetch_add(1, std::memory_order_relaxed);
  }
  const absl::StatusOr<size_t> taken =
      connection->scanner.Take(absl::string_view(connection->pending).substr(connection->released));
  if (!taken.ok()) {
    malformed_.fetch_add(1, std::memory_order_relaxed);
    return Turn::kDead;
  }
  connection->released += *taken;
  return Turn::kMore;
}

Proxy::Turn Proxy::ReceiveRequests(Connection* connection) {
  if (!connection->client_readable || connection->client_ended ||
      connection->pending.size() >= kPendingBytesMax) {
    return Turn::kIdle;
  }
  char buffer[kReceiveBytes];
  const ssize_t got = recv(connection->client.get(), buffer, sizeof(buffer), 0);
  if (got < 0) {
    if (!WouldBlock()) return Turn::kDead;
    connection->client_readable = errno == EINTR;
    return Turn::kIdle;
  }
  if (got == 0) {
    connection->client_ended = true;
    return Turn::kMore;
  }
  connection->pending.append(buffer, got);
  return Turn::kMore;
}

Proxy::Turn Proxy::PumpAnswers(Connection* connection, absl::Time now) {
  if (connection->in_pipe == 0 && connection->store_readable && !connection->store_ended) {
    const uint64_t available = to_client_.Available(now);
    if (available == 0) return Starve(&to_client_, now);
    // The pipe is empty, so EAGAIN speaks of the socket.
    const ssize_t got =
        splice(connection->store.get(), nullptr, connection->pipe_in.get(), nullptr,
               std::min<uint64_t>(kTurnBytes, available), SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (got < 0 && !WouldBlock()) return Turn::kDead;
    if (got < 0) connection->store_readable = errno == EINTR;
    if (got == 0) connection->store_ended = true;
    if (got > 0) {
      to_client_.Take(got);
      connection->in_pipe = got;
    }
  }
  if (connection->in_pipe > 0 && connection->client_writable) {
    const ssize_t put = splice(connection->pipe_out.get(), nullptr, connection->client.get(),
                               nullptr, connection->in_pipe, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (put < 0 && !WouldBlock()) return Turn::kDead;
    if (put < 0) connection->client_writable = errno == EINTR;
    if (put > 0) {
      connection->in_pipe -= put;
      bytes_to_client_.fetch_add(put, std::memory_order_relaxed);
    }
  }
  if (connection->store_ended && connection->in_pipe == 0 && !connection->client_shut) {
    shutdown(connection->client.get(), SHUT_WR);
    connection->client_shut = true;
  }
  const bool more = connection->in_pipe > 0
                        ? connection->client_writable
                        : connection->store_readable && !connection->store_ended;
  return more ? Turn::kMore : Turn::kIdle;
}

}  // namespace millrace::bench
