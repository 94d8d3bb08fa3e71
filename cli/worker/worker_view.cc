#include "cli/worker/worker_view.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "common/base/flags.h"
#include "common/base/units.h"

namespace millrace::cli {
namespace {

using proto::WorkerReport;

constexpr char kIndent[] = "  ";

std::string Bytes(uint64_t bytes) { return base::FormatBytes(bytes); }

std::string Full(uint64_t used, uint64_t capacity) {
  return Percent(capacity == 0 ? -1 : static_cast<double>(used) / static_cast<double>(capacity));
}

struct Sums {
  uint64_t used = 0;
  uint64_t capacity = 0;
  uint64_t served = 0;  // Bytes to clients, wherever they were.
  uint64_t store = 0;   // Of these, those that the store had to be asked for.
};

Sums SumsOf(const WorkerReport& report) {
  Sums sums;
  for (const proto::TierUse& tier : report.tiers) {
    sums.used += tier.used_bytes;
    sums.capacity += tier.capacity_bytes;
  }
  for (const proto::Hits& hits : report.hits) {
    sums.served += hits.bytes;
    if (hits.kind == "store") sums.store += hits.bytes;
  }
  return sums;
}

std::string HitRatio(const Sums& sums) {
  return Percent(sums.served == 0
                     ? -1
                     : 1 - static_cast<double>(sums.store) / static_cast<double>(sums.served));
}

// "serving", "draining", "drained".
std::string StateOf(const WorkerReport& report) {
  if (!report.draining) return "serving";
  return report.drain.has_value() && report.drain->done ? "drained" : "draining";
}

std::string Reachable(const WorkerReport& report) {
  const auto reachable =
      std::count_if(report.members.begin(), report.members.end(),
                    [](const proto::MemberSeen& member) { return member.reachable; });
  return absl::StrCat(reachable, "/", report.members.size());
}

std::string DrainText(const proto::DrainProgress& drain) {
  std::string text =
      absl::StrCat(Bytes(drain.bytes_done), drain.total_known ? " of " : " of at least ",
                   Bytes(drain.bytes_total), " in ", GroupDigits(drain.extents_done), " of ",
                   GroupDigits(drain.extents_total), " extents");
  if (drain.extents_failed > 0) {
    absl::StrAppend(&text, ", ", GroupDigits(drain.extents_failed),
                    " failed (the last: ", Printable(drain.last_error), ")");
  }
  return text;
}

std::string TierTable(const WorkerReport& report) {
  std::vector<std::vector<std::string>> rows;
  for (const proto::TierUse& tier : report.tiers) {
    rows.push_back({Printable(tier.medium), Bytes(tier.used_bytes), Bytes(tier.capacity_bytes),
                    Full(tier.used_bytes, tier.capacity_bytes), GroupDigits(tier.files),
                    GroupDigits(tier.files_complete), Printable(tier.path)});
  }
  return RenderTable({{"TIER"},
                      {"USED", true},
                      {"QUOTA", true},
                      {"FULL", true},
                      {"FILES", true},
                      {"COMPLETE", true},
                      {"PATH"}},
                     rows, kIndent);
}

std::string HitsTable(const WorkerReport& report) {
  uint64_t all = 0;
  for (const proto::Hits& hits : report.hits) all += hits.bytes;
  std::vector<std::vector<std::string>> rows;
  for (const proto::Hits& hits : report.hits) {
    rows.push_back({Printable(hits.kind), Bytes(hits.bytes), Full(hits.bytes, all),
                    GroupDigits(hits.requests)});
  }
  return RenderTable({{"FROM"}, {"BYTES", true}, {"SHARE", true}, {"REQUESTS", true}}, rows,
                     kIndent);
}

std::string MemberTable(const WorkerReport& report) {
  std::vector<std::vector<std::string>> rows;
  for (const proto::MemberSeen& member : report.members) {
    const bool known = !member.id.empty();
    rows.push_back({known ? Printable(member.id) : "?", Printable(member.address),
                    !member.reachable ? "unreachable" : (member.draining ? "draining" : "serving"),
                    known ? Bytes(member.capacity_bytes) : "-", Printable(member.last_error)});
  }
  return RenderTable({{"MEMBER"}, {"ADDRESS"}, {"STATE"}, {"CAPACITY", true}, {"LAST ERROR"}}, rows,
                     kIndent);
}

}  // namespace

std::string RenderWorker(const AskedWorker& worker, absl::Time now) {
  const WorkerReport& report = *worker.report;
  std::string text =
      absl::StrCat(Printable(report.id), " at ", worker.address, ": ", StateOf(report), ", up ",
                   ShortDuration(absl::ToUnixSeconds(now) - report.started_unix), ", version ",
                   Printable(report.version), "\n", kIndent, "cluster ", Printable(report.cluster),
                   ", extents of ", Bytes(report.extent_size), ", ", report.replicas,
                   report.replicas == 1 ? " copy" : " copies", "\n");
  for (const proto::SourceUse& source : report.sources) {
    absl::StrAppend(&text, kIndent, "source ", Printable(source.identity), "\n");
  }
  absl::StrAppend(&text, kIndent, "memory ", Bytes(report.memory_used_bytes), " of ",
                  Bytes(report.memory_limit_bytes), " (the process ", Bytes(report.resident_bytes),
                  "), ", GroupDigits(report.connections),
                  report.connections == 1 ? " connection\n" : " connections\n");
  if (report.drain.has_value()) {
    absl::StrAppend(&text, kIndent, "handed over ", DrainText(*report.drain), "\n");
  }
  absl::StrAppend(&text, "\n", TierTable(report));
  if (!report.hits.empty()) absl::StrAppend(&text, "\n", HitsTable(report));
  if (!report.members.empty()) absl::StrAppend(&text, "\n", MemberTable(report));
  return text;
}

std::string RenderWorkers(const std::vector<AskedWorker>& workers) {
  std::vector<std::vector<std::string>> rows;
  Sums all;
  std::string errors;
  for (const AskedWorker& worker : workers) {
    if (!worker.report.ok()) {
      rows.push_back({"?", worker.address, "no answer"});
      absl::StrAppend(&errors, Printable(base::ErrorText(worker.report.status())), "\n");
      continue;
    }
    const WorkerReport& report = *worker.report;
    const Sums sums = SumsOf(report);
    all.used += sums.used;
    all.capacity += sums.capacity;
    all.served += sums.served;
    all.store += sums.store;
    rows.push_back({Printable(report.id), worker.address, StateOf(report), Bytes(sums.used),
                    Bytes(sums.capacity), Full(sums.used, sums.capacity), Bytes(sums.served),
                    HitRatio(sums), Bytes(sums.store), Reachable(report),
                    Printable(report.version)});
  }
  if (workers.size() > 1) {
    rows.push_back({"all", "", "", Bytes(all.used), Bytes(all.capacity),
                    Full(all.used, all.capacity), Bytes(all.served), HitRatio(all),
                    Bytes(all.store)});
  }
  std::string text = RenderTable({{"WORKER"},
                                  {"ADDRESS"},
                                  {"STATE"},
                                  {"USED", true},
                                  {"QUOTA", true},
                                  {"FULL", true},
                                  {"SERVED", true},
                                  {"HITS", true},
                                  {"STORE", true},
                                  {"REACHES", true},
                                  {"VERSION"}},
                                 rows, "");
  if (!errors.empty()) absl::StrAppend(&text, "\n", errors);
  return text;
}

base::Json ToJson(const proto::DrainProgress& progress) {
  return {{"done", progress.done},
          {"extents_done", progress.extents_done},
          {"extents_total", progress.extents_total},
          {"extents_failed", progress.extents_failed},
          {"bytes_done", progress.bytes_done},
          {"bytes_total", progress.bytes_total},
          {"total_known", progress.total_known},
          {"bytes_per_second", progress.bytes_per_second},
          {"last_error", progress.last_error}};
}

base::Json WorkersToJson(const std::vector<AskedWorker>& workers) {
  base::Json list = base::Json::array();
  for (const AskedWorker& worker : workers) {
    base::Json object = {{"address", worker.address}};
    if (!worker.report.ok()) {
      object["state"] = "no answer";
      object["error"] = base::ErrorText(worker.report.status());
      list.push_back(std::move(object));
      continue;
    }
    const WorkerReport& report = *worker.report;
    object["state"] = StateOf(report);
    object["id"] = report.id;
    object["cluster"] = report.cluster;
    object["version"] = report.version;
    object["started_unix"] = report.started_unix;
    object["draining"] = report.draining;
    object["extent_size"] = report.extent_size;
    object["replicas"] = report.replicas;
    object["connections"] = report.connections;
    object["memory_used_bytes"] = report.memory_used_bytes;
    object["memory_limit_bytes"] = report.memory_limit_bytes;
    object["resident_bytes"] = report.resident_bytes;
    base::Json& tiers = object["tiers"] = base::Json::array();
    for (const proto::TierUse& tier : report.tiers) {
      tiers.push_back({{"medium", tier.medium},
                       {"path", tier.path},
                       {"used_bytes", tier.used_bytes},
                       {"capacity_bytes", tier.capacity_bytes},
                       {"files", tier.files},
                       {"files_complete", tier.files_complete}});
    }
    base::Json& sources = object["sources"] = base::Json::array();
    for (const proto::SourceUse& source : report.sources) {
      sources.push_back({{"identity", source.identity}, {"url", source.url}});
    }
    base::Json& hits = object["hits"] = base::Json::object();
    for (const proto::Hits& of_kind : report.hits) {
      hits[of_kind.kind] = {{"bytes", of_kind.bytes}, {"requests", of_kind.requests}};
    }
    base::Json& members = object["members"] = base::Json::array();
    for (const proto::MemberSeen& member : report.members) {
      members.push_back({{"address", member.address},
                         {"id", member.id},
                         {"capacity_bytes", member.capacity_bytes},
                         {"draining", member.draining},
                         {"reachable", member.reachable},
                         {"last_error", member.last_error}});
    }
    if (report.drain.has_value()) object["drain"] = ToJson(*report.drain);
    list.push_back(std::move(object));
  }
  return {{"workers", std::move(list)}};
}

control::WarmProgress BarOf(const proto::DrainProgress& progress) {
  control::WarmProgress bar;
  bar.bytes_done = progress.bytes_done;
  bar.bytes_total = progress.bytes_total;
  bar.files_done = progress.extents_done;
  bar.files_total = progress.extents_total;
  bar.files_failed = progress.extents_failed;
  bar.total_known = progress.total_known;
  bar.bytes_per_second = progress.bytes_per_second;
  bar.last_error = progress.last_error;
  return bar;
}

control::WarmProgress SumOf(const std::vector<proto::LoadProgress>& shares,
                            absl::Duration elapsed) {
  control::WarmProgress sum;
  sum.total_known = true;
  for (const proto::LoadProgress& share : shares) {
    sum.bytes_done += share.bytes_done;
    sum.bytes_total += share.bytes_total;
    sum.bytes_refused += share.bytes_refused;
    sum.files_done += share.files_done;
    sum.files_total += share.files_total;
    sum.files_failed += share.files_failed;
    sum.total_known = sum.total_known && share.total_known;
    if (!share.last_error.empty()) sum.last_error = share.last_error;
  }
  sum.bytes_per_second =
      static_cast<double>(sum.bytes_done) / std::max(absl::ToDoubleSeconds(elapsed), 0.001);
  return sum;
}

}  // namespace millrace::cli
