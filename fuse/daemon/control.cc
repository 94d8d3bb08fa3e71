// The daemon's answers to the command: status, warm, evict, refresh, ping.
#include <unistd.h>

#include <fstream>

#include "common/base/clock.h"
#include "common/base/sandbox.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/base/version.h"
#include "fuse/daemon/daemon.h"

namespace millrace::daemon {
namespace {

uint64_t ResidentBytes() {
  uint64_t pages = 0;
  uint64_t resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

control::TierStatus TierStatusOf(const tier::TierStats& stats) {
  control::TierStatus tier;
  tier.medium = std::string(tier::MediumName(stats.medium));
  tier.path = stats.path;
  tier.used_bytes = stats.used_bytes;
  tier.capacity_bytes = stats.capacity_bytes;
  tier.files = stats.files;
  tier.files_complete = stats.files_complete;
  tier.evictions = {{"quota", stats.evictions_quota},
                    {"version", stats.evictions_version},
                    {"user", stats.evictions_user}};
  tier.demotions = stats.demotions;
  tier.faults = {{"disk", stats.faults_disk}, {"damaged", stats.faults_damaged}};
  tier.refused = stats.refused;
  return tier;
}

control::WarmProgress ProgressOf(const vfs::Vfs::WarmProgress& progress, absl::Duration elapsed) {
  control::WarmProgress answer;
  answer.bytes_done = progress.bytes_done;
  answer.bytes_total = progress.bytes_total;
  answer.files_done = progress.files_done;
  answer.files_total = progress.files_total;
  answer.files_failed = progress.files_failed;
  answer.bytes_refused = progress.bytes_refused;
  answer.last_error = progress.last_error;
  // The names are counted before the first byte is fetched.
  answer.total_known = progress.bytes_done > 0 || progress.files_done > 0;
  answer.bytes_per_second =
      static_cast<double>(progress.bytes_done) / std::max(absl::ToDoubleSeconds(elapsed), 0.001);
  return answer;
}

}  // namespace

absl::Status Daemon::Handle(const base::Json& request, control::ResponseStream& stream) {
  const std::string op = base::JsonString(request, "op");
  if (op == control::kOpPing) {
    stream.Result({{"version", std::string(base::kVersion)}, {"pid", getpid()}});
    return absl::OkStatus();
  }
  if (op == control::kOpStatus) {
    stream.Result({{"status", control::ToJson(Status())}});
    return absl::OkStatus();
  }
  if (op == control::kOpRefresh) {
    ASSIGN_OR_RETURN(const uint64_t changes, tree_->RefreshAll());
    stream.Result({{"changes", changes}});
    return absl::OkStatus();
  }
  if (op == control::kOpWarm || op == control::kOpEvict) {
    ASSIGN_OR_RETURN(control::PathsRequest paths, control::PathsRequestFromJson(request));
    if (paths.paths.empty()) paths.paths.push_back("");
    return op == control::kOpWarm ? HandleWarm(paths, stream) : HandleEvict(paths, stream);
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown request \"", op, "\""));
}

absl::Status Daemon::HandleWarm(const control::PathsRequest& request,
                                control::ResponseStream& stream) {
  const absl::Duration start = base::RealClock()->Monotonic();
  const auto elapsed = [start] { return base::RealClock()->Monotonic() - start; };
  ASSIGN_OR_RETURN(const vfs::Vfs::WarmProgress progress,
                   mount_->vfs().Warm(request.paths, [&](const vfs::Vfs::WarmProgress& now) {
                     return !stream.Cancelled() &&
                            stream.Progress(control::ToJson(ProgressOf(now, elapsed()))).ok();
                   }));
  control::WarmProgress final = ProgressOf(progress, elapsed());
  final.total_known = true;
  stream.Result(control::ToJson(final));
  return absl::OkStatus();
}

absl::Status Daemon::HandleEvict(const control::PathsRequest& request,
                                 control::ResponseStream& stream) {
  uint64_t freed = 0;
  for (const std::string& path : request.paths) {
    ASSIGN_OR_RETURN(const uint64_t bytes, mount_->vfs().Evict(path));
    freed += bytes;
  }
  stream.Result({{"bytes_freed", freed}});
  return absl::OkStatus();
}

control::PoolStatus Daemon::StatusOfWorkers() const {
  const pool::PoolStats stats = workers_->Stats();
  control::PoolStatus status;
  for (const pool::MemberStatus& member : workers_->Members()) {
    status.members.push_back({member.address, member.id, member.reachable, member.draining,
                              member.capacity_bytes, member.last_error});
  }
  status.bytes_remote = stats.bytes_remote;
  status.bytes_through_store = stats.bytes_through_store;
  status.bytes_short_circuit = stats.bytes_short_circuit;
  status.bypassed = stats.bypassed;
  status.faults = stats.faults;
  status.damaged = stats.damaged_frames;
  return status;
}

control::StatusReport Daemon::Status() const {
  control::StatusReport report;
  report.mountpoint = options_.mountpoint;
  report.version = base::kVersion;
  report.pid = static_cast<uint64_t>(getpid());
  report.started_unix = static_cast<uint64_t>(absl::ToUnixSeconds(started_));
  report.profile = std::string(vfs::ProfileName(mount_->vfs().profile()));
  report.profile_reason = options_.profile == options::Profile::kAuto
                              ? "chosen from a sample of the source"
                              : "asked for with --profile";
  report.io = io_name_;
  const adapter::Features features = mount_->features();
  report.features = {
      {"passthrough", features.passthrough},
      {"open_less", features.without_open && mount_->vfs().profile() == vfs::Profile::kSmallFiles},
      {"read_ahead_raised", custody_->session()->read_ahead_raised.load() != 0},
      {"sandbox", base::SandboxInstalled()},
      {"uring", features.uring}};
  report.runs_as = custody_->identity();
  for (const store::OpenedSource& source : sources_) {
    report.sources.push_back(
        {source.source.name, source.source.url, std::string(source.store->kind())});
  }
  for (const tier::TierStats& stats : cache_->Stats()) {
    report.tiers.push_back(TierStatusOf(stats));
  }
  if (workers_ != nullptr) report.pool = StatusOfWorkers();
  report.reads = read_counter_->Reads();
  const ReadCounter::Passthrough own = read_counter_->passthrough(fetch::Origin::kLocal);
  const ReadCounter::Passthrough borrowed =
      read_counter_->passthrough(fetch::Origin::kShortCircuit);
  report.passthrough_opens = own.opens + borrowed.opens;
  report.passthrough_bytes = own.bytes + borrowed.bytes;
  report.passthrough_short_circuit_bytes = borrowed.bytes;
  const std::vector<double> rates = rates_->Rates();
  if (rates.size() == 2) {
    report.read_bytes_per_second = rates[0];
    report.store_bytes_per_second = rates[1];
  }
  for (const auto& counter : store_counters_) {
    report.store_bytes += counter->bytes();
    report.store_requests += counter->requests();
  }
  report.errors = {{"fetch/store", shared_.store_errors.load()},
                   {"fetch/cache", shared_.cache_errors.load()},
                   {"fetch/stale", shared_.stale_objects.load()}};
  report.sessions_survived = custody_->session().TakeoverCount();
  report.keeper = keeper::StatusOfKeeper(custody_->session(), custody_->has_keeper());
  report.memory_used_bytes = pool_->used_blocks() * fetch::kBlockSize;
  report.memory_limit_bytes = options_.memory_limit_bytes;
  report.resident_bytes = ResidentBytes();
  const vfs::TreeStats tree = tree_->Stats();
  report.directories = tree.directories;
  report.files = tree.files;
  report.names_hidden = tree.names_hidden;
  report.names_changed = tree.changes;
  return report;
}

}  // namespace millrace::daemon
