#include "cache/worker/worker.h"

#include <grp.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cache/index/index_keeper.h"
#include "cache/tier/tier_metrics.h"
#include "cache/worker/data_server.h"
#include "cache/worker/files.h"
#include "cache/worker/handover.h"
#include "cache/worker/observers.h"
#include "cache/worker/share_loader.h"
#include "common/base/errno_status.h"
#include "common/base/file_text.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/metrics/metric_names.h"
#include "common/net/socket.h"

namespace millrace::worker {
namespace {

constexpr unsigned kRingEntries = 256;
constexpr int kPosixReadThreads = 8;
constexpr rlim_t kDescriptorsWanted = 1 << 16;
constexpr absl::Duration kAccessTimeout = absl::Seconds(20);
// A worker that has not heard of its pool takes all for its own: it waits so long for it.
constexpr absl::Duration kMembersPatience = absl::Seconds(2);
constexpr absl::Duration kMaintenanceEvery = absl::Seconds(1);
constexpr absl::Duration kReportEvery = absl::Milliseconds(500);
constexpr size_t kListEntries = 1000;
// What an index in the making may take beside the memory limit.
constexpr size_t kIndexSortBytes = 16 << 20;
// Of a tier, what one file may claim when it is admitted: more of it may come all the same.
constexpr double kFileShareMax = 0.9;

uint64_t BufferBudget(uint64_t limit) {
  // The rest is for names, threads, connections. As a mount does it.
  return limit - std::max<uint64_t>(16 * base::kMiB, limit / 8);
}

size_t RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  limit.rlim_cur = std::min(limit.rlim_max, std::max(limit.rlim_cur, kDescriptorsWanted));
  setrlimit(RLIMIT_NOFILE, &limit);
  getrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<size_t>(limit.rlim_cur);
}

absl::StatusOr<gid_t> FindGroup(const std::string& name) {
  gid_t number = 0;
  if (absl::SimpleAtoi(name, &number)) return number;
  group entry;
  group* found = nullptr;
  std::string buffer(16 * 1024, '\0');
  getgrnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found);
  if (found == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("--socket-group: there is no group \"", name, "\""));
  }
  return found->gr_gid;
}

std::string HostPort(const std::string& host, uint16_t port) {
  return net::Address{.host = host, .port = port}.ToString();
}

uint64_t ResidentBytes() {
  const absl::StatusOr<std::string> text = base::ReadTextFile("/proc/self/statm", 4096);
  if (!text.ok()) return 0;
  const std::vector<absl::string_view> fields = absl::StrSplit(*text, ' ');
  uint64_t pages = 0;
  if (fields.size() < 2 || !absl::SimpleAtoi(fields[1], &pages)) return 0;
  return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

proto::ListedEntry ToListed(const store::Entry& entry) {
  return {entry.name, entry.kind == store::EntryKind::kDirectory, entry.size, entry.mtime,
          entry.version};
}

class CacheWorker final : public Worker {
 public:
  explicit CacheWorker(const WorkerOptions& options) : options_(options) {}
  ~CacheWorker() override { EndThreads(absl::ZeroDuration()); }

  absl::Status Open();

  absl::Status Stop(absl::Duration grace) override;
  net::Address data_address() const override { return data_address_; }
  std::string socket_path() const override { return socket_path_; }
  int metrics_port() const override { return metrics_->port(); }
  metrics::Metrics& metrics() override { return *metrics_; }

  proto::WorkerReport Report() const override;
  absl::StatusOr<proto::LocateReply> Locate(const proto::LocateRequest& request) override;
  absl::StatusOr<proto::StatReply> Stat(const proto::StatRequest& request) override;
  absl::StatusOr<proto::ListReply> List(const proto::ListRequest& request) override;
  absl::Status Load(const proto::LoadRequest& request, LoadObserver observer) override;
  absl::StatusOr<uint64_t> Evict(const proto::EvictRequest& request) override;
  void StartDrain() override;
  absl::Status WatchDrain(DrainObserver observer) override;

 private:
  absl::StatusOr<std::vector<store::OpenedSource>> OpenSources();
  absl::Status OpenCache(const std::vector<store::OpenedSource>& sources);
  absl::Status OpenPool();
  void OpenIndexes();
  absl::Status OpenDoors();
  absl::Status MakeDirectory(const std::optional<gid_t>& group);
  absl::StatusOr<DataServer::Listener> ListenUnix(std::optional<gid_t>* group);
  void AwaitMembers();
  uint64_t ExpectedBytes(const tier::FileKey& key) const;
  proto::Welcome Greeting() const;
  absl::StatusOr<const Files::Source*> FindSource(const std::string& identity) const;
  uint64_t PresentBytes(const tier::FileKey& key, uint64_t offset, uint64_t length) const;
  void UpdateMembers();
  void Maintain();
  void Collect(metrics::SampleSink& sink) const;
  void EndThreads(absl::Duration grace);
  bool stopping() const {
    base::MutexLock lock(&stop_mutex_);
    return stopping_;
  }

  const WorkerOptions options_;
  base::Clock* const clock_ = base::RealClock();
  const absl::Time started_ = absl::Now();
  net::Address data_address_;
  std::string socket_path_;

  std::unique_ptr<metrics::Metrics> metrics_;
  std::vector<std::unique_ptr<StoreCounter>> store_counters_;
  std::unique_ptr<DoorCounter> door_counter_;
  std::unique_ptr<io::FileIo> file_io_;
  std::unique_ptr<Ranks> ranks_;
  std::unique_ptr<tier::TieredCache> cache_;
  std::unique_ptr<net::Tls> tls_;
  std::unique_ptr<pool::Pool> pool_;        // Null: this worker is alone.
  std::unique_ptr<Replicator> replicator_;  // Before files_: it is told by fetches.
  std::unique_ptr<Files> files_;
  std::unique_ptr<index::IndexKeeper> indexes_;
  std::unique_ptr<DataServer> server_;
  metrics::CollectorHandle collector_;

  mutable base::Mutex stop_mutex_;
  base::CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(stop_mutex_) = false;
  std::thread maintenance_;
  mutable base::Mutex drain_mutex_;
  std::unique_ptr<Drain> drain_ ABSL_GUARDED_BY(drain_mutex_);
};

// --- Starting -----------------------------------------------------------------------------------

absl::Status CacheWorker::Open() {
  metrics_ = std::make_unique<metrics::Metrics>(base::kVersion);
  ASSIGN_OR_RETURN(std::vector<store::OpenedSource> sources, OpenSources());
  RETURN_IF_ERROR(OpenCache(sources));
  RETURN_IF_ERROR(OpenPool());
  Files::Options files;
  files.buffer_bytes = BufferBudget(options_.memory_limit_bytes);
  files.connections = static_cast<size_t>(options_.connections);
  files.clock = clock_;
  files.fetched = [this](const tier::FileKey& key, uint64_t offset, uint64_t length) {
    if (replicator_ != nullptr) replicator_->OnFetched(key, offset, length);
  };
  files_ =
      std::make_unique<Files>(files, cache_.get(), ranks_.get(), pool_.get(), std::move(sources));
  replicator_ = std::make_unique<Replicator>(files_.get(), pool_.get(), clock_);
  OpenIndexes();
  RETURN_IF_ERROR(OpenDoors());
  RETURN_IF_ERROR(metrics_->Serve(HostPort(options_.listen_host, options_.metrics_port)));
  collector_ = metrics_->AddCollector([this](metrics::SampleSink& sink) { Collect(sink); });
  AwaitMembers();
  maintenance_ = std::thread([this] { Maintain(); });
  metrics_->SetReady();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<store::OpenedSource>> CacheWorker::OpenSources() {
  std::vector<store::OpenedSource> sources;
  std::vector<DoorCounter::Dataset> datasets;
  for (const std::string& text : options_.sources) {
    ASSIGN_OR_RETURN(store::OpenedSource source, store::OpenSource(text));
    RETURN_IF_ERROR(store::CheckAccess(source, {.timeout = kAccessTimeout}));
    const std::string label = source.source.name.empty() ? source.source.url : source.source.name;
    datasets.push_back({source.source.identity, label});
    store_counters_.push_back(std::make_unique<StoreCounter>(label, metrics_.get()));
    source.store = store::NewRetryingStore(
        store::NewCountingStore(std::move(source.store), store_counters_.back().get()),
        {.deadline = options_.store_deadline});
    sources.push_back(std::move(source));
  }
  door_counter_ = std::make_unique<DoorCounter>(std::move(datasets), metrics_.get());
  return sources;
}

absl::Status CacheWorker::OpenCache(const std::vector<store::OpenedSource>& sources) {
  const size_t descriptors = RaiseDescriptorLimit();
  absl::StatusOr<std::unique_ptr<io::FileIo>> uring = io::NewUringFileIo(kRingEntries);
  if (uring.ok()) {
    file_io_ = *std::move(uring);
  } else {
    base::Log(base::Severity::kWarning, "no io_uring: threads read the cache",
              {{"cause", uring.status().message()}});
    file_io_ = io::NewPosixFileIo(kPosixReadThreads);
  }
  Ranks::Options ranks;
  ranks.id = options_.id;
  for (const tier::TierOptions& tier : options_.tiers) ranks.capacity_bytes += tier.quota_bytes;
  ranks.extent_size = options_.extent_size;
  ranks.replicas = options_.replicas;
  ranks_ = std::make_unique<Ranks>(ranks);

  tier::CacheOptions cache;
  cache.tiers = options_.tiers;
  cache.policy = options_.eviction;
  for (const store::OpenedSource& source : sources) {
    cache.sources_in_use.push_back(source.source.identity);
  }
  cache.idle_share = options_.guest_share;
  cache.expected_bytes = [this](const tier::FileKey& key) { return ExpectedBytes(key); };
  cache.open_files_max = std::min<size_t>(descriptors / 2, 20'000);
  ASSIGN_OR_RETURN(cache_, tier::TieredCache::Open(cache, file_io_.get()));
  return absl::OkStatus();
}

uint64_t CacheWorker::ExpectedBytes(const tier::FileKey& key) const {
  uint64_t largest = 0;
  for (const tier::TierOptions& tier : options_.tiers) {
    largest = std::max(largest, tier.quota_bytes);
  }
  const auto share = [largest](double part) {
    return static_cast<uint64_t>(part * static_cast<double>(largest));
  };
  if (absl::StartsWith(key.source, GuestSource(""))) {
    return std::min(key.size, share(options_.guest_share));
  }
  // Who owns nothing of it stands in for who does not answer.
  const uint64_t owned = std::max(ranks_->OwnedBytes(key), options_.extent_size);
  return std::min(owned, share(kFileShareMax));
}

absl::Status CacheWorker::OpenPool() {
  const net::TlsFiles files = {options_.certificate, options_.key, options_.authority};
  if (files.any()) {
    ASSIGN_OR_RETURN(tls_, net::Tls::Load(files, clock_));
  }
  if (options_.members.empty()) return absl::OkStatus();
  pool::PoolOptions pool;
  pool.workers = options_.members;
  pool.cluster = options_.cluster;
  pool.self = options_.id;
  pool.members_refresh = options_.members_refresh;
  pool.certificate = options_.certificate;
  pool.key = options_.key;
  pool.authority = options_.authority;
  ASSIGN_OR_RETURN(pool_, pool::Pool::Create(pool));
  return absl::OkStatus();
}

absl::Status CacheWorker::MakeDirectory(const std::optional<gid_t>& group) {
  const mode_t mode = group.has_value() ? 0750 : 0700;
  const std::string& directory = options_.directory;
  if (mkdir(directory.c_str(), mode) != 0 && errno != EEXIST) {
    return base::ErrnoStatus(errno, absl::StrCat("cannot make the directory ", directory));
  }
  struct stat status;
  if (stat(directory.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(directory, " is no directory"));
  }
  // Whoever can write there could put a socket of his own in the place of this one.
  if ((status.st_mode & S_IWOTH) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory, " is writable by everybody: give it mode 0700"));
  }
  if (status.st_uid == geteuid() && group.has_value()) {
    if (chown(directory.c_str(), static_cast<uid_t>(-1), *group) != 0 ||
        chmod(directory.c_str(), mode) != 0) {
      return base::ErrnoStatus(errno, absl::StrCat("cannot give ", directory, " to the group"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<DataServer::Listener> CacheWorker::ListenUnix(std::optional<gid_t>* group) {
  net::ListenOptions listen;
  if (!options_.socket_group.empty()) {
    ASSIGN_OR_RETURN(*group, FindGroup(options_.socket_group));
    listen.unix_mode = 0660;
    listen.unix_group = **group;
  }
  RETURN_IF_ERROR(MakeDirectory(*group));
  socket_path_ = absl::StrCat(options_.directory, "/worker.sock");
  ASSIGN_OR_RETURN(base::UniqueFd socket, net::Listen({.path = socket_path_}, listen));
  return DataServer::Listener{std::move(socket), true};
}

absl::Status CacheWorker::OpenDoors() {
  std::vector<DataServer::Listener> listeners;
  DataServerOptions doors;
  ASSIGN_OR_RETURN(base::UniqueFd socket,
                   net::Listen({.host = options_.listen_host, .port = options_.data_port},
                               net::ListenOptions()));
  ASSIGN_OR_RETURN(data_address_, net::LocalAddress(socket.get()));
  listeners.push_back({std::move(socket), false});
  if (!options_.directory.empty()) {
    ASSIGN_OR_RETURN(DataServer::Listener local, ListenUnix(&doors.socket_group));
    listeners.push_back(std::move(local));
  }
  doors.cluster = options_.cluster;
  doors.welcome = [this] { return Greeting(); };
  doors.tls = tls_.get();
  doors.clock = clock_;
  doors.blocks_max =
      std::max<uint64_t>(16, BufferBudget(options_.memory_limit_bytes) / tier::kBlockSize / 4);
  ASSIGN_OR_RETURN(server_, DataServer::Start(doors, std::move(listeners), files_.get(),
                                              indexes_.get(), door_counter_.get()));
  return absl::OkStatus();
}

void CacheWorker::OpenIndexes() {
  index::IndexKeeperOptions options;
  if (!options_.directory.empty()) options.directory = absl::StrCat(options_.directory, "/index");
  options.sort_memory_bytes = kIndexSortBytes;
  options.clock = clock_;
  std::vector<index::IndexKeeper::Source> sources;
  for (const auto& source : files_->sources()) {
    sources.push_back({source->identity, source->store});
  }
  indexes_ = index::IndexKeeper::Create(options, sources);
}

void CacheWorker::AwaitMembers() {
  if (pool_ == nullptr) return;
  const absl::Duration give_up = clock_->Monotonic() + kMembersPatience;
  while (clock_->Monotonic() < give_up) {
    const std::vector<pool::MemberStatus> members = pool_->Members();
    const bool heard =
        !members.empty() &&
        std::all_of(members.begin(), members.end(), [](const pool::MemberStatus& member) {
          return !member.id.empty() || !member.last_error.empty();
        });
    if (heard) break;
    clock_->Sleep(absl::Milliseconds(20));
  }
  UpdateMembers();
}

absl::StatusOr<std::unique_ptr<CacheWorker>> OpenWorker(const WorkerOptions& options) {
  auto worker = std::make_unique<CacheWorker>(options);
  RETURN_IF_ERROR(worker->Open());
  return worker;
}

// --- While it serves ----------------------------------------------------------------------------

proto::Welcome CacheWorker::Greeting() const {
  proto::Welcome welcome;
  welcome.cluster = options_.cluster;
  welcome.worker = options_.id;
  welcome.capacity_bytes = ranks_->options().capacity_bytes;
  welcome.extent_size = options_.extent_size;
  welcome.replicas = options_.replicas;
  welcome.draining = ranks_->draining();
  return welcome;
}

void CacheWorker::UpdateMembers() {
  if (pool_ == nullptr || !ranks_->Update(pool_->Members())) return;
  // While it leaves, all it has is still asked for.
  if (ranks_->draining()) return;
  cache_->Reclassify([this](const tier::FileKey& key) { return ranks_->OwnsAny(key); });
}

void CacheWorker::Maintain() {
  while (true) {
    {
      base::MutexLock lock(&stop_mutex_);
      if (!stopping_) stop_.WaitFor(&stop_mutex_, kMaintenanceEvery);
      if (stopping_) return;
    }
    files_->Trim();
    UpdateMembers();
  }
}

void CacheWorker::Collect(metrics::SampleSink& sink) const {
  tier::Collect(cache_->Stats(), sink);
  sink.Add(metrics::kWorkerConnections, {}, static_cast<double>(server_->connections()));
  sink.Add(metrics::kWorkerLeases, {}, static_cast<double>(server_->leases()));
  sink.Add(metrics::kWorkerThreads, {}, static_cast<double>(server_->threads()));
  sink.Add(metrics::kMemoryUsed, {}, static_cast<double>(files_->memory_used_bytes()));
  sink.Add(metrics::kMemoryLimit, {}, static_cast<double>(options_.memory_limit_bytes));
  if (pool_ != nullptr) {
    const pool::PoolStats stats = pool_->Stats();
    sink.Add(metrics::kErrors, {"pool", "fault"}, static_cast<double>(stats.faults));
    sink.Add(metrics::kErrors, {"pool", "damaged"}, static_cast<double>(stats.damaged_frames));
  }
}

absl::StatusOr<const Files::Source*> CacheWorker::FindSource(const std::string& identity) const {
  const Files::Source* source = files_->FindSource(identity);
  if (source == nullptr) {
    return absl::NotFoundError("the worker was not started with this source");
  }
  return source;
}

uint64_t CacheWorker::PresentBytes(const tier::FileKey& key, uint64_t offset,
                                   uint64_t length) const {
  const std::shared_ptr<tier::CachedFile> file = cache_->Find(key);
  return file == nullptr ? 0 : tier::PresentBytes(*file, offset, length);
}

proto::WorkerReport CacheWorker::Report() const {
  proto::WorkerReport report;
  report.id = options_.id;
  report.cluster = options_.cluster;
  report.version = std::string(base::kVersion);
  report.started_unix = absl::ToUnixSeconds(started_);
  report.draining = ranks_->draining();
  report.extent_size = options_.extent_size;
  report.replicas = options_.replicas;
  for (const tier::TierStats& tier : cache_->Stats()) {
    report.tiers.push_back({std::string(tier::MediumName(tier.medium)), tier.path, tier.used_bytes,
                            tier.capacity_bytes, tier.files, tier.files_complete});
  }
  for (const auto& source : files_->sources()) {
    report.sources.push_back({source->identity, source->url});
  }
  report.hits = door_counter_->Hits();
  if (pool_ != nullptr) {
    for (const pool::MemberStatus& member : pool_->Members()) {
      if (member.id == options_.id) continue;
      report.members.push_back({member.address, member.id, member.capacity_bytes, member.draining,
                                member.reachable, member.last_error});
    }
  }
  report.connections = server_->connections();
  report.memory_used_bytes = files_->memory_used_bytes();
  report.memory_limit_bytes = options_.memory_limit_bytes;
  report.resident_bytes = ResidentBytes();
  base::MutexLock lock(&drain_mutex_);
  if (drain_ != nullptr) report.drain = drain_->Progress();
  return report;
}

absl::StatusOr<proto::LocateReply> CacheWorker::Locate(const proto::LocateRequest& request) {
  ASSIGN_OR_RETURN(const Files::Source* source, FindSource(request.source));
  ASSIGN_OR_RETURN(const store::Entry entry,
                   source->store->Stat(request.path, store::CallOptions()));
  if (entry.kind != store::EntryKind::kObject) {
    return absl::FailedPreconditionError("a directory is nowhere; name a file");
  }
  UpdateMembers();
  if (request.offset > entry.size || request.length > entry.size - request.offset) {
    return absl::InvalidArgumentError("a range that is not within the file");
  }
  const tier::FileKey key = {request.source, request.path, entry.version, entry.size};
  proto::LocateReply reply;
  reply.version = entry.version;
  reply.size = entry.size;
  reply.extent_size = options_.extent_size;
  const uint64_t end = request.length == 0 ? entry.size : request.offset + request.length;
  for (uint64_t extent = request.offset / options_.extent_size;
       extent < ranks_->ExtentCount(entry.size) && extent * options_.extent_size < end; ++extent) {
    proto::LocatedExtent located;
    located.offset = extent * options_.extent_size;
    located.length = ranks_->ExtentBytes(entry.size, extent);
    located.workers = ranks_->Ranking(request.source, request.path, extent);
    located.present_bytes = PresentBytes(key, located.offset, located.length);
    reply.extents.push_back(std::move(located));
  }
  return reply;
}

absl::StatusOr<proto::StatReply> CacheWorker::Stat(const proto::StatRequest& request) {
  ASSIGN_OR_RETURN(const Files::Source* source, FindSource(request.source));
  ASSIGN_OR_RETURN(const store::Entry entry,
                   source->store->Stat(request.path, store::CallOptions()));
  proto::StatReply reply;
  reply.entry = ToListed(entry);
  if (entry.kind == store::EntryKind::kObject) {
    reply.present_bytes =
        PresentBytes({request.source, request.path, entry.version, entry.size}, 0, entry.size);
  }
  return reply;
}

absl::StatusOr<proto::ListReply> CacheWorker::List(const proto::ListRequest& request) {
  ASSIGN_OR_RETURN(const Files::Source* source, FindSource(request.source));
  const size_t entries =
      request.entries_max == 0 ? kListEntries : std::min<size_t>(request.entries_max, kListEntries);
  ASSIGN_OR_RETURN(store::ListPage page,
                   source->store->List(request.path, request.token, entries, store::CallOptions()));
  proto::ListReply reply;
  for (const store::Entry& entry : page.entries) reply.entries.push_back(ToListed(entry));
  reply.next_token = std::move(page.next_token);
  return reply;
}

absl::Status CacheWorker::Load(const proto::LoadRequest& request, LoadObserver observer) {
  ASSIGN_OR_RETURN(const Files::Source* source, FindSource(request.source));
  UpdateMembers();
  return LoadShare(
      *files_, *source, request.paths, *clock_,
      [&](const proto::LoadProgress& progress) { return !stopping() && observer(progress); });
}

absl::StatusOr<uint64_t> CacheWorker::Evict(const proto::EvictRequest& request) {
  ASSIGN_OR_RETURN(const Files::Source* source, FindSource(request.source));
  return files_->Evict(*source, request.path);
}

// --- Leaving ------------------------------------------------------------------------------------

void CacheWorker::StartDrain() {
  ranks_->SetDraining();
  base::MutexLock lock(&drain_mutex_);
  if (drain_ == nullptr && !stopping()) {
    drain_ = std::make_unique<Drain>(files_.get(), pool_.get(), clock_);
  }
}

absl::Status CacheWorker::WatchDrain(DrainObserver observer) {
  while (true) {
    proto::DrainProgress progress;
    {
      base::MutexLock lock(&drain_mutex_);
      if (drain_ == nullptr) {
        return absl::FailedPreconditionError("no drain was asked of this worker");
      }
      progress = drain_->Progress();
    }
    if (!observer(progress)) return absl::CancelledError("nobody watches any more");
    if (progress.done) return absl::OkStatus();
    base::MutexLock lock(&stop_mutex_);
    if (stopping_) return absl::CancelledError("the worker ends");
    stop_.WaitFor(&stop_mutex_, kReportEvery);
  }
}

void CacheWorker::EndThreads(absl::Duration grace) {
  if (server_ != nullptr) {
    server_->StopAccepting();
    if (!server_->AwaitIdle(grace)) {
      base::Log(base::Severity::kWarning, "requests were cut short: they took too long");
    }
  }
  {
    base::MutexLock lock(&stop_mutex_);
    stopping_ = true;
    stop_.NotifyAll();
  }
  if (maintenance_.joinable()) maintenance_.join();
  std::unique_ptr<Drain> drain;
  {
    base::MutexLock lock(&drain_mutex_);
    drain = std::move(drain_);
  }
  drain.reset();
  if (replicator_ != nullptr) replicator_->Stop();
  // Fetches end before the doors do: whoever waits for one is told.
  if (files_ != nullptr) files_->Stop();
  if (server_ != nullptr) server_->Stop();
  collector_ = metrics::CollectorHandle();
}

absl::Status CacheWorker::Stop(absl::Duration grace) {
  EndThreads(grace);
  server_.reset();
  indexes_.reset();
  files_.reset();
  if (!socket_path_.empty()) unlink(socket_path_.c_str());
  return cache_->Close();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Worker>> Worker::Start(const WorkerOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<Worker> worker, OpenWorker(options));
  return worker;
}

}  // namespace millrace::worker
