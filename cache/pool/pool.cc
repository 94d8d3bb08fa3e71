#include "cache/pool/pool.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache/pool/index_client.h"
#include "cache/pool/leases.h"
#include "cache/pool/member_list.h"
#include "cache/pool/pool_parts.h"
#include "cache/store/store_decorator.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/net/socket.h"
#include "common/net/tls.h"

namespace millrace::pool {
namespace {

// Workers that fail one range before the store is asked. Those that are by-passed do not count.
constexpr size_t kTriesMax = 3;
// An owner asks the others for what they have, and who has it answers at once, or soon if it is on
// its way there. Not longer: two workers whose views of the pool differ may wait for each other.
constexpr absl::Duration kCachedSilence = absl::Seconds(1);
// Beside the replicas: owners before the last two changes of the pool.
constexpr size_t kFormerOwners = 2;
constexpr size_t kLoadsAtOnce = 16;
constexpr uint64_t kIndexMax = uint64_t{4} << 30;
constexpr absl::Duration kLogEvery = absl::Minutes(1);

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

proto::FileName NameOf(const tier::FileKey& file) {
  return {file.source, file.path, file.version, file.size};
}

// Another worker would say the same of these: the store has to be asked itself. One that reports
// FailedPrecondition saw another version, which the store may have only for it (a replica behind).
bool IsAboutTheStore(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:
      return true;
    default:
      return false;
  }
}

class RealPool;

// What is left of a Get, and how much time.
struct Rest {
  uint64_t offset = 0;
  uint64_t length = 0;
  absl::Duration deadline;
};

class PoolStore final : public store::StoreDecorator {
 public:
  PoolStore(RealPool* pool, std::string source, std::shared_ptr<store::Store> store, bool for_owner)
      : StoreDecorator(std::move(store)),
        pool_(pool),
        source_(std::move(source)),
        for_owner_(for_owner) {}

  uint64_t range_unit() const override;
  absl::Status Get(const store::GetRequest& request, store::BodySink sink,
                   const store::CallOptions& call) override;
  absl::StatusOr<uint64_t> Warm(const store::GetRequest& request,
                                const store::CallOptions& call) override;

 private:
  // What to do after a worker was asked.
  enum class Next { kDone, kAskAnother, kAskStore, kGiveUp };
  struct Asked {
    Next next = Next::kDone;
    absl::Status status;  // Of kGiveUp.
  };
  // Asks for [rest.offset, rest.offset + length), and takes off `rest` what came.
  Asked Ask(Member& member, proto::Role role, const store::GetRequest& request, uint64_t length,
            store::BodySink sink, const store::CallOptions& call, Rest* rest);
  // The part up to the end of its extent: from the ranks in turn. kDone or kAskStore or kGiveUp.
  Asked AskRanks(const MemberList::View& view, const store::GetRequest& request, uint64_t length,
                 store::BodySink sink, const store::CallOptions& call, Rest* rest);
  absl::Status AskStore(const store::GetRequest& request, uint64_t length, store::BodySink sink,
                        const store::CallOptions& call, Rest* rest);

  RealPool* const pool_;
  const std::string source_;
  const bool for_owner_;
};

class RealPool final : public Pool {
 public:
  RealPool(const PoolOptions& options, std::vector<WorkerSource> sources, PoolParts parts)
      : options_(options),
        has_local_(std::any_of(sources.begin(), sources.end(),
                               [](const auto& source) { return source.address.is_unix(); })) {
    if (options_.clock == nullptr) options_.clock = base::RealClock();
    context_.dial = std::move(parts.dial);
    context_.hello.cluster = options_.cluster;
    context_.hello.peer = !options_.peer.empty()   ? options_.peer
                          : !options_.self.empty() ? options_.self
                                                   : HostName();
    context_.connect_timeout = options_.connect_timeout;
    context_.clock = options_.clock;
    leases_ = std::make_shared<Leases>(&context_);
    MemberListOptions members;
    members.sources = std::move(sources);
    members.look_up = std::move(parts.look_up);
    members.refresh = options_.members_refresh;
    members.seed = options_.seed != 0 ? options_.seed : std::random_device()();
    members_ = std::make_unique<MemberList>(std::move(members), &context_);
  }
  ~RealPool() override {
    leases_->Close();
    members_.reset();
  }

  std::shared_ptr<store::Store> Wrap(std::string source,
                                     std::shared_ptr<store::Store> store) override {
    auto pooled = std::make_shared<PoolStore>(this, source, std::move(store), false);
    if (options_.index_refresh <= absl::ZeroDuration()) return pooled;
    IndexClientOptions options;
    options.source = std::move(source);
    options.refresh = options_.index_refresh;
    options.bytes_max = options_.index_bytes_max;
    options.directory = options_.index_directory;
    options.clock = options_.clock;
    std::shared_ptr<IndexClient> client = IndexClient::Create(
        options, std::move(pooled),
        [this](const proto::IndexGet& get, store::BodySink sink, const store::CallOptions& call) {
          return Index(get, sink, call);
        });
    base::MutexLock lock(&index_mutex_);
    index_clients_.push_back(client);
    return client;
  }
  std::shared_ptr<store::Store> WrapForOwner(std::string source,
                                             std::shared_ptr<store::Store> store) override {
    return std::make_shared<PoolStore>(this, std::move(source), std::move(store), true);
  }

  absl::StatusOr<std::shared_ptr<const tier::OpenData>> OpenLocal(
      const tier::FileKey& file) override {
    if (!has_local_) return absl::NotFoundError("there is no worker on this node");
    const std::shared_ptr<Member> local = View()->local;
    if (local == nullptr || !local->usable()) {
      return absl::NotFoundError("the worker of this node does not answer");
    }
    absl::StatusOr<std::shared_ptr<const tier::OpenData>> opened = leases_->Open(local, file);
    if (opened.ok()) {
      bytes_short_circuit_.fetch_add(file.size, std::memory_order_relaxed);
      return opened;
    }
    return absl::NotFoundError(opened.status().message());
  }

  absl::Status Index(const proto::IndexGet& get, store::BodySink sink,
                     const store::CallOptions& call) override;
  absl::StatusOr<proto::Done> Load(const tier::FileKey& file, uint64_t offset, uint64_t length,
                                   const store::CallOptions& call) override;

  std::vector<MemberStatus> Members() const override { return members_->Status(); }
  PoolStats Stats() const override {
    PoolStats stats;
    stats.bytes_remote = bytes_remote_.load(std::memory_order_relaxed);
    stats.bytes_through_store = bytes_through_store_.load(std::memory_order_relaxed);
    stats.bytes_short_circuit = bytes_short_circuit_.load(std::memory_order_relaxed);
    stats.bypassed = bypassed_.load(std::memory_order_relaxed);
    stats.faults = context_.faults.load(std::memory_order_relaxed);
    stats.damaged_frames = context_.damaged_frames.load(std::memory_order_relaxed);
    base::MutexLock lock(&index_mutex_);
    for (const std::weak_ptr<IndexClient>& weak : index_clients_) {
      const std::shared_ptr<IndexClient> client = weak.lock();
      if (client == nullptr) continue;
      const IndexClientStats names = client->Stats();
      stats.names_from_index += names.answers;
      stats.names_from_store += names.asked_store;
    }
    return stats;
  }
  bool has_local_worker() const override {
    if (!has_local_) return false;
    const std::shared_ptr<Member> local = members_->Current(absl::ZeroDuration())->local;
    return local != nullptr && local->usable();
  }

  // For PoolStore.
  std::shared_ptr<const MemberList::View> View() {
    return members_->Current(options_.connect_timeout);
  }
  bool AnyUsable() {
    const std::shared_ptr<const MemberList::View> view = members_->Current(absl::ZeroDuration());
    return std::any_of(view->members.begin(), view->members.end(),
                       [](const auto& member) { return member->usable(); });
  }
  const PoolOptions& options() const { return options_; }
  base::Clock& clock() const { return *options_.clock; }
  void CountBytes(uint64_t bytes, bool from_store) {
    (from_store ? bytes_through_store_ : bytes_remote_).fetch_add(bytes, std::memory_order_relaxed);
  }
  void CountBypass(const std::string& source);
  void CountFault() { context_.faults.fetch_add(1, std::memory_order_relaxed); }

 private:
  PoolOptions options_;
  const bool has_local_;
  MemberContext context_;
  std::shared_ptr<Leases> leases_;
  std::unique_ptr<MemberList> members_;

  std::atomic<uint64_t> bytes_remote_{0};
  std::atomic<uint64_t> bytes_through_store_{0};
  std::atomic<uint64_t> bytes_short_circuit_{0};
  std::atomic<uint64_t> bypassed_{0};
  mutable base::Mutex index_mutex_;
  std::vector<std::weak_ptr<IndexClient>> index_clients_ ABSL_GUARDED_BY(index_mutex_);
  base::Mutex log_mutex_;
  absl::Duration bypass_logged_ ABSL_GUARDED_BY(log_mutex_) = -absl::InfiniteDuration();
};

void RealPool::CountBypass(const std::string& source) {
  bypassed_.fetch_add(1, std::memory_order_relaxed);
  {
    base::MutexLock lock(&log_mutex_);
    const absl::Duration now = clock().Monotonic();
    if (now - bypass_logged_ < kLogEvery) return;
    bypass_logged_ = now;
  }
  base::Log(base::Severity::kWarning, "no worker gives what is read; the store is asked",
            {{"source", source}});
}

Patience PatienceOf(const store::CallOptions& call, absl::Duration deadline,
                    absl::Duration silence) {
  return {.deadline = deadline,
          .silence = std::min(silence, call.stall_timeout),
          .cancelled = call.cancelled};
}

PoolStore::Asked PoolStore::Ask(Member& member, proto::Role role, const store::GetRequest& request,
                                uint64_t length, store::BodySink sink,
                                const store::CallOptions& call, Rest* rest) {
  proto::Get get;
  get.file = {source_, request.path, request.version, request.file_size};
  get.offset = rest->offset;
  get.length = length;
  get.role = role;
  get.urgency = static_cast<proto::Urgency>(
      std::min<uint8_t>(request.urgency, static_cast<uint8_t>(proto::Urgency::kBulk)));
  const bool only_cached = role == proto::Role::kCached;
  Patience patience = PatienceOf(call, rest->deadline,
                                 only_cached ? kCachedSilence : pool_->options().answer_timeout);
  const auto ask_alive = [&member] { return member.Probe(/*fresh=*/false); };
  const absl::FunctionRef<bool()> alive(ask_alive);
  // Who is only asked for what is on its way is not waited for so long.
  if (!only_cached) patience.alive = &alive;
  bool used = false;
  uint64_t remote = 0;
  uint64_t through_store = 0;
  const auto frames = [&](absl::string_view bytes, uint8_t flags) {
    used = true;
    const bool from_store = (flags & proto::kFromStore) != 0;
    if (request.from != nullptr) {
      *request.from = from_store ? store::BytesFrom::kStore : store::BytesFrom::kWorker;
    }
    (from_store ? through_store : remote) += bytes.size();
    rest->offset += bytes.size();
    rest->length -= bytes.size();
    return sink(bytes);
  };
  const FrameSink frame_sink(frames);
  const Outcome outcome = member.Do(patience, &used, [&](Connection& connection) {
    return connection.Get(get, request.room, frame_sink, patience);
  });
  if (remote > 0) pool_->CountBytes(remote, false);
  if (through_store > 0) pool_->CountBytes(through_store, true);
  switch (outcome.end) {
    case End::kDone:
      return {};
    case End::kCaller:
      return {Next::kGiveUp, outcome.status};
    case End::kAnswered:
      if (only_cached) return {Next::kAskAnother, {}};
      if (IsAboutTheStore(outcome.status)) return {Next::kAskStore, {}};
      pool_->CountFault();
      return {Next::kAskAnother, {}};
    case End::kTransport:
    case End::kDamaged:
      break;
  }
  return {Next::kAskAnother, {}};
}

PoolStore::Asked PoolStore::AskRanks(const MemberList::View& view, const store::GetRequest& request,
                                     uint64_t length, store::BodySink sink,
                                     const store::CallOptions& call, Rest* rest) {
  const uint64_t end = rest->offset + length;
  const Ranking ranking =
      Rank(view.placed, source_, request.path, ExtentOf(rest->offset, view.extent_size));
  const std::string& self = pool_->options().self;
  size_t tries = 0;
  size_t place = 0;  // Among those who are not this worker.
  for (const size_t index : ranking) {
    const PlacedMember& placed = view.placed[index];
    if (placed.id == self) {
      if (for_owner_) continue;
      return {Next::kAskStore, {}};
    }
    if (for_owner_ && place++ >= view.replicas + kFormerOwners && !placed.draining) continue;
    Member& member = *view.members[index];
    if (!member.usable()) continue;
    if (!for_owner_ && ++tries > kTriesMax) break;
    const Asked asked = Ask(member, for_owner_ ? proto::Role::kCached : proto::Role::kOwner,
                            request, end - rest->offset, sink, call, rest);
    if (asked.next != Next::kAskAnother) return asked;
  }
  return {Next::kAskStore, {}};
}

absl::Status PoolStore::AskStore(const store::GetRequest& request, uint64_t length,
                                 store::BodySink sink, const store::CallOptions& call, Rest* rest) {
  if (request.from != nullptr) *request.from = store::BytesFrom::kStore;
  store::GetRequest part = request;
  part.offset = rest->offset;
  part.length = length;
  store::CallOptions left = call;
  left.timeout = rest->deadline - pool_->clock().Monotonic();
  if (left.timeout <= absl::ZeroDuration()) {
    return absl::DeadlineExceededError(
        absl::StrCat("no time left to ask the store for ", request.path));
  }
  RETURN_IF_ERROR(store_->Get(part, sink, left));
  rest->offset += length;
  rest->length -= length;
  return absl::OkStatus();
}

// Workers have pages of a disk, or of memory.
uint64_t PoolStore::range_unit() const {
  return pool_->AnyUsable() ? store::kRangeUnitPage : store_->range_unit();
}

absl::Status PoolStore::Get(const store::GetRequest& request, store::BodySink sink,
                            const store::CallOptions& call) {
  // Workers keep versions, and check that a range lies within its file.
  if (request.version.empty() || request.length == 0 || request.offset >= request.file_size ||
      request.length > request.file_size - request.offset) {
    if (request.from != nullptr) *request.from = store::BytesFrom::kStore;
    return store_->Get(request, sink, call);
  }
  Rest rest = {request.offset, request.length, pool_->clock().Monotonic() + call.timeout};
  const std::shared_ptr<const MemberList::View> view = pool_->View();
  // The worker of this node asks the owners itself, and keeps what it gets.
  if (!for_owner_ && view->local != nullptr && view->local->usable()) {
    const Asked asked =
        Ask(*view->local, proto::Role::kGuest, request, rest.length, sink, call, &rest);
    if (asked.next == Next::kDone) return absl::OkStatus();
    if (asked.next == Next::kGiveUp) return asked.status;
    if (asked.next == Next::kAskStore) {
      pool_->CountBypass(source_);
      return AskStore(request, rest.length, sink, call, &rest);
    }
  }
  while (rest.length > 0) {
    const uint64_t extent_end = (ExtentOf(rest.offset, view->extent_size) + 1) * view->extent_size;
    const uint64_t end = std::min(rest.offset + rest.length, extent_end);
    const Asked asked = AskRanks(*view, request, end - rest.offset, sink, call, &rest);
    if (asked.next == Next::kGiveUp) return asked.status;
    if (asked.next == Next::kDone) continue;
    if (!for_owner_ && pool_->options().self.empty()) pool_->CountBypass(source_);
    RETURN_IF_ERROR(AskStore(request, end - rest.offset, sink, call, &rest));
  }
  return absl::OkStatus();
}

absl::Status RealPool::Index(const proto::IndexGet& get, store::BodySink sink,
                             const store::CallOptions& call) {
  const absl::Duration deadline = clock().Monotonic() + call.timeout;
  const std::shared_ptr<const MemberList::View> view = View();
  size_t tries = 0;
  absl::Status failed = absl::UnavailableError("no worker answers");
  for (const size_t index : Rank(view->placed, get.source, "", 0)) {
    Member& member = *view->members[index];
    if (view->placed[index].id == options_.self || !member.usable()) continue;
    if (++tries > kTriesMax) break;
    bool used = false;
    const auto ask_alive = [&member] { return member.Probe(/*fresh=*/false); };
    const absl::FunctionRef<bool()> alive(ask_alive);
    Patience patience = PatienceOf(call, deadline, options_.answer_timeout);
    patience.alive = &alive;
    const auto frames = [&](absl::string_view bytes, uint8_t) {
      used = true;
      return sink(bytes);
    };
    const FrameSink frame_sink(frames);
    const Outcome outcome = member.Do(patience, &used, [&](Connection& connection) {
      return connection.Index(get, kIndexMax, frame_sink, patience);
    });
    if (outcome.end == End::kDone) return absl::OkStatus();
    // The sink has seen the beginning of one answer, which is not that of another.
    if (outcome.end == End::kCaller || outcome.end == End::kAnswered || used) return outcome.status;
    failed = absl::UnavailableError(outcome.status.message());
  }
  return failed;
}

absl::StatusOr<uint64_t> PoolStore::Warm(const store::GetRequest& request,
                                         const store::CallOptions& call) {
  const tier::FileKey file = {source_, request.path, request.version, request.file_size};
  ASSIGN_OR_RETURN(const proto::Done done, pool_->Load(file, request.offset, request.length, call));
  return done.bytes;
}

absl::StatusOr<proto::Done> RealPool::Load(const tier::FileKey& file, uint64_t offset,
                                           uint64_t length, const store::CallOptions& call) {
  if (offset > file.size || length > file.size - offset || length == 0) {
    return absl::InvalidArgumentError("a range that is not within the file");
  }
  const absl::Duration deadline = clock().Monotonic() + call.timeout;
  const std::shared_ptr<const MemberList::View> view = View();
  struct Part {
    uint64_t offset;
    uint64_t length;
  };
  std::vector<Part> parts;
  for (uint64_t at = offset; at < offset + length;) {
    const uint64_t end =
        std::min(offset + length, (ExtentOf(at, view->extent_size) + 1) * view->extent_size);
    parts.push_back({at, end - at});
    at = end;
  }
  std::atomic<size_t> next{0};
  base::Mutex mutex;
  proto::Done total;
  absl::Status failed;
  const auto load = [&](const Part& part) -> absl::Status {
    proto::Get get;
    get.file = NameOf(file);
    get.offset = part.offset;
    get.length = part.length;
    get.urgency = proto::Urgency::kBulk;
    absl::Status last = absl::UnavailableError("no worker answers");
    size_t tries = 0;
    for (const size_t index :
         Rank(view->placed, file.source, file.path, ExtentOf(part.offset, view->extent_size))) {
      Member& member = *view->members[index];
      if (view->placed[index].id == options_.self || !member.usable()) continue;
      if (++tries > kTriesMax) break;
      const auto ask_alive = [&member] { return member.Probe(/*fresh=*/false); };
      const absl::FunctionRef<bool()> alive(ask_alive);
      // Nothing is heard until all of it is there.
      Patience patience = {
          .deadline = deadline, .silence = call.timeout, .cancelled = call.cancelled};
      patience.alive = &alive;
      bool used = false;
      proto::Done done;
      const Outcome outcome = member.Do(patience, &used, [&](Connection& connection) {
        return connection.Load(get, patience, &done);
      });
      if (outcome.end == End::kDone) {
        base::MutexLock lock(&mutex);
        total.bytes += done.bytes;
        total.fetched_from_store += done.fetched_from_store;
        return absl::OkStatus();
      }
      last = outcome.status;
      if (outcome.end == End::kCaller ||
          (outcome.end == End::kAnswered && IsAboutTheStore(outcome.status))) {
        break;
      }
    }
    return last;
  };
  const auto work = [&] {
    while (true) {
      const size_t mine = next.fetch_add(1);
      if (mine >= parts.size()) return;
      if (absl::Status status = load(parts[mine]); !status.ok()) {
        base::MutexLock lock(&mutex);
        if (failed.ok()) failed = std::move(status);
        next.store(parts.size());
      }
    }
  };
  const size_t helpers_max = std::min(kLoadsAtOnce, 2 * view->placed.size());
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < std::min(parts.size(), helpers_max); ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  if (!failed.ok()) return failed;
  return total;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Pool>> CreatePool(const PoolOptions& options, PoolParts parts) {
  ASSIGN_OR_RETURN(std::vector<WorkerSource> sources, ParseWorkers(options.workers));
  return std::unique_ptr<Pool>(
      std::make_unique<RealPool>(options, std::move(sources), std::move(parts)));
}

absl::StatusOr<std::unique_ptr<Pool>> Pool::Create(const PoolOptions& options) {
  const net::TlsFiles files = {options.certificate, options.key, options.authority};
  if (files.any() && !files.all()) {
    return absl::InvalidArgumentError(
        "certificate, key and authority belong together: give all three, or none");
  }
  std::shared_ptr<net::Tls> tls;
  if (files.any()) {
    ASSIGN_OR_RETURN(
        tls, net::Tls::Load(files, options.clock != nullptr ? options.clock : base::RealClock()));
  }
  PoolParts parts;
  parts.look_up = &LookUp;
  parts.dial = [tls](const Endpoint& endpoint,
                     absl::Duration timeout) -> absl::StatusOr<std::unique_ptr<net::Stream>> {
    ASSIGN_OR_RETURN(base::UniqueFd socket, net::Connect(endpoint.address, timeout));
    // The socket of this node is guarded by credentials.
    if (tls == nullptr || endpoint.address.is_unix()) return net::PlainStream(std::move(socket));
    return tls->Connect(std::move(socket), endpoint.certificate, timeout);
  };
  return CreatePool(options, std::move(parts));
}

}  // namespace millrace::pool
