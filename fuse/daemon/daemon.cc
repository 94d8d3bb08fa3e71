#include "fuse/daemon/daemon.h"

#include <sys/resource.h>
#include <sys/vfs.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cache/pool/short_circuit.h"
#include "cache/tier/no_cache.h"
#include "cache/tier/tier_metrics.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/base/version.h"
#include "common/metrics/metric_names.h"

namespace millrace::daemon {
namespace {

// Descriptors for cache files, sockets and all else; the hard limit is what counts.
constexpr rlim_t kDescriptorsWanted = 1 << 16;
// Of a source: enough to tell small files from large ones, one page of an S3 listing.
constexpr size_t kSampleSize = 1000;
// Opens wait this long for the sample; then files count as large.
constexpr absl::Duration kSampleTimeout = absl::Seconds(5);
constexpr unsigned kRingEntries = 256;
constexpr int kPosixReadThreads = 8;
// Of an answer on its way when a successor takes over. It is asked again for what takes longer.
constexpr absl::Duration kDetachTimeout = absl::Milliseconds(20);
// Each a lease and a descriptor.
constexpr size_t kIdleBorrowedMax = 8192;
constexpr long kOverlayfsMagic = 0x794c7630;

size_t RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  limit.rlim_cur = std::min(limit.rlim_max, std::max(limit.rlim_cur, kDescriptorsWanted));
  setrlimit(RLIMIT_NOFILE, &limit);
  getrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<size_t>(limit.rlim_cur);
}

bool OnOverlayfs(const std::string& path) {
  struct statfs file_system;
  return statfs(path.c_str(), &file_system) == 0 && file_system.f_type == kOverlayfsMagic;
}

// What buffers are made of is the limit, less what the rest of the process takes: names, threads,
// connections. An eighth, at least 16 MiB.
uint64_t BufferBudget(uint64_t limit) {
  return limit - std::max<uint64_t>(16 * base::kMiB, limit / 8);
}

// The indexes of the sources of a mount with workers, all together; 55 bytes for an object of S3.
uint64_t IndexBudget(const options::MountOptions& options) {
  return options.workers.empty() ? 0 : options.memory_limit_bytes / 8;
}

vfs::Profile ProfileOf(options::Profile profile) {
  switch (profile) {
    case options::Profile::kSmallFiles:
      return vfs::Profile::kSmallFiles;
    case options::Profile::kLargeFiles:
      return vfs::Profile::kLargeFiles;
    case options::Profile::kAuto:
      break;
  }
  return vfs::Profile::kAuto;
}

void CollectWorkers(const pool::Pool& workers, metrics::SampleSink& sink) {
  const pool::PoolStats stats = workers.Stats();
  sink.Add(metrics::kPoolBytes, {"worker"}, static_cast<double>(stats.bytes_remote));
  sink.Add(metrics::kPoolBytes, {"store"}, static_cast<double>(stats.bytes_through_store));
  sink.Add(metrics::kPoolBytes, {"short_circuit"}, static_cast<double>(stats.bytes_short_circuit));
  sink.Add(metrics::kPoolBypassed, {}, static_cast<double>(stats.bypassed));
  sink.Add(metrics::kPoolNames, {"index"}, static_cast<double>(stats.names_from_index));
  sink.Add(metrics::kPoolNames, {"store"}, static_cast<double>(stats.names_from_store));
  sink.Add(metrics::kPoolFaults, {"damaged"}, static_cast<double>(stats.damaged_frames));
  sink.Add(metrics::kPoolFaults, {"call"},
           static_cast<double>(stats.faults - std::min(stats.faults, stats.damaged_frames)));
  double answers = 0;
  double draining = 0;
  double away = 0;
  for (const pool::MemberStatus& member : workers.Members()) {
    ++(!member.reachable ? away : member.draining ? draining : answers);
  }
  sink.Add(metrics::kPoolMembers, {"answers"}, answers);
  sink.Add(metrics::kPoolMembers, {"draining"}, draining);
  sink.Add(metrics::kPoolMembers, {"away"}, away);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Open(const options::MountOptions& options,
                                                     keeper::Custody* custody) {
  if (options.transport == options::Transport::kUring && !adapter::HasUring()) {
    return absl::FailedPreconditionError(
        "--fuse-transport=uring: the libfuse that this program was built with loses requests; "
        "build "
        "it with ./dev, which mends that, or leave the option out");
  }
  std::unique_ptr<Daemon> daemon(new Daemon(options, custody));
  daemon->metrics_ = std::make_unique<metrics::Metrics>(base::kVersion);
  daemon->metrics_wanted_ = !options.metrics_address.empty();
  if (daemon->metrics_wanted_ && !custody->take_over()) {
    RETURN_IF_ERROR(daemon->metrics_->Serve(options.metrics_address));
    daemon->metrics_wanted_ = false;
  }
  RETURN_IF_ERROR(daemon->OpenWorkers());
  RETURN_IF_ERROR(daemon->OpenSources());
  const size_t descriptors = RaiseDescriptorLimit();
  RETURN_IF_ERROR(daemon->OpenFileIo());
  if (custody->standby()) {
    // Refused while the old daemon can still serve on.
    ASSIGN_OR_RETURN(const base::UniqueFd nodes, custody->NodeMemory());
    RETURN_IF_ERROR(vfs::Ledger::CheckLayout(nodes.get()));
    RETURN_IF_ERROR(custody->AwaitGo());
  }
  RETURN_IF_ERROR(daemon->OpenCache(descriptors));
  return daemon;
}

absl::Status Daemon::Serve() {
  ASSIGN_OR_RETURN(keeper::Grant grant, custody_->Open());
  RETURN_IF_ERROR(TakeMount(std::move(grant.device), grant.can_back));
  collector_ = metrics_->AddCollector([this](metrics::SampleSink& sink) { Collect(sink); });
  rates_ = std::make_unique<metrics::RateSampler>(base::RealClock(), absl::Seconds(10),
                                                  [this]() -> std::vector<uint64_t> {
                                                    uint64_t store_bytes = 0;
                                                    for (const auto& counter : store_counters_)
                                                      store_bytes += counter->bytes();
                                                    return {read_counter_->bytes(), store_bytes};
                                                  });
  rates_->Start();
  ASSIGN_OR_RETURN(control_,
                   control::ControlServer::Start(
                       {.listener = std::move(grant.control_listener)},
                       [this](const base::Json& request, control::ResponseStream& stream) {
                         return Handle(request, stream);
                       }));
  // A keeper that dies in this moment does not take the mount with it.
  const absl::Status told = custody_->Serving();
  if (!told.ok() && !absl::IsUnavailable(told)) return told;
  {
    base::MutexLock lock(&stop_mutex_);
    serving_ = true;
    finish_ |= stopping_;
  }
  maintenance_ = std::thread([this] { Maintain(); });
  custody_->Listen(this);
  return absl::OkStatus();
}

void Daemon::Note(bool* event) {
  base::MutexLock lock(&stop_mutex_);
  *event = true;
  stop_.NotifyAll();
}

void Daemon::Stop() {
  bool lingers;
  {
    base::MutexLock lock(&stop_mutex_);
    lingers = lingers_;
  }
  if (!lingers) {
    if (custody_->EndMount().ok()) return;  // What follows comes from the keeper.
    base::Log(base::Severity::kWarning,
              "ending without a keeper: the mount stays, dead; take it away with millrace umount",
              {{"mountpoint", options_.mountpoint}});
  }
  base::MutexLock lock(&stop_mutex_);
  if (serving_) {
    finish_ = true;
  } else {
    stopping_ = true;
  }
  stop_.NotifyAll();
}

absl::Status Daemon::OpenWorkers() {
  if (options_.workers.empty()) return absl::OkStatus();
  pool::PoolOptions options;
  options.workers = options_.workers;
  options.cluster = options_.cluster;
  options.certificate = options_.worker_certificate;
  options.key = options_.worker_key;
  options.authority = options_.worker_authority;
  options.index_refresh = options_.refresh;
  options.index_bytes_max = IndexBudget(options_) / options_.sources.size();
  ASSIGN_OR_RETURN(workers_, pool::Pool::Create(options));
  return absl::OkStatus();
}

absl::Status Daemon::OpenSources() {
  std::vector<std::string> labels;
  for (const std::string& text : options_.sources) {
    ASSIGN_OR_RETURN(store::OpenedSource source,
                     custody_->take_over() ? store::ReopenSource(text) : store::OpenSource(text));
    labels.push_back(DatasetLabel(source.source));
    // The first word to the store decides whether there is a mount: no retries, so that a wrong
    // name is told at once. Where there is one already, the store may be away: cached files are
    // read on.
    if (!custody_->take_over()) {
      RETURN_IF_ERROR(store::CheckAccess(source, {.timeout = absl::Seconds(20)}));
    }
    store_counters_.push_back(std::make_unique<StoreCounter>(labels.back(), metrics_.get()));
    source.store = store::NewRetryingStore(
        store::NewCountingStore(std::move(source.store), store_counters_.back().get()),
        {.deadline = options_.store_deadline});
    // Above what counts and tries again: a request to the store is one, who answers the reader or
    // not.
    if (workers_ != nullptr) {
      source.store = workers_->Wrap(source.source.identity, std::move(source.store));
    }
    sources_.push_back(std::move(source));
  }
  read_counter_ = std::make_unique<ReadCounter>(labels, metrics_.get());
  return absl::OkStatus();
}

absl::Status Daemon::OpenFileIo() {
  if (options_.io != options::Io::kPosix) {
    absl::StatusOr<std::unique_ptr<io::FileIo>> uring = io::NewUringFileIo(kRingEntries);
    if (uring.ok()) {
      file_io_ = *std::move(uring);
      io_name_ = "io_uring";
    } else if (options_.io == options::Io::kUring) {
      return uring.status();
    } else {
      warnings_.push_back(absl::StrCat("no io_uring: ", uring.status().message()));
    }
  }
  if (file_io_ == nullptr) {
    file_io_ = io::NewPosixFileIo(kPosixReadThreads);
    io_name_ = "posix";
  }
  return absl::OkStatus();
}

absl::Status Daemon::OpenCache(size_t descriptors) {
  tier::CacheOptions cache;
  cache.tiers = options_.tiers;
  cache.policy = options_.eviction;
  for (const store::OpenedSource& source : sources_) {
    cache.sources_in_use.push_back(source.source.identity);
  }
  cache.open_files_max = std::min<size_t>(descriptors / 2, 20'000);
  if (cache.tiers.empty()) {
    cache_ = tier::NewNoCache();
  } else {
    ASSIGN_OR_RETURN(cache_, tier::TieredCache::Open(cache, file_io_.get()));
  }
  if (workers_ != nullptr) {
    // Each borrowed file is a descriptor.
    cache_ = std::make_unique<pool::ShortCircuitCache>(std::move(cache_), workers_.get(),
                                                       std::min<size_t>(descriptors / 4, 10'000),
                                                       file_io_.get(), base::RealClock());
  }

  pool_ = std::make_unique<fetch::BufferPool>(
      BufferBudget(options_.memory_limit_bytes - IndexBudget(options_)));
  memory_ = std::make_unique<fetch::MemoryCache>(pool_.get());
  queue_ =
      std::make_unique<fetch::FetchQueue>(static_cast<size_t>(options_.connections), pool_.get(),
                                          [this] { return memory_->DropOldest(); });
  shared_.cache = cache_.get();
  shared_.pool = pool_.get();
  shared_.queue = queue_.get();
  shared_.memory = memory_.get();
  shared_.keeps_read = !options_.tiers.empty();
  return absl::OkStatus();
}

absl::Status Daemon::TakeMount(base::UniqueFd device, bool can_back) {
  ASSIGN_OR_RETURN(base::UniqueFd nodes, custody_->NodeMemory());
  ASSIGN_OR_RETURN(ledger_, vfs::Ledger::Open(std::move(nodes)));
  vfs::TreeOptions tree;
  tree.sources = sources_;
  tree.refresh = options_.refresh;
  tree.ledger = ledger_.get();
  tree_ = vfs::Tree::Create(std::move(tree));

  adapter::MountOptions mount;
  mount.uid = options_.uid;
  mount.gid = options_.gid;
  mount.file_mode = options_.file_mode;
  mount.directory_mode = options_.dir_mode;
  // A mount without OPEN cannot use it.
  mount.passthrough = options_.passthrough && options_.profile != options::Profile::kSmallFiles;
  mount.uring = options_.transport == options::Transport::kUring;
  mount.negative_timeout = std::min(options_.refresh, absl::Seconds(60));
  for (const tier::TierOptions& option : options_.tiers) {
    if (OnOverlayfs(option.path)) mount.backing_stack_depth = 2;
  }
  adapter::Session session;
  session.device = std::move(device);
  session.saved_init = custody_->session().SavedInit();
  session.save_init = [this](absl::string_view init) { return custody_->session().SaveInit(init); };
  if (can_back) session.backing = &backing_;
  ASSIGN_OR_RETURN(
      mount_, adapter::Mount::Create(
                  mount, std::move(session),
                  [this](vfs::BackingFiles* backing, const adapter::Features& features) {
                    vfs::VfsOptions options;
                    options.profile = ProfileOf(options_.profile);
                    options.look_ahead = options_.look_ahead;
                    // About 1 KiB each: an eighth of the limit at most.
                    options.idle_files_max = options_.memory_limit_bytes / (8 * base::kKiB);
                    // Of what no cache here keeps, a file that is not open has little to tell: what
                    // it may have borrowed from the worker.
                    if (options_.tiers.empty()) {
                      options.idle_files_max = std::min(options.idle_files_max, kIdleBorrowedMax);
                    }
                    options.backing = backing;
                    options.ledger = ledger_.get();
                    options.direct = features.direct;
                    options.observer = read_counter_.get();
                    return std::make_unique<vfs::Vfs>(options, tree_.get(), sources_, &shared_);
                  },
                  [this] {
                    adapter::Mount::Capacity capacity;
                    for (const tier::TierStats& stats : cache_->Stats()) {
                      capacity.capacity_bytes += stats.capacity_bytes;
                      capacity.used_bytes += stats.used_bytes;
                    }
                    capacity.files = tree_->Stats().files;
                    return capacity;
                  }));
  // A predecessor may have chosen already.
  if (mount_->vfs().profile() == vfs::Profile::kAuto) {
    sampler_ = std::thread([this] { ChooseProfileFromSample(); });
  }
  return absl::OkStatus();
}

void Daemon::ChooseProfileFromSample() {
  std::vector<store::Entry> sample;
  store::CallOptions call;
  call.timeout = kSampleTimeout;
  call.age_max = absl::Hours(1);  // Sizes of most files do not change.
  for (const store::OpenedSource& source : sources_) {
    absl::StatusOr<std::vector<store::Entry>> part =
        source.store->Sample(kSampleSize / sources_.size() + 1, call);
    if (!part.ok()) {
      base::Log(base::Severity::kWarning, "no sample of the source; its files count as large",
                {{"source", source.source.url}, {"cause", part.status().ToString()}});
      continue;
    }
    std::move(part->begin(), part->end(), std::back_inserter(sample));
  }
  const vfs::Profile profile = vfs::ChooseProfile(sample);
  base::Log(base::Severity::kInfo, "profile chosen",
            {{"profile", vfs::ProfileName(profile)}, {"sampled", sample.size()}});
  mount_->vfs().SetProfile(profile);
}

void Daemon::Maintain() {
  uint64_t evictions_seen = 0;
  while (true) {
    bool drain;
    bool finish;
    {
      base::MutexLock lock(&stop_mutex_);
      const bool drain_now = drain_ && !drained_;
      if (!stopping_ && !drain_now && !finish_ && !ended_) {
        stop_.WaitFor(&stop_mutex_, absl::Seconds(1));
      }
      if (stopping_) return;
      drain = drain_ && !std::exchange(drained_, drain_);
      if (ended_ && !drain) return;
      finish = finish_;
    }
    // Here and not in the custody's thread, which answers those who are waited for.
    if (drain) {
      HandOver();
      continue;
    }
    if (finish) return mount_->Stop();
    ServeMetrics();
    pool_->Trim();
    uint64_t evictions = 0;
    for (const tier::TierStats& tier : cache_->Stats()) {
      evictions += tier.evictions_quota + tier.evictions_version + tier.evictions_user;
    }
    if (std::exchange(evictions_seen, evictions) != evictions) mount_->vfs().DropEvicted();
  }
}

// The predecessor's listening socket goes with its process, which may take a moment longer than its
// mount.
void Daemon::ServeMetrics() {
  if (!metrics_wanted_) return;
  const absl::Status status = metrics_->Serve(options_.metrics_address);
  metrics_wanted_ = absl::IsUnavailable(status);
  if (status.ok()) return;
  base::Log(base::Severity::kWarning, "metrics are not served yet", {{"cause", status.ToString()}});
}

void Daemon::HandOver() {
  const bool lingers = options_.transport == options::Transport::kUring;
  if (lingers) {
    base::Log(base::Severity::kInfo, "serving on what is open; a successor serves the mount");
    control_->Stop();
    metrics_wanted_ = false;
    metrics_->StopServing();
    base::MutexLock lock(&stop_mutex_);
    lingers_ = true;
  } else {
    mount_->Detach(kDetachTimeout);
    // What a fetch has brought so far is in the cache.
    queue_->Stop();
  }
  if (const absl::Status status = cache_->HandOver(); !status.ok()) {
    base::Log(base::Severity::kWarning, "the cache was not written out for the successor",
              {{"cause", status.ToString()}});
  }
  custody_->Drained(lingers);
}

absl::StatusOr<Daemon::Ended> Daemon::Run() {
  mount_->Wait();
  bool drained;
  {
    base::MutexLock lock(&stop_mutex_);
    drained = drain_;
    ended_ = drained;
    stop_.NotifyAll();
  }
  if (drained) {
    maintenance_.join();
    return Ended::kHandedOver;
  }
  EndThreads();
  const absl::Status closed = cache_->Close();
  custody_->Leaving();
  RETURN_IF_ERROR(closed);
  return Ended::kUnmounted;
}

void Daemon::EndThreads() {
  {
    base::MutexLock lock(&stop_mutex_);
    stopping_ = true;
    stop_.NotifyAll();
  }
  if (maintenance_.joinable()) maintenance_.join();
  if (control_ != nullptr) control_->Stop();
  if (rates_ != nullptr) rates_->Stop();
  if (mount_ != nullptr) {
    mount_->Stop();
    mount_->Wait();
  }
  if (sampler_.joinable()) sampler_.join();
  if (queue_ != nullptr) queue_->Stop();
  if (tree_ != nullptr) tree_->SetInvalidator(nullptr);
}

control::ReadySummary Daemon::Summary() const {
  control::ReadySummary summary;
  summary.mountpoint = options_.mountpoint;
  for (const store::OpenedSource& source : sources_) {
    const std::string name = source.source.name.empty() ? "" : source.source.name + " = ";
    summary.facts.emplace_back("source", absl::StrCat(name, source.source.url));
  }
  for (const tier::TierStats& tier : cache_->Stats()) {
    summary.facts.emplace_back("cache",
                               absl::StrCat(tier::MediumName(tier.medium), " ", tier.path, ", ",
                                            base::FormatBytes(tier.capacity_bytes), ", ",
                                            base::FormatBytes(tier.used_bytes), " in use"));
  }
  if (options_.tiers.empty()) {
    summary.facts.emplace_back("cache", "none here: the workers keep what is read");
  }
  if (!options_.workers.empty()) {
    summary.facts.emplace_back("workers", absl::StrJoin(options_.workers, ", "));
  }
  const adapter::Features features = mount_->features();
  summary.facts.emplace_back("passthrough", features.passthrough
                                                ? "yes: complete files are read by the kernel alone"
                                            : options_.profile == options::Profile::kSmallFiles
                                                ? "not with --profile small-files"
                                                : "no: it needs Linux 6.9 and root");
  if (options_.transport == options::Transport::kUring) {
    summary.facts.emplace_back("requests", features.uring
                                               ? "by io_uring: open files do not survive a crash"
                                               : "from the device: io_uring was refused");
  }
  summary.facts.emplace_back("cache reads", io_name_);
  if (!custody_->identity().empty()) summary.facts.emplace_back("runs as", custody_->identity());
  summary.facts.emplace_back(
      "profile", options_.profile == options::Profile::kAuto
                     ? "auto: chosen from a sample before the first open; see millrace status"
                     : std::string(vfs::ProfileName(ProfileOf(options_.profile))));
  summary.warnings = warnings_;
  return summary;
}

void Daemon::Collect(metrics::SampleSink& sink) {
  tier::Collect(cache_->Stats(), sink);
  if (workers_ != nullptr) CollectWorkers(*workers_, sink);
  std::map<std::string, std::pair<double, double>> by_dataset;  // All bytes, bytes of the store.
  for (const control::ReadStatus& read : read_counter_->Reads()) {
    by_dataset[read.dataset].first += static_cast<double>(read.bytes);
    if (read.tier == "store") by_dataset[read.dataset].second += static_cast<double>(read.bytes);
  }
  for (const auto& [dataset, bytes] : by_dataset) {
    if (bytes.first > 0) {
      sink.Add(metrics::kCacheHitRatio, {dataset}, 1 - bytes.second / bytes.first);
    }
  }
  for (size_t i = 0; i < adapter::kOperations.size(); ++i) {
    sink.Add(metrics::kFuseRequests, {adapter::kOperations[i]},
             static_cast<double>(mount_->operations()[i].load()));
  }
  const vfs::TreeStats tree = tree_->Stats();
  sink.Add(metrics::kNamesHidden, {}, static_cast<double>(tree.names_hidden));
  sink.Add(metrics::kNames, {"file"}, static_cast<double>(tree.files));
  sink.Add(metrics::kNames, {"directory"}, static_cast<double>(tree.directories));
  for (size_t i = 0; i < keeper::kCauses; ++i) {
    sink.Add(metrics::kTakeovers, {std::string(keeper::CauseName(static_cast<keeper::Cause>(i)))},
             static_cast<double>(custody_->session()->takeovers[i].load()));
  }
  sink.AddHistogram(metrics::kTakeoverSeconds, {}, custody_->session().Pauses());
  sink.Add(metrics::kSessionsLost, {},
           static_cast<double>(custody_->session()->sessions_lost.load()));
  sink.Add(metrics::kMemoryUsed, {}, static_cast<double>(pool_->used_blocks() * fetch::kBlockSize));
  sink.Add(metrics::kMemoryLimit, {}, static_cast<double>(options_.memory_limit_bytes));
  sink.Add(metrics::kErrors, {"fetch", "store"}, shared_.store_errors.load());
  sink.Add(metrics::kErrors, {"fetch", "cache"}, shared_.cache_errors.load());
  sink.Add(metrics::kErrors, {"fetch", "stale"}, shared_.stale_objects.load());
}

}  // namespace millrace::daemon
