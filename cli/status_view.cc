#include "cli/status_view.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "common/base/units.h"

namespace millrace::cli {
namespace {

using control::ReadStatus;
using control::StatusReport;
using control::TierStatus;

constexpr char kIndent[] = "  ";

std::string Bytes(uint64_t bytes) { return base::FormatBytes(bytes); }

std::string Rate(double bytes_per_second) {
  return absl::StrCat(base::FormatBytes(static_cast<uint64_t>(std::max(bytes_per_second, 0.0))),
                      "/s");
}

uint64_t Sum(const std::map<std::string, uint64_t>& counts) {
  uint64_t sum = 0;
  for (const auto& [key, count] : counts) sum += count;
  return sum;
}

std::string Full(uint64_t used, uint64_t capacity) {
  return Percent(capacity == 0 ? -1 : static_cast<double>(used) / static_cast<double>(capacity));
}

// "quota 3, version 1" of the counts that are not zero; "-" when all are.
std::string NonZero(const std::map<std::string, uint64_t>& counts) {
  std::vector<std::string> parts;
  for (const auto& [key, count] : counts) {
    if (count > 0) parts.push_back(absl::StrCat(Printable(key), " ", GroupDigits(count)));
  }
  return parts.empty() ? "-" : absl::StrJoin(parts, ", ");
}

std::string Uptime(const StatusReport& report, absl::Time now) {
  return ShortDuration(absl::ToUnixSeconds(now) - static_cast<int64_t>(report.started_unix));
}

// Counts by reason are in the JSON; a path may be long and so comes last.
std::string TierTable(const std::vector<TierStatus>& tiers) {
  std::vector<std::vector<std::string>> rows;
  for (const TierStatus& tier : tiers) {
    rows.push_back({tier.medium, Bytes(tier.used_bytes), Bytes(tier.capacity_bytes),
                    Full(tier.used_bytes, tier.capacity_bytes), GroupDigits(tier.files),
                    GroupDigits(tier.files_complete), GroupDigits(Sum(tier.evictions)),
                    GroupDigits(tier.refused), GroupDigits(Sum(tier.faults)),
                    Printable(tier.path)});
  }
  return RenderTable({{"TIER"},
                      {"USED", true},
                      {"QUOTA", true},
                      {"FULL", true},
                      {"FILES", true},
                      {"COMPLETE", true},
                      {"EVICTED", true},
                      {"REFUSED", true},
                      {"FAULTS", true},
                      {"PATH"}},
                     rows, kIndent);
}

// What a worker is to the mount; an error may be long and so comes last.
std::string WorkerTable(const control::PoolStatus& pool) {
  std::vector<std::vector<std::string>> rows;
  for (const control::MemberStatus& member : pool.members) {
    rows.push_back({Printable(member.address), member.id.empty() ? "-" : Printable(member.id),
                    !member.reachable ? "away"
                    : member.draining ? "draining"
                                      : "answers",
                    Bytes(member.capacity_bytes),
                    member.last_error.empty() ? "-" : Printable(member.last_error)});
  }
  return RenderTable({{"WORKER"}, {"ID"}, {"STATE"}, {"CAPACITY", true}, {"LAST ERROR"}}, rows,
                     kIndent);
}

// A row per dataset: the share that did not come from the store, and the bytes of each place that
// gave any.
std::string ReadTable(const std::vector<ReadStatus>& reads) {
  struct Row {
    std::map<std::string, uint64_t> bytes;
    std::vector<ReadStatus> reads;
    uint64_t requests = 0;
  };
  std::map<std::string, Row> by_dataset;
  std::map<std::string, uint64_t> by_place;
  for (const ReadStatus& read : reads) {
    Row& row = by_dataset[read.dataset];
    row.bytes[read.tier] += read.bytes;
    row.requests += read.requests;
    row.reads.push_back(read);
    by_place[read.tier] += read.bytes;
  }
  struct Place {
    const char* tier;
    const char* title;
    bool always;
  };
  constexpr Place kPlaces[] = {{"page", "PAGE", false},
                               {"local", "LOCAL", true},
                               {"short_circuit", "SHORT CIRCUIT", false},
                               {"remote", "REMOTE", false},
                               {"store", "STORE", true}};
  std::vector<Column> columns = {{"HIT", true}, {"REQUESTS", true}};
  for (const Place& place : kPlaces) {
    if (place.always || by_place[place.tier] > 0) columns.push_back({place.title, true});
  }
  columns.push_back({"DATASET"});
  std::vector<std::vector<std::string>> rows;
  for (auto& [dataset, row] : by_dataset) {
    std::vector<std::string> cells = {Percent(control::HitRatio(row.reads)),
                                      GroupDigits(row.requests)};
    for (const Place& place : kPlaces) {
      if (place.always || by_place[place.tier] > 0) cells.push_back(Bytes(row.bytes[place.tier]));
    }
    cells.push_back(Printable(dataset.empty() ? "/" : dataset));
    rows.push_back(std::move(cells));
  }
  return RenderTable(columns, rows, kIndent);
}

std::string Features(const StatusReport& report) {
  std::vector<std::string> parts = {Printable(report.io.empty() ? "?" : report.io)};
  for (const auto& [name, on] : report.features) {
    parts.push_back(absl::StrCat(Printable(name), on ? " yes" : " no"));
  }
  return absl::StrJoin(parts, ", ");
}

void AppendFact(absl::string_view label, absl::string_view text, std::string* out) {
  std::string line = absl::StrCat(kIndent, label);
  line.resize(14, ' ');
  absl::StrAppend(out, line, text, "\n");
}

void AppendKeeper(const StatusReport& report, std::string* out) {
  const control::KeeperStatus& keeper = report.keeper;
  AppendFact("keeper",
             keeper.alive
                 ? absl::StrCat("process ", keeper.pid)
                 : absl::StrCat("gone: adopt with millrace upgrade ", Printable(report.mountpoint)),
             out);
  std::string survived = GroupDigits(report.sessions_survived);
  if (report.sessions_survived > 0) {
    absl::StrAppend(&survived, " survived (", NonZero(keeper.takeovers), "), the last after ",
                    absl::StrFormat("%.0f", keeper.last_pause_seconds * 1000), " ms");
  }
  if (keeper.sessions_lost > 0) {
    absl::StrAppend(&survived, ", ", GroupDigits(keeper.sessions_lost), " mounts lost");
  }
  AppendFact("take-overs", survived, out);
}

std::string RenderCrashLoop(const StatusReport& report) {
  std::string out = absl::StrCat(Printable(report.mountpoint), "  crash loop: every read fails\n");
  AppendFact("cause", Printable(report.keeper.crash_loop), &out);
  AppendFact("remedy",
             absl::StrCat("mend the cause, then: millrace upgrade ", Printable(report.mountpoint)),
             &out);
  AppendKeeper(report, &out);
  return out;
}

}  // namespace

std::string RenderStatus(const StatusReport& report, absl::Time now) {
  if (!report.keeper.crash_loop.empty()) return RenderCrashLoop(report);
  std::string out =
      absl::StrCat(Printable(report.mountpoint), "  serving for ", Uptime(report, now),
                   "  (process ", report.pid, ", millrace ", Printable(report.version), ")\n");
  for (const control::SourceStatus& source : report.sources) {
    AppendFact("source",
               absl::StrCat(source.name.empty() ? "" : absl::StrCat(Printable(source.name), " = "),
                            Printable(source.url)),
               &out);
  }
  AppendFact("profile",
             absl::StrCat(report.profile, report.profile_reason.empty() ? "" : ", ",
                          Printable(report.profile_reason)),
             &out);
  AppendFact("features", Features(report), &out);
  if (!report.runs_as.empty()) AppendFact("runs as", Printable(report.runs_as), &out);
  AppendFact("throughput",
             absl::StrCat(Rate(report.read_bytes_per_second), " to readers, ",
                          Rate(report.store_bytes_per_second), " from the store"),
             &out);
  AppendFact("hit ratio", Percent(control::HitRatio(report.reads)), &out);
  AppendFact("passthrough",
             absl::StrCat(GroupDigits(report.passthrough_opens), " opens of files of ",
                          Bytes(report.passthrough_bytes), " in all",
                          report.passthrough_short_circuit_bytes == 0
                              ? ""
                              : absl::StrCat(", ", Bytes(report.passthrough_short_circuit_bytes),
                                             " of them the worker's"),
                          "; the kernel reads these by itself, uncounted"),
             &out);
  AppendFact("store",
             absl::StrCat(Bytes(report.store_bytes), " in ", GroupDigits(report.store_requests),
                          " requests"),
             &out);
  if (!report.pool.members.empty()) {
    AppendFact("workers",
               absl::StrCat(Bytes(report.pool.bytes_remote), " from them, ",
                            Bytes(report.pool.bytes_through_store), " that they fetched, ",
                            Bytes(report.pool.bytes_short_circuit), " in files handed over; ",
                            GroupDigits(report.pool.bypassed), " by-passed, ",
                            GroupDigits(report.pool.faults), " faults (",
                            GroupDigits(report.pool.damaged), " damaged)"),
               &out);
  }
  AppendFact("names",
             absl::StrCat(GroupDigits(report.files), " files, ", GroupDigits(report.directories),
                          " directories, ", GroupDigits(report.names_hidden), " hidden, ",
                          GroupDigits(report.names_changed), " changed"),
             &out);
  AppendFact("memory",
             absl::StrCat(Bytes(report.memory_used_bytes), " of ", Bytes(report.memory_limit_bytes),
                          " budget, ", Bytes(report.resident_bytes), " resident"),
             &out);
  AppendFact("errors", NonZero(report.errors), &out);
  AppendKeeper(report, &out);
  if (!report.tiers.empty()) absl::StrAppend(&out, "\n", TierTable(report.tiers));
  if (!report.pool.members.empty()) absl::StrAppend(&out, "\n", WorkerTable(report.pool));
  if (!report.reads.empty()) absl::StrAppend(&out, "\n", ReadTable(report.reads));
  return out;
}

std::string RenderMounts(const std::vector<MountLine>& mounts, absl::Time now) {
  if (mounts.empty()) return "no mounts\n";
  std::vector<std::vector<std::string>> rows;
  for (const MountLine& mount : mounts) {
    const std::string sources = Printable(absl::StrJoin(mount.sources, " "));
    if (mount.state != "serving") {
      rows.push_back(
          {Printable(mount.mountpoint), mount.state, "-", "-", "-", "-", "-", "-", sources});
      continue;
    }
    uint64_t used = 0;
    uint64_t capacity = 0;
    for (const TierStatus& tier : mount.report.tiers) {
      used += tier.used_bytes;
      capacity += tier.capacity_bytes;
    }
    rows.push_back(
        {Printable(mount.mountpoint), mount.state, Uptime(mount.report, now), Bytes(used),
         Full(used, capacity), Percent(control::HitRatio(mount.report.reads)),
         Rate(mount.report.read_bytes_per_second), GroupDigits(Sum(mount.report.errors)), sources});
  }
  return RenderTable({{"MOUNTPOINT"},
                      {"STATE"},
                      {"FOR", true},
                      {"CACHED", true},
                      {"FULL", true},
                      {"HIT", true},
                      {"READ", true},
                      {"ERRORS", true},
                      {"SOURCES"}},
                     rows, "");
}

}  // namespace millrace::cli
