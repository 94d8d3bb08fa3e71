#include "common/control/protocol.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/flags.h"

namespace millrace::control {
namespace {

using base::Json;
using base::JsonBool;
using base::JsonDouble;
using base::JsonField;
using base::JsonString;
using base::JsonUnsigned;

Json ToJson(const TierStatus& tier) {
  return {{"medium", tier.medium},         {"path", tier.path},
          {"used_bytes", tier.used_bytes}, {"capacity_bytes", tier.capacity_bytes},
          {"files", tier.files},           {"files_complete", tier.files_complete},
          {"evictions", tier.evictions},   {"demotions", tier.demotions},
          {"faults", tier.faults},         {"refused", tier.refused}};
}

std::map<std::string, uint64_t> Counts(const Json& json) {
  std::map<std::string, uint64_t> counts;
  if (!json.is_object()) return counts;
  for (const auto& item : json.items()) {
    if (item.value().is_number_unsigned()) counts[item.key()] = item.value().get<uint64_t>();
  }
  return counts;
}

TierStatus TierFromJson(const Json& json) {
  TierStatus tier;
  tier.medium = JsonString(json, "medium");
  tier.path = JsonString(json, "path");
  tier.used_bytes = JsonUnsigned(json, "used_bytes");
  tier.capacity_bytes = JsonUnsigned(json, "capacity_bytes");
  tier.files = JsonUnsigned(json, "files");
  tier.files_complete = JsonUnsigned(json, "files_complete");
  tier.evictions = Counts(JsonField(json, "evictions"));
  tier.demotions = JsonUnsigned(json, "demotions");
  tier.faults = Counts(JsonField(json, "faults"));
  tier.refused = JsonUnsigned(json, "refused");
  return tier;
}

Json ToJson(const PoolStatus& pool) {
  Json members = Json::array();
  for (const MemberStatus& member : pool.members) {
    members.push_back({{"address", member.address},
                       {"id", member.id},
                       {"reachable", member.reachable},
                       {"draining", member.draining},
                       {"capacity_bytes", member.capacity_bytes},
                       {"last_error", member.last_error}});
  }
  return {{"members", std::move(members)},
          {"bytes_remote", pool.bytes_remote},
          {"bytes_through_store", pool.bytes_through_store},
          {"bytes_short_circuit", pool.bytes_short_circuit},
          {"bypassed", pool.bypassed},
          {"faults", pool.faults},
          {"damaged", pool.damaged}};
}

PoolStatus PoolFromJson(const Json& json) {
  PoolStatus pool;
  for (const Json& member : JsonField(json, "members")) {
    pool.members.push_back({JsonString(member, "address"), JsonString(member, "id"),
                            JsonBool(member, "reachable"), JsonBool(member, "draining"),
                            JsonUnsigned(member, "capacity_bytes"),
                            JsonString(member, "last_error")});
  }
  pool.bytes_remote = JsonUnsigned(json, "bytes_remote");
  pool.bytes_through_store = JsonUnsigned(json, "bytes_through_store");
  pool.bytes_short_circuit = JsonUnsigned(json, "bytes_short_circuit");
  pool.bypassed = JsonUnsigned(json, "bypassed");
  pool.faults = JsonUnsigned(json, "faults");
  pool.damaged = JsonUnsigned(json, "damaged");
  return pool;
}

Json ToJson(const KeeperStatus& keeper) {
  Json json = {{"pid", keeper.pid},
               {"alive", keeper.alive},
               {"takeovers", keeper.takeovers},
               {"last_pause_seconds", keeper.last_pause_seconds},
               {"sessions_lost", keeper.sessions_lost}};
  if (!keeper.crash_loop.empty()) json["crash_loop"] = keeper.crash_loop;
  return json;
}

KeeperStatus KeeperFromJson(const Json& json) {
  KeeperStatus keeper;
  keeper.pid = JsonUnsigned(json, "pid");
  keeper.alive = JsonBool(json, "alive");
  keeper.takeovers = Counts(JsonField(json, "takeovers"));
  keeper.last_pause_seconds = JsonDouble(json, "last_pause_seconds");
  keeper.sessions_lost = JsonUnsigned(json, "sessions_lost");
  keeper.crash_loop = JsonString(json, "crash_loop");
  return keeper;
}

// Hit ratios of the datasets that were read at all: a ratio of nothing is left out, not NaN.
Json HitRatios(const std::vector<ReadStatus>& reads) {
  std::map<std::string, std::vector<ReadStatus>> by_dataset;
  for (const ReadStatus& read : reads) by_dataset[read.dataset].push_back(read);
  Json ratios = Json::object();
  for (const auto& [dataset, its_reads] : by_dataset) {
    const double ratio = HitRatio(its_reads);
    if (ratio >= 0) ratios[dataset] = ratio;
  }
  return ratios;
}

}  // namespace

Json ToJson(const PathsRequest& request) { return {{"op", request.op}, {"paths", request.paths}}; }

absl::StatusOr<PathsRequest> PathsRequestFromJson(const Json& json) {
  PathsRequest request;
  request.op = JsonString(json, "op");
  const Json& paths = JsonField(json, "paths");
  if (paths.is_null()) return request;
  if (!paths.is_array()) return absl::InvalidArgumentError("\"paths\" must be a list of strings");
  for (const Json& path : paths) {
    if (!path.is_string()) {
      return absl::InvalidArgumentError("\"paths\" must be a list of strings");
    }
    const std::string& text = path.get_ref<const std::string&>();
    std::string clean;
    for (const absl::string_view part : absl::StrSplit(text, '/', absl::SkipEmpty())) {
      if (part == "." || part == "..") {
        return absl::InvalidArgumentError(
            absl::StrCat("\"", text, "\" must name a path inside the mount without . and .."));
      }
      absl::StrAppend(&clean, clean.empty() ? "" : "/", part);
    }
    request.paths.push_back(std::move(clean));
  }
  return request;
}

Json ToJson(const WarmProgress& progress) {
  return {{"bytes_done", progress.bytes_done},     {"bytes_total", progress.bytes_total},
          {"files_done", progress.files_done},     {"files_total", progress.files_total},
          {"files_failed", progress.files_failed}, {"bytes_refused", progress.bytes_refused},
          {"total_known", progress.total_known},   {"bytes_per_second", progress.bytes_per_second},
          {"last_error", progress.last_error}};
}

WarmProgress WarmProgressFromJson(const Json& json) {
  WarmProgress progress;
  progress.bytes_done = JsonUnsigned(json, "bytes_done");
  progress.bytes_total = JsonUnsigned(json, "bytes_total");
  progress.files_done = JsonUnsigned(json, "files_done");
  progress.files_total = JsonUnsigned(json, "files_total");
  progress.files_failed = JsonUnsigned(json, "files_failed");
  progress.bytes_refused = JsonUnsigned(json, "bytes_refused");
  progress.total_known = JsonBool(json, "total_known");
  progress.bytes_per_second = JsonDouble(json, "bytes_per_second");
  progress.last_error = JsonString(json, "last_error");
  return progress;
}

double HitRatio(const std::vector<ReadStatus>& reads) {
  uint64_t total = 0;
  uint64_t from_store = 0;
  for (const ReadStatus& read : reads) {
    total += read.bytes;
    if (read.tier == "store") from_store += read.bytes;
  }
  return total == 0 ? -1 : 1 - static_cast<double>(from_store) / static_cast<double>(total);
}

Json ToJson(const StatusReport& report) {
  Json sources = Json::array();
  for (const SourceStatus& source : report.sources) {
    sources.push_back({{"name", source.name}, {"url", source.url}, {"kind", source.kind}});
  }
  Json tiers = Json::array();
  for (const TierStatus& tier : report.tiers) tiers.push_back(ToJson(tier));
  Json reads = Json::array();
  for (const ReadStatus& read : report.reads) {
    reads.push_back({{"dataset", read.dataset},
                     {"tier", read.tier},
                     {"bytes", read.bytes},
                     {"requests", read.requests}});
  }
  return {
      {"mountpoint", report.mountpoint},
      {"version", report.version},
      {"pid", report.pid},
      {"started_unix", report.started_unix},
      {"profile", report.profile},
      {"profile_reason", report.profile_reason},
      {"io", report.io},
      {"runs_as", report.runs_as},
      {"features", report.features},
      {"sources", std::move(sources)},
      {"tiers", std::move(tiers)},
      {"pool", ToJson(report.pool)},
      {"reads", std::move(reads)},
      {"hit_ratio", HitRatios(report.reads)},
      {"passthrough",
       {{"opens", report.passthrough_opens},
        {"bytes_opened", report.passthrough_bytes},
        {"short_circuit_bytes_opened", report.passthrough_short_circuit_bytes}}},
      {"throughput",
       {{"read_bytes_per_second", report.read_bytes_per_second},
        {"store_bytes_per_second", report.store_bytes_per_second}}},
      {"store", {{"bytes", report.store_bytes}, {"requests", report.store_requests}}},
      {"errors", report.errors},
      {"sessions_survived", report.sessions_survived},
      {"keeper", ToJson(report.keeper)},
      {"memory",
       {{"used_bytes", report.memory_used_bytes},
        {"limit_bytes", report.memory_limit_bytes},
        {"resident_bytes", report.resident_bytes}}},
      {"names",
       {{"directories", report.directories},
        {"files", report.files},
        {"hidden", report.names_hidden},
        {"changed", report.names_changed}}},
  };
}

StatusReport StatusReportFromJson(const Json& json) {
  StatusReport report;
  report.mountpoint = JsonString(json, "mountpoint");
  report.version = JsonString(json, "version");
  report.pid = JsonUnsigned(json, "pid");
  report.started_unix = JsonUnsigned(json, "started_unix");
  report.profile = JsonString(json, "profile");
  report.profile_reason = JsonString(json, "profile_reason");
  report.io = JsonString(json, "io");
  report.runs_as = JsonString(json, "runs_as");
  if (const Json& features = JsonField(json, "features"); features.is_object()) {
    for (const auto& item : features.items()) {
      if (item.value().is_boolean()) report.features[item.key()] = item.value().get<bool>();
    }
  }
  for (const Json& source : JsonField(json, "sources")) {
    report.sources.push_back(
        {JsonString(source, "name"), JsonString(source, "url"), JsonString(source, "kind")});
  }
  for (const Json& tier : JsonField(json, "tiers")) report.tiers.push_back(TierFromJson(tier));
  report.pool = PoolFromJson(JsonField(json, "pool"));
  for (const Json& read : JsonField(json, "reads")) {
    report.reads.push_back({JsonString(read, "dataset"), JsonString(read, "tier"),
                            JsonUnsigned(read, "bytes"), JsonUnsigned(read, "requests")});
  }
  const Json& passthrough = JsonField(json, "passthrough");
  report.passthrough_opens = JsonUnsigned(passthrough, "opens");
  report.passthrough_bytes = JsonUnsigned(passthrough, "bytes_opened");
  report.passthrough_short_circuit_bytes = JsonUnsigned(passthrough, "short_circuit_bytes_opened");
  const Json& throughput = JsonField(json, "throughput");
  report.read_bytes_per_second = JsonDouble(throughput, "read_bytes_per_second");
  report.store_bytes_per_second = JsonDouble(throughput, "store_bytes_per_second");
  const Json& store = JsonField(json, "store");
  report.store_bytes = JsonUnsigned(store, "bytes");
  report.store_requests = JsonUnsigned(store, "requests");
  report.errors = Counts(JsonField(json, "errors"));
  report.sessions_survived = JsonUnsigned(json, "sessions_survived");
  report.keeper = KeeperFromJson(JsonField(json, "keeper"));
  const Json& memory = JsonField(json, "memory");
  report.memory_used_bytes = JsonUnsigned(memory, "used_bytes");
  report.memory_limit_bytes = JsonUnsigned(memory, "limit_bytes");
  report.resident_bytes = JsonUnsigned(memory, "resident_bytes");
  const Json& names = JsonField(json, "names");
  report.directories = JsonUnsigned(names, "directories");
  report.files = JsonUnsigned(names, "files");
  report.names_hidden = JsonUnsigned(names, "hidden");
  report.names_changed = JsonUnsigned(names, "changed");
  return report;
}

Json ToJson(const UpgradeResult& result) {
  return {{"from", result.from}, {"to", result.to}, {"pause_ms", result.pause_ms}};
}

UpgradeResult UpgradeResultFromJson(const Json& json) {
  return {JsonString(json, "from"), JsonString(json, "to"), JsonDouble(json, "pause_ms")};
}

Json ErrorLine(const absl::Status& status) {
  return {{"done", true},
          {"error",
           {{"code", static_cast<unsigned>(status.code())}, {"message", base::ErrorText(status)}}}};
}

absl::Status ErrorFromLine(const Json& line) {
  const Json& error = JsonField(line, "error");
  if (!error.is_object()) return absl::OkStatus();
  const uint64_t code = JsonUnsigned(error, "code");
  // 16 is the last canonical code; a status that says "error" must never read as OK.
  const bool known = code >= 1 && code <= 16;
  return absl::Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
                      JsonString(error, "message"));
}

}  // namespace millrace::control
