// The words between the command and a mount's daemon (docs/control.md).
//
// One request per connection: a line of JSON, at most 64 KiB, {"op": …}. The answer is one or more
// lines of JSON; the last one has "done": true, and "error": {"code", "message"} if it failed.
// Readers ignore fields they do not know and take absent ones for zero, so that a command and a
// daemon of neighbouring versions understand each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/json.h"

namespace millrace::control {

inline constexpr size_t kRequestSizeMax = 64 * 1024;
// A status of a mount with thousands of sources is long; a line beyond this is no answer of ours.
inline constexpr size_t kResponseLineMax = 16 * 1024 * 1024;

// Values of "op".
inline constexpr char kOpPing[] = "ping";      // -> {"done":true,"version","pid"}
inline constexpr char kOpStatus[] = "status";  // -> {"done":true,"status":StatusReport}
inline constexpr char kOpWarm[] = "warm";      // {"paths":[…]} -> WarmProgress…, last with done
inline constexpr char kOpEvict[] = "evict";    // {"paths":[…]} -> {"done":true,"bytes_freed"}
inline constexpr char kOpRefresh[] = "refresh";  // -> {"done":true,"changes"}: lists again now
// Of a keeper's socket, which also knows ping:
inline constexpr char kOpUpgrade[] = "upgrade";  // {"program":PATH} -> UpgradeResult
inline constexpr char kOpStop[] = "stop";        // Unmounts -> {"done":true} before it is done

struct PathsRequest {
  std::string op;
  // Inside the mount, without leading or trailing slash; "" is everything. Empty list: everything.
  std::vector<std::string> paths;
};
base::Json ToJson(const PathsRequest& request);
// InvalidArgument when "paths" is no list of strings, or one leaves the mount ("..").
absl::StatusOr<PathsRequest> PathsRequestFromJson(const base::Json& json);

struct WarmProgress {
  uint64_t bytes_done = 0;   // In the cache, what was there already included.
  uint64_t bytes_total = 0;  // Known so far; final when total_known.
  uint64_t files_done = 0;
  uint64_t files_total = 0;
  uint64_t files_failed = 0;
  uint64_t bytes_refused = 0;   // Not kept: the cache is full.
  bool total_known = false;     // The walk over the names has ended.
  double bytes_per_second = 0;  // Over the last seconds.
  std::string last_error;       // Of the last file that failed.
};
base::Json ToJson(const WarmProgress& progress);
WarmProgress WarmProgressFromJson(const base::Json& json);

struct SourceStatus {
  std::string name;  // Empty for the source that is the root.
  std::string url;   // Without options: it holds no secret.
  std::string kind;  // "s3", "file", …
};

struct TierStatus {
  std::string medium;  // "mem", "ssd", "hdd"
  std::string path;
  uint64_t used_bytes = 0;
  uint64_t capacity_bytes = 0;
  uint64_t files = 0;
  uint64_t files_complete = 0;
  std::map<std::string, uint64_t> evictions;  // By reason: quota, version, user.
  uint64_t demotions = 0;
  std::map<std::string, uint64_t> faults;  // By kind: disk, damaged.
  uint64_t refused = 0;                    // Files not admitted for want of room.
};

// Bytes and requests one dataset's readers got from one place. `tier` as in the metrics: page,
// local, short_circuit, remote, store.
struct ReadStatus {
  std::string dataset;
  std::string tier;
  uint64_t bytes = 0;
  uint64_t requests = 0;
};

// Who watches over the mount, and what it has lived through.
struct KeeperStatus {
  uint64_t pid = 0;
  bool alive = false;
  std::map<std::string, uint64_t> takeovers;  // By cause: signal, exit, oom, hang, upgrade.
  double last_pause_seconds = 0;              // The last of them left the mount without a daemon.
  // Mounts here that were given up: both processes had been killed, or with the io_uring transport
  // the daemon.
  uint64_t sessions_lost = 0;
  std::string crash_loop;  // Why no daemon is started any more; empty: one serves.
};

// One cache worker as the mount sees it.
struct MemberStatus {
  std::string address;  // HOST:PORT, or unix:PATH of this node's.
  std::string id;       // Empty until it has answered once.
  bool reachable = false;
  bool draining = false;
  uint64_t capacity_bytes = 0;
  std::string last_error;
};

// The cache workers of a mount; no members where it uses none.
struct PoolStatus {
  std::vector<MemberStatus> members;
  uint64_t bytes_remote = 0;         // Had by workers.
  uint64_t bytes_through_store = 0;  // Fetched by workers for this mount.
  uint64_t bytes_short_circuit = 0;  // Sizes of the files this node's worker handed over.
  uint64_t bypassed = 0;             // Ranges that no worker gave.
  uint64_t faults = 0;               // Calls to workers that failed, damaged answers included.
  uint64_t damaged = 0;
};

struct StatusReport {
  std::string mountpoint;
  std::string version;
  uint64_t pid = 0;
  uint64_t started_unix = 0;  // Seconds.
  std::string profile;        // "small-files" or "large-files".
  std::string profile_reason;
  std::string io;                        // "uring" or "posix".
  std::string runs_as;                   // The daemon's user, and what more it may, for people.
  std::map<std::string, bool> features;  // "passthrough", "open_less", "fuse_over_io_uring", …
  std::vector<SourceStatus> sources;
  std::vector<TierStatus> tiers;
  PoolStatus pool;
  std::vector<ReadStatus> reads;
  // Opens the kernel serves by itself, and the sizes of those files. What is read through them is
  // invisible to the daemon and in none of the other figures.
  uint64_t passthrough_opens = 0;
  uint64_t passthrough_bytes = 0;
  uint64_t passthrough_short_circuit_bytes = 0;  // Of them, files of the worker on this node.
  double read_bytes_per_second = 0;              // To readers, over the last ten seconds.
  double store_bytes_per_second = 0;             // From the stores, likewise.
  uint64_t store_bytes = 0;
  uint64_t store_requests = 0;
  std::map<std::string, uint64_t> errors;  // "component/kind".
  uint64_t sessions_survived = 0;          // Take-overs of the mount by a new daemon, all causes.
  KeeperStatus keeper;
  uint64_t memory_used_bytes = 0;  // Reserved of the budget.
  uint64_t memory_limit_bytes = 0;
  uint64_t resident_bytes = 0;  // The process, as the kernel counts it.
  uint64_t directories = 0;     // Known names.
  uint64_t files = 0;
  uint64_t names_hidden = 0;
  uint64_t names_changed = 0;  // Seen by refreshes.
};
base::Json ToJson(const StatusReport& report);
StatusReport StatusReportFromJson(const base::Json& json);

struct UpgradeResult {
  std::string from;  // Versions.
  std::string to;
  double pause_ms = 0;
};
base::Json ToJson(const UpgradeResult& result);
UpgradeResult UpgradeResultFromJson(const base::Json& json);

// The share of bytes that did not come from a store; negative when nothing was read.
double HitRatio(const std::vector<ReadStatus>& reads);

// The last line of an answer that failed, and back.
base::Json ErrorLine(const absl::Status& status);
// OK when `line` has no error.
absl::Status ErrorFromLine(const base::Json& line);

}  // namespace millrace::control
