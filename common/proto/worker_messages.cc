#include "common/proto/worker_messages.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "common/base/status_macros.h"

namespace millrace::proto {
namespace {

absl::Status Wrong(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, " ", what));
}

absl::Status CheckSource(absl::string_view source) {
  if (source.empty()) return Wrong("source", "is missing; Report lists the worker's sources");
  if (source.size() > kPathMax) {
    return Wrong("source", absl::StrCat("has ", source.size(), " bytes, more than ", kPathMax));
  }
  if (absl::StrContains(source, '\0')) return Wrong("source", "has a NUL byte");
  return absl::OkStatus();
}

// Empty is the root.
absl::Status CheckPath(absl::string_view field, absl::string_view path) {
  if (path.empty()) return absl::OkStatus();
  if (path.size() > kPathMax) {
    return Wrong(field, absl::StrCat("has ", path.size(), " bytes, more than ", kPathMax));
  }
  if (absl::StrContains(path, '\0')) return Wrong(field, "has a NUL byte");
  for (const absl::string_view component : absl::StrSplit(path, '/')) {
    if (component.empty()) {
      return Wrong(field, "begins or ends with a slash, or has two in a row; write it as in a/b");
    }
    if (component == "." || component == "..") {
      return Wrong(field, absl::StrCat("has a component \"", component, "\""));
    }
  }
  return absl::OkStatus();
}

ListedEntry FromWire(const wire::Entry& message) {
  ListedEntry entry;
  entry.name = message.name();
  entry.directory = message.directory();
  entry.size = message.size();
  entry.mtime = absl::FromUnixNanos(message.mtime_ns());
  entry.version = message.version();
  return entry;
}

void Fill(const ListedEntry& entry, wire::Entry* message) {
  message->set_name(entry.name);
  message->set_directory(entry.directory);
  message->set_size(entry.size);
  message->set_mtime_ns(absl::ToUnixNanos(entry.mtime));
  message->set_version(entry.version);
}

void Fill(const DrainProgress& progress, wire::DrainProgress* message) {
  message->set_done(progress.done);
  message->set_extents_done(progress.extents_done);
  message->set_extents_total(progress.extents_total);
  message->set_extents_failed(progress.extents_failed);
  message->set_bytes_done(progress.bytes_done);
  message->set_bytes_total(progress.bytes_total);
  message->set_total_known(progress.total_known);
  message->set_bytes_per_second(progress.bytes_per_second);
  message->set_last_error(progress.last_error);
}

}  // namespace

// --- Requests ---

absl::StatusOr<LocateRequest> FromWire(const wire::LocateRequest& message) {
  RETURN_IF_ERROR(CheckSource(message.source()));
  RETURN_IF_ERROR(CheckPath("path", message.path()));
  if (message.path().empty()) return Wrong("path", "is missing; a file is located, no directory");
  if (message.offset() > kFileSizeMax || message.length() > kFileSizeMax - message.offset()) {
    return Wrong("offset and length", "end beyond what a file can have");
  }
  LocateRequest request;
  request.source = message.source();
  request.path = message.path();
  request.offset = message.offset();
  request.length = message.length();
  return request;
}

absl::StatusOr<StatRequest> FromWire(const wire::StatRequest& message) {
  RETURN_IF_ERROR(CheckSource(message.source()));
  RETURN_IF_ERROR(CheckPath("path", message.path()));
  return StatRequest{message.source(), message.path()};
}

absl::StatusOr<ListRequest> FromWire(const wire::ListRequest& message) {
  RETURN_IF_ERROR(CheckSource(message.source()));
  RETURN_IF_ERROR(CheckPath("path", message.path()));
  if (message.token().size() > kTokenMax) return Wrong("token", "was not given by List");
  if (message.entries_max() > kEntriesMax) {
    return Wrong("entries_max",
                 absl::StrCat("is ", message.entries_max(), "; at most ", kEntriesMax));
  }
  return ListRequest{message.source(), message.path(), message.token(), message.entries_max()};
}

absl::StatusOr<LoadRequest> FromWire(const wire::LoadRequest& message) {
  RETURN_IF_ERROR(CheckSource(message.source()));
  if (static_cast<size_t>(message.paths_size()) > kPathsMax) {
    return Wrong("paths", absl::StrCat("are ", message.paths_size(), "; at most ", kPathsMax,
                                       " at once, or a directory above them"));
  }
  LoadRequest request;
  request.source = message.source();
  for (int i = 0; i < message.paths_size(); ++i) {
    RETURN_IF_ERROR(CheckPath(absl::StrCat("paths[", i, "]"), message.paths(i)));
    request.paths.push_back(message.paths(i));
  }
  return request;
}

absl::StatusOr<EvictRequest> FromWire(const wire::EvictRequest& message) {
  RETURN_IF_ERROR(CheckSource(message.source()));
  RETURN_IF_ERROR(CheckPath("path", message.path()));
  return EvictRequest{message.source(), message.path()};
}

wire::LocateRequest ToWire(const LocateRequest& request) {
  wire::LocateRequest message;
  message.set_source(request.source);
  message.set_path(request.path);
  message.set_offset(request.offset);
  message.set_length(request.length);
  return message;
}

wire::StatRequest ToWire(const StatRequest& request) {
  wire::StatRequest message;
  message.set_source(request.source);
  message.set_path(request.path);
  return message;
}

wire::ListRequest ToWire(const ListRequest& request) {
  wire::ListRequest message;
  message.set_source(request.source);
  message.set_path(request.path);
  message.set_token(request.token);
  message.set_entries_max(request.entries_max);
  return message;
}

wire::LoadRequest ToWire(const LoadRequest& request) {
  wire::LoadRequest message;
  message.set_source(request.source);
  for (const std::string& path : request.paths) message.add_paths(path);
  return message;
}

wire::EvictRequest ToWire(const EvictRequest& request) {
  wire::EvictRequest message;
  message.set_source(request.source);
  message.set_path(request.path);
  return message;
}

// --- Answers ---

LocateReply FromWire(const wire::LocateReply& message) {
  LocateReply reply;
  reply.version = message.version();
  reply.size = message.size();
  reply.extent_size = message.extent_size();
  for (const wire::Extent& extent : message.extents()) {
    LocatedExtent& located = reply.extents.emplace_back();
    located.offset = extent.offset();
    located.length = extent.length();
    located.workers.assign(extent.workers().begin(), extent.workers().end());
    located.present_bytes = extent.present_bytes();
  }
  return reply;
}

StatReply FromWire(const wire::StatReply& message) {
  return {FromWire(message.entry()), message.present_bytes()};
}

ListReply FromWire(const wire::ListReply& message) {
  ListReply reply;
  for (const wire::Entry& entry : message.entries()) reply.entries.push_back(FromWire(entry));
  reply.next_token = message.next_token();
  return reply;
}

LoadProgress FromWire(const wire::LoadProgress& message) {
  LoadProgress progress;
  progress.files_done = message.files_done();
  progress.files_total = message.files_total();
  progress.files_failed = message.files_failed();
  progress.bytes_done = message.bytes_done();
  progress.bytes_total = message.bytes_total();
  progress.bytes_refused = message.bytes_refused();
  progress.total_known = message.total_known();
  progress.last_error = message.last_error();
  return progress;
}

DrainProgress FromWire(const wire::DrainProgress& message) {
  DrainProgress progress;
  progress.done = message.done();
  progress.extents_done = message.extents_done();
  progress.extents_total = message.extents_total();
  progress.extents_failed = message.extents_failed();
  progress.bytes_done = message.bytes_done();
  progress.bytes_total = message.bytes_total();
  progress.total_known = message.total_known();
  progress.bytes_per_second = message.bytes_per_second();
  progress.last_error = message.last_error();
  return progress;
}

WorkerReport FromWire(const wire::ReportReply& message) {
  WorkerReport report;
  report.id = message.id();
  report.cluster = message.cluster();
  report.version = message.version();
  report.started_unix = message.started_unix();
  report.draining = message.draining();
  report.extent_size = message.extent_size();
  report.replicas = message.replicas();
  for (const wire::TierUse& tier : message.tiers()) {
    report.tiers.push_back({tier.medium(), tier.path(), tier.used_bytes(), tier.capacity_bytes(),
                            tier.files(), tier.files_complete()});
  }
  for (const wire::SourceUse& source : message.sources()) {
    report.sources.push_back({source.identity(), source.url()});
  }
  for (const wire::Hits& hits : message.hits()) {
    report.hits.push_back({hits.kind(), hits.bytes(), hits.requests()});
  }
  for (const wire::Member& member : message.members()) {
    report.members.push_back({member.address(), member.id(), member.capacity_bytes(),
                              member.draining(), member.reachable(), member.last_error()});
  }
  report.connections = message.connections();
  report.memory_used_bytes = message.memory_used_bytes();
  report.memory_limit_bytes = message.memory_limit_bytes();
  report.resident_bytes = message.resident_bytes();
  if (message.has_drain()) report.drain = FromWire(message.drain());
  return report;
}

wire::LocateReply ToWire(const LocateReply& reply) {
  wire::LocateReply message;
  message.set_version(reply.version);
  message.set_size(reply.size);
  message.set_extent_size(reply.extent_size);
  for (const LocatedExtent& located : reply.extents) {
    wire::Extent* const extent = message.add_extents();
    extent->set_offset(located.offset);
    extent->set_length(located.length);
    for (const std::string& worker : located.workers) extent->add_workers(worker);
    extent->set_present_bytes(located.present_bytes);
  }
  return message;
}

wire::StatReply ToWire(const StatReply& reply) {
  wire::StatReply message;
  Fill(reply.entry, message.mutable_entry());
  message.set_present_bytes(reply.present_bytes);
  return message;
}

wire::ListReply ToWire(const ListReply& reply) {
  wire::ListReply message;
  for (const ListedEntry& entry : reply.entries) Fill(entry, message.add_entries());
  message.set_next_token(reply.next_token);
  return message;
}

wire::LoadProgress ToWire(const LoadProgress& progress) {
  wire::LoadProgress message;
  message.set_files_done(progress.files_done);
  message.set_files_total(progress.files_total);
  message.set_files_failed(progress.files_failed);
  message.set_bytes_done(progress.bytes_done);
  message.set_bytes_total(progress.bytes_total);
  message.set_bytes_refused(progress.bytes_refused);
  message.set_total_known(progress.total_known);
  message.set_last_error(progress.last_error);
  return message;
}

wire::DrainProgress ToWire(const DrainProgress& progress) {
  wire::DrainProgress message;
  Fill(progress, &message);
  return message;
}

wire::ReportReply ToWire(const WorkerReport& report) {
  wire::ReportReply message;
  message.set_id(report.id);
  message.set_cluster(report.cluster);
  message.set_version(report.version);
  message.set_started_unix(report.started_unix);
  message.set_draining(report.draining);
  message.set_extent_size(report.extent_size);
  message.set_replicas(report.replicas);
  for (const TierUse& tier : report.tiers) {
    wire::TierUse* const use = message.add_tiers();
    use->set_medium(tier.medium);
    use->set_path(tier.path);
    use->set_used_bytes(tier.used_bytes);
    use->set_capacity_bytes(tier.capacity_bytes);
    use->set_files(tier.files);
    use->set_files_complete(tier.files_complete);
  }
  for (const SourceUse& source : report.sources) {
    wire::SourceUse* const use = message.add_sources();
    use->set_identity(source.identity);
    use->set_url(source.url);
  }
  for (const Hits& hits : report.hits) {
    wire::Hits* const counted = message.add_hits();
    counted->set_kind(hits.kind);
    counted->set_bytes(hits.bytes);
    counted->set_requests(hits.requests);
  }
  for (const MemberSeen& seen : report.members) {
    wire::Member* const member = message.add_members();
    member->set_address(seen.address);
    member->set_id(seen.id);
    member->set_capacity_bytes(seen.capacity_bytes);
    member->set_draining(seen.draining);
    member->set_reachable(seen.reachable);
    member->set_last_error(seen.last_error);
  }
  message.set_connections(report.connections);
  message.set_memory_used_bytes(report.memory_used_bytes);
  message.set_memory_limit_bytes(report.memory_limit_bytes);
  message.set_resident_bytes(report.resident_bytes);
  if (report.drain.has_value()) Fill(*report.drain, message.mutable_drain());
  return message;
}

}  // namespace millrace::proto
