#include "cache/worker/data_server.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <set>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "common/net/socket.h"

namespace millrace::worker {
namespace {

// Threads that stay though there is nothing to do.
constexpr size_t kThreadsIdle = 4;
constexpr int kIdleWaitMs = 10'000;
// Threads for work that blocks for long: blocks that are checked again.
constexpr size_t kApartMax = 4;
// Peers and causes that were logged; then all are forgotten, so that memory is bounded.
constexpr size_t kLoggedMax = 1024;
// Of epoll events: numbers of listeners and of the eventfd lie above those of connections.
constexpr uint64_t kListenerBit = uint64_t{1} << 63;
constexpr uint64_t kStopEvent = ~uint64_t{0};
// Accepted at once by one thread.
constexpr int kAcceptsMax = 64;

// "10.0.0.7" of "10.0.0.7:41230".
absl::string_view HostOf(absl::string_view peer) { return peer.substr(0, peer.rfind(':')); }

class EpollServer final : public DataServer, private ConnectionHost {
 public:
  EpollServer(const DataServerOptions& options, std::vector<Listener> listeners, Files* files,
              index::IndexKeeper* indexes, DoorObserver* observer)
      : options_(options), observer_(observer), listeners_(std::move(listeners)) {
    context_.host = this;
    context_.files = files;
    context_.indexes = indexes;
    context_.tls = options_.tls;
    context_.clock = options_.clock;
    context_.cluster = options_.cluster;
    context_.welcome = options_.welcome;
    context_.progress_timeout = options_.progress_timeout;
  }
  ~EpollServer() override { Stop(); }

  absl::Status Open();

  void StopAccepting() override;
  bool AwaitIdle(absl::Duration grace) override;
  void Stop() override;
  size_t connections() const override {
    base::MutexLock lock(&mutex_);
    return connections_.size();
  }
  uint64_t leases() const override { return context_.leases.load(); }
  size_t threads() const override { return thread_count_.load(); }

 private:
  // A connection, and who serves it now.
  struct Slot {
    std::shared_ptr<ServedConnection> connection;
    bool serving = false;
    bool again = false;  // Something happened meanwhile.
  };

  // ConnectionHost.
  void Wake(uint64_t connection) override;
  bool TakeBlock(uint64_t connection) override;
  void GiveBlock() override;
  // False: there is no such connection any more.
  bool WakeLiving(uint64_t connection);
  void Refused(Refusal refusal, absl::string_view peer, const absl::Status& cause) override;
  void Sent(size_t source, fetch::Origin origin, uint64_t bytes) override {
    observer_->OnSent(source, origin, bytes);
  }
  void Answered(size_t source, fetch::Origin origin, absl::Duration duration) override {
    observer_->OnAnswered(source, origin, duration);
  }
  void HandedOver(absl::string_view source, uint64_t file_size) override {
    observer_->OnHandedOver(source, file_size);
  }
  bool RunApart(std::function<void()> work) override;

  void AddThread();
  void Work();
  void Serve(uint64_t id);
  void AcceptFrom(size_t listener);
  void Admit(base::UniqueFd socket, bool is_unix);
  absl::Status CheckCredentials(int socket) const;
  void Arm(int operation, int fd, uint64_t id, uint32_t events) const;
  void Tick();

  const DataServerOptions options_;
  DoorObserver* const observer_;
  ConnectionContext context_;
  base::UniqueFd epoll_;
  base::UniqueFd stop_event_;
  std::atomic<bool> stopping_{false};

  mutable base::Mutex mutex_;
  std::vector<Listener> listeners_ ABSL_GUARDED_BY(mutex_);  // Closed: no socket.
  absl::flat_hash_map<uint64_t, Slot> connections_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_connection_ ABSL_GUARDED_BY(mutex_) = 1;

  base::Mutex blocks_mutex_;
  size_t blocks_ ABSL_GUARDED_BY(blocks_mutex_) = 0;
  std::deque<uint64_t> starved_ ABSL_GUARDED_BY(blocks_mutex_);

  base::Mutex log_mutex_;
  std::set<std::pair<std::string, Refusal>> logged_ ABSL_GUARDED_BY(log_mutex_);

  std::atomic<size_t> thread_count_{0};
  std::atomic<size_t> idle_threads_{0};
  base::Mutex threads_mutex_;
  base::CondVar threads_changed_;
  size_t running_ ABSL_GUARDED_BY(threads_mutex_) = 0;  // Detached threads, of both kinds.
  size_t apart_ ABSL_GUARDED_BY(threads_mutex_) = 0;
  std::thread ticker_;
};

absl::Status EpollServer::Open() {
  epoll_ = base::UniqueFd(epoll_create1(EPOLL_CLOEXEC));
  stop_event_ = base::UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_.valid() || !stop_event_.valid()) return base::ErrnoStatus(errno, "epoll");
  // Seen by every thread, for ever.
  Arm(EPOLL_CTL_ADD, stop_event_.get(), kStopEvent, EPOLLIN);
  {
    base::MutexLock lock(&mutex_);
    for (size_t i = 0; i < listeners_.size(); ++i) {
      Arm(EPOLL_CTL_ADD, listeners_[i].socket.get(), kListenerBit | i, EPOLLIN | EPOLLONESHOT);
    }
  }
  for (size_t i = 0; i < std::min(kThreadsIdle, options_.threads_max); ++i) AddThread();
  ticker_ = std::thread([this] { Tick(); });
  return absl::OkStatus();
}

void EpollServer::Arm(int operation, int fd, uint64_t id, uint32_t events) const {
  epoll_event event = {};
  event.events = events;
  event.data.u64 = id;
  epoll_ctl(epoll_.get(), operation, fd, &event);
}

// --- Threads ------------------------------------------------------------------------------------

void EpollServer::AddThread() {
  thread_count_.fetch_add(1);
  {
    base::MutexLock lock(&threads_mutex_);
    ++running_;
  }
  std::thread([this] {
    Work();
    base::MutexLock lock(&threads_mutex_);
    --running_;
    threads_changed_.NotifyAll();
  }).detach();
}

void EpollServer::Work() {
  while (true) {
    epoll_event event = {};
    idle_threads_.fetch_add(1);
    const int count = epoll_wait(epoll_.get(), &event, 1, kIdleWaitMs);
    const bool last_idle = idle_threads_.fetch_sub(1) == 1;
    if (stopping_.load(std::memory_order_acquire)) break;
    if (count <= 0) {
      // Of several that are idle one goes.
      size_t threads = thread_count_.load();
      if (count == 0 && threads > kThreadsIdle &&
          thread_count_.compare_exchange_strong(threads, threads - 1)) {
        return;
      }
      continue;
    }
    // Somebody must be there for the next one while this thread is busy.
    if (last_idle && thread_count_.load() < options_.threads_max) AddThread();
    if ((event.data.u64 & kListenerBit) != 0) {
      AcceptFrom(event.data.u64 & ~kListenerBit);
    } else {
      Serve(event.data.u64);
    }
  }
  thread_count_.fetch_sub(1);
}

void EpollServer::Serve(uint64_t id) {
  std::shared_ptr<ServedConnection> connection;
  {
    base::MutexLock lock(&mutex_);
    const auto found = connections_.find(id);
    if (found == connections_.end()) return;
    if (found->second.serving) {
      found->second.again = true;
      return;
    }
    found->second.serving = true;
    connection = found->second.connection;
  }
  while (true) {
    const bool closed = connection->Serve() == ServedConnection::State::kClosed;
    base::MutexLock lock(&mutex_);
    Slot& slot = connections_.find(id)->second;
    if (closed) {
      Arm(EPOLL_CTL_DEL, connection->socket(), id, 0);
      connections_.erase(id);
      break;
    }
    if (!std::exchange(slot.again, false)) {
      slot.serving = false;
      Arm(EPOLL_CTL_MOD, connection->socket(), id, EPOLLIN | EPOLLRDHUP | EPOLLONESHOT);
      break;
    }
  }
}

// A socket that can be written to is an event at once: some thread will have it.
void EpollServer::Wake(uint64_t id) { WakeLiving(id); }

bool EpollServer::WakeLiving(uint64_t id) {
  base::MutexLock lock(&mutex_);
  const auto found = connections_.find(id);
  if (found == connections_.end()) return false;
  if (found->second.serving) {
    found->second.again = true;
  } else {
    Arm(EPOLL_CTL_MOD, found->second.connection->socket(), id,
        EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLONESHOT);
  }
  return true;
}

bool EpollServer::RunApart(std::function<void()> work) {
  {
    base::MutexLock lock(&threads_mutex_);
    if (apart_ >= kApartMax || stopping_.load()) return false;
    ++apart_;
    ++running_;
  }
  std::thread([this, work = std::move(work)] {
    work();
    base::MutexLock lock(&threads_mutex_);
    --apart_;
    --running_;
    threads_changed_.NotifyAll();
  }).detach();
  return true;
}

void EpollServer::Tick() {
  while (!stopping_.load(std::memory_order_acquire)) {
    options_.clock->Sleep(options_.tick);
    const absl::Duration now = options_.clock->Monotonic();
    std::vector<uint64_t> overdue;
    {
      base::MutexLock lock(&mutex_);
      for (const auto& [id, slot] : connections_) {
        if (!slot.serving && slot.connection->Overdue(now)) overdue.push_back(id);
      }
    }
    {
      // Whoever was woken when a buffer was free may not have wanted it any more.
      base::MutexLock lock(&blocks_mutex_);
      overdue.insert(overdue.end(), starved_.begin(), starved_.end());
      starved_.clear();
    }
    for (const uint64_t id : overdue) Wake(id);
  }
}

// --- Connections --------------------------------------------------------------------------------

void EpollServer::AcceptFrom(size_t listener) {
  int fd = -1;
  bool is_unix = false;
  {
    base::MutexLock lock(&mutex_);
    if (!listeners_[listener].socket.valid()) return;
    // A copy: the listener may be closed meanwhile.
    fd = fcntl(listeners_[listener].socket.get(), F_DUPFD_CLOEXEC, 0);
    is_unix = listeners_[listener].is_unix;
  }
  const base::UniqueFd copy(fd);
  for (int i = 0; i < kAcceptsMax; ++i) {
    absl::StatusOr<std::optional<base::UniqueFd>> socket = net::Accept(copy.get());
    if (!socket.ok()) {
      // Out of descriptors, as a rule: those who wait are served when others have left.
      Refused(Refusal::kLimit, "", socket.status());
      options_.clock->Sleep(options_.tick);
      break;
    }
    if (!socket->has_value()) break;
    Admit(**std::move(socket), is_unix);
  }
  base::MutexLock lock(&mutex_);
  if (!listeners_[listener].socket.valid()) return;
  Arm(EPOLL_CTL_MOD, listeners_[listener].socket.get(), kListenerBit | listener,
      EPOLLIN | EPOLLONESHOT);
}

void EpollServer::Admit(base::UniqueFd socket, bool is_unix) {
  const std::string peer = net::PeerName(socket.get());
  if (is_unix) {
    if (const absl::Status status = CheckCredentials(socket.get()); !status.ok()) {
      Refused(Refusal::kCredentials, peer, status);
      return;
    }
  }
  if (connections() >= options_.connections_max) {
    Refused(Refusal::kLimit, peer, absl::ResourceExhaustedError("too many connections"));
    return;
  }
  const int fd = socket.get();
  base::MutexLock lock(&mutex_);
  if (stopping_.load()) return;
  const uint64_t id = next_connection_++;
  connections_[id].connection =
      std::make_shared<ServedConnection>(id, std::move(socket), is_unix, peer, &context_);
  Arm(EPOLL_CTL_ADD, fd, id, EPOLLIN | EPOLLRDHUP | EPOLLONESHOT);
}

absl::Status EpollServer::CheckCredentials(int socket) const {
  ASSIGN_OR_RETURN(const net::PeerCredentials peer, net::CredentialsOf(socket));
  if (peer.uid == 0 || peer.uid == options_.own_uid.value_or(geteuid())) return absl::OkStatus();
  if (options_.socket_group.has_value()) {
    const gid_t group = *options_.socket_group;
    if (peer.gid == group ||
        std::find(peer.groups.begin(), peer.groups.end(), group) != peer.groups.end()) {
      return absl::OkStatus();
    }
  }
  return absl::PermissionDeniedError(
      absl::StrCat("user ", peer.uid, " may not use the worker's socket"));
}

void EpollServer::Refused(Refusal refusal, absl::string_view peer, const absl::Status& cause) {
  observer_->OnRefused(refusal);
  {
    base::MutexLock lock(&log_mutex_);
    if (logged_.size() >= kLoggedMax) logged_.clear();
    if (!logged_.emplace(HostOf(peer), refusal).second) return;
  }
  base::Log(base::Severity::kWarning, "connection refused; said once for this peer and reason",
            {{"peer", peer}, {"reason", RefusalName(refusal)}, {"cause", cause.message()}});
}

// --- Buffers ------------------------------------------------------------------------------------

bool EpollServer::TakeBlock(uint64_t connection) {
  base::MutexLock lock(&blocks_mutex_);
  if (blocks_ >= options_.blocks_max) {
    starved_.push_back(connection);
    return false;
  }
  ++blocks_;
  return true;
}

void EpollServer::GiveBlock() {
  uint64_t next = 0;
  do {
    base::MutexLock lock(&blocks_mutex_);
    if (next == 0) --blocks_;
    if (starved_.empty()) return;
    next = starved_.front();
    starved_.pop_front();
  } while (!WakeLiving(next));
}

// --- Ending -------------------------------------------------------------------------------------

void EpollServer::StopAccepting() {
  base::MutexLock lock(&mutex_);
  for (Listener& listener : listeners_) listener.socket.Reset();
}

bool EpollServer::AwaitIdle(absl::Duration grace) {
  const absl::Duration give_up = options_.clock->Monotonic() + grace;
  while (context_.requests.load() > 0) {
    if (options_.clock->Monotonic() >= give_up) return false;
    options_.clock->Sleep(absl::Milliseconds(5));
  }
  return true;
}

void EpollServer::Stop() {
  if (stopping_.exchange(true)) return;
  StopAccepting();
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(stop_event_.get(), &one, sizeof(one));
  {
    base::MutexLock lock(&mutex_);
    // Who is blocked in a call returns.
    for (const auto& [id, slot] : connections_) slot.connection->Shutdown();
  }
  if (ticker_.joinable()) ticker_.join();
  {
    base::MutexLock lock(&threads_mutex_);
    while (running_ > apart_) threads_changed_.Wait(&threads_mutex_);
  }
  // Who works apart learns by it that nobody waits any more.
  absl::flat_hash_map<uint64_t, Slot> ended;
  {
    base::MutexLock lock(&mutex_);
    ended.swap(connections_);
  }
  ended.clear();
  base::MutexLock lock(&threads_mutex_);
  while (running_ > 0) threads_changed_.Wait(&threads_mutex_);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DataServer>> DataServer::Start(const DataServerOptions& options,
                                                              std::vector<Listener> listeners,
                                                              Files* files,
                                                              index::IndexKeeper* indexes,
                                                              DoorObserver* observer) {
  auto server =
      std::make_unique<EpollServer>(options, std::move(listeners), files, indexes, observer);
  RETURN_IF_ERROR(server->Open());
  return std::unique_ptr<DataServer>(std::move(server));
}

}  // namespace millrace::worker
