// Every metric of the project: name, labels, unit and meaning. The names are a contract with
// dashboards and alerts: add, never rename.
//
// Base units (seconds, bytes); counters end in _total. Reads that the kernel serves by itself
// (page cache, passthrough) never reach a daemon: no figure here contains them, except the two
// millrace_passthrough_* counters, which count what can be seen of them.
#pragma once

#include <array>
#include <cstddef>

#include "absl/strings/string_view.h"

namespace millrace::metrics {

enum class MetricKind { kCounter, kGauge, kHistogram };

struct MetricInfo {
  absl::string_view name;
  MetricKind kind;
  absl::string_view help;
  std::array<absl::string_view, 3> labels = {};  // Unused ones are empty.

  constexpr size_t label_count() const {
    size_t count = 0;
    while (count < labels.size() && !labels[count].empty()) ++count;
    return count;
  }
};

// --- Reads. dataset: the source's name, or its URL where it has none. tier: where the bytes came
// from: page, local, short_circuit, remote, store.
inline constexpr MetricInfo kReadBytes = {
    "millrace_read_bytes_total",
    MetricKind::kCounter,
    "Bytes given to readers, by where they came from. Without reads the kernel serves by itself.",
    {"dataset", "tier"}};
inline constexpr MetricInfo kReadRequests = {
    "millrace_read_requests_total",
    MetricKind::kCounter,
    "Read requests answered, by where most of their bytes came from.",
    {"dataset", "tier"}};
inline constexpr MetricInfo kReadSeconds = {"millrace_read_seconds",
                                            MetricKind::kHistogram,
                                            "Time from a read request to its answer.",
                                            {"dataset", "tier"}};
inline constexpr MetricInfo kPassthroughOpens = {
    "millrace_passthrough_opens_total",
    MetricKind::kCounter,
    "Opens of complete files that the kernel reads by itself from then on.",
    {"dataset", "tier"}};
inline constexpr MetricInfo kPassthroughBytes = {
    "millrace_passthrough_opened_bytes_total",
    MetricKind::kCounter,
    "Sizes of the files opened so: what would be read if each was read once.",
    {"dataset", "tier"}};

// --- Stores. store: the source's name or URL. op: get, list, stat, sample. code: HTTP status, or
// ok, or the error's name. direction: read, write.
inline constexpr MetricInfo kStoreRequests = {"millrace_store_requests_total",
                                              MetricKind::kCounter,
                                              "Requests sent to a store, each try counted.",
                                              {"store", "op", "code"}};
inline constexpr MetricInfo kStoreBytes = {"millrace_store_bytes_total",
                                           MetricKind::kCounter,
                                           "Bytes of object data moved from or to a store.",
                                           {"store", "direction"}};

// --- Cache. tier: MEDIUM:PATH of the tier, such as ssd:/var/cache/millrace/data.
inline constexpr MetricInfo kCacheUsed = {"millrace_cache_used_bytes",
                                          MetricKind::kGauge,
                                          "Bytes of data in a tier of the cache.",
                                          {"tier"}};
inline constexpr MetricInfo kCacheCapacity = {"millrace_cache_capacity_bytes",
                                              MetricKind::kGauge,
                                              "The quota of a tier of the cache.",
                                              {"tier"}};
inline constexpr MetricInfo kCacheHitRatio = {
    "millrace_cache_hit_ratio",
    MetricKind::kGauge,
    "Share of read bytes that did not come from the store since the start. Absent before the first "
    "read.",
    {"dataset"}};
inline constexpr MetricInfo kCacheEvictions = {
    "millrace_cache_evictions_total",
    MetricKind::kCounter,
    "Files dropped from a tier. Reasons: quota, version (the object changed), user (evict).",
    {"tier", "reason"}};
inline constexpr MetricInfo kCacheDemotions = {"millrace_cache_demotions_total",
                                               MetricKind::kCounter,
                                               "Files moved from a full tier to the next one.",
                                               {"tier"}};
inline constexpr MetricInfo kCacheRefused = {"millrace_cache_refused_total",
                                             MetricKind::kCounter,
                                             "Files not admitted to a tier for want of room.",
                                             {"tier"}};

// --- Workers.
inline constexpr MetricInfo kWorkerConnections = {"millrace_worker_connections", MetricKind::kGauge,
                                                  "Clients connected to the worker's data port and "
                                                  "socket."};
inline constexpr MetricInfo kWorkerRefused = {
    "millrace_worker_refused_total",
    MetricKind::kCounter,
    "Connections that the worker closed. Reasons: frame, checksum, sequence, version, cluster, "
    "credentials, certificate, silence, limit.",
    {"reason"}};
inline constexpr MetricInfo kWorkerLeases = {
    "millrace_worker_leases", MetricKind::kGauge,
    "Files whose descriptor a client on this node holds, and which are not evicted for room."};
inline constexpr MetricInfo kWorkerHandedOver = {
    "millrace_worker_handed_over_bytes_total",
    MetricKind::kCounter,
    "Sizes of the files whose descriptor was handed to a client on this node.",
    {"dataset"}};
inline constexpr MetricInfo kWorkerThreads = {"millrace_worker_threads", MetricKind::kGauge,
                                              "Threads that serve the worker's clients."};

// --- Cache workers, as one that asks them sees them.
inline constexpr MetricInfo kPoolBytes = {
    "millrace_pool_bytes_total",
    MetricKind::kCounter,
    "Bytes that workers gave. from: worker (it had them), store (it fetched them for this), "
    "short_circuit (sizes of the files whose descriptor was handed over).",
    {"from"}};
inline constexpr MetricInfo kPoolBypassed = {
    "millrace_pool_bypassed_total", MetricKind::kCounter,
    "Ranges that came from the store because no worker gave them."};
inline constexpr MetricInfo kPoolNames = {
    "millrace_pool_names_total",
    MetricKind::kCounter,
    "Listings and questions for a name that a worker's index may answer. from: index, store (for "
    "want of one that is new enough).",
    {"from"}};
inline constexpr MetricInfo kPoolFaults = {
    "millrace_pool_faults_total",
    MetricKind::kCounter,
    "Failed calls to workers, by-passed. kind: damaged (what came was not the answer), call (all "
    "others).",
    {"kind"}};
inline constexpr MetricInfo kPoolMembers = {"millrace_pool_members",
                                            MetricKind::kGauge,
                                            "Workers known. state: answers, draining, away.",
                                            {"state"}};

// --- Sessions and the file system.
inline constexpr MetricInfo kTakeovers = {
    "millrace_session_takeovers_total",
    MetricKind::kCounter,
    "Times a new daemon took over the mount of one that ended. Causes: signal, exit, oom, hang, "
    "upgrade.",
    {"cause"}};
inline constexpr MetricInfo kTakeoverSeconds = {
    "millrace_session_takeover_seconds", MetricKind::kHistogram,
    "Time a mount was without a daemon during a take-over."};
inline constexpr MetricInfo kSessionsLost = {"millrace_sessions_lost_total", MetricKind::kCounter,
                                             "Mounts at this mountpoint that were given up, "
                                             "because keeper and daemon had both died, or with "
                                             "the io_uring transport the daemon."};
inline constexpr MetricInfo kFuseRequests = {"millrace_fuse_requests_total",
                                             MetricKind::kCounter,
                                             "Requests from the kernel, by operation.",
                                             {"op"}};
inline constexpr MetricInfo kErrors = {
    "millrace_errors_total",
    MetricKind::kCounter,
    "Errors, by-passed ones included, by the part that saw them and what they were.",
    {"component", "kind"}};
inline constexpr MetricInfo kNamesHidden = {"millrace_names_hidden_total", MetricKind::kCounter,
                                            "Names a store listed that the mount does not show."};
inline constexpr MetricInfo kNames = {
    "millrace_names_known",
    MetricKind::kGauge,
    "Files and directories known to the mount. kind: file, directory.",
    {"kind"}};

// --- The process.
inline constexpr MetricInfo kMemoryUsed = {"millrace_memory_used_bytes", MetricKind::kGauge,
                                           "Reserved of the memory budget."};
inline constexpr MetricInfo kMemoryLimit = {"millrace_memory_limit_bytes", MetricKind::kGauge,
                                            "The memory budget (--memory-limit)."};
inline constexpr MetricInfo kBuildInfo = {
    "millrace_build_info", MetricKind::kGauge, "Always 1; says which version runs.", {"version"}};
inline constexpr MetricInfo kProcessResident = {"process_resident_memory_bytes", MetricKind::kGauge,
                                                "Resident memory of the process."};
inline constexpr MetricInfo kProcessCpu = {"process_cpu_seconds_total", MetricKind::kCounter,
                                           "User and system CPU time of the process."};
inline constexpr MetricInfo kProcessStart = {"process_start_time_seconds", MetricKind::kGauge,
                                             "When the process started, in seconds since 1970."};

// In the order above: the order of the page.
inline constexpr std::array kAllMetrics = {
    &kReadBytes,
    &kReadRequests,
    &kReadSeconds,
    &kPassthroughOpens,
    &kPassthroughBytes,
    &kStoreRequests,
    &kStoreBytes,
    &kCacheUsed,
    &kCacheCapacity,
    &kCacheHitRatio,
    &kCacheEvictions,
    &kCacheDemotions,
    &kCacheRefused,
    &kWorkerConnections,
    &kWorkerRefused,
    &kWorkerLeases,
    &kWorkerHandedOver,
    &kWorkerThreads,
    &kPoolBytes,
    &kPoolBypassed,
    &kPoolNames,
    &kPoolFaults,
    &kPoolMembers,
    &kTakeovers,
    &kTakeoverSeconds,
    &kSessionsLost,
    &kFuseRequests,
    &kErrors,
    &kNamesHidden,
    &kNames,
    &kMemoryUsed,
    &kMemoryLimit,
    &kBuildInfo,
    &kProcessResident,
    &kProcessCpu,
    &kProcessStart,
};

// Values of the label "tier" of reads.
inline constexpr char kTierPage[] = "page";
inline constexpr char kTierLocal[] = "local";
inline constexpr char kTierShortCircuit[] = "short_circuit";
inline constexpr char kTierRemote[] = "remote";
inline constexpr char kTierStore[] = "store";

}  // namespace millrace::metrics
