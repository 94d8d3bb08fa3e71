// What a worker can be asked on its control port, as plain values: the same words for the worker
// (cache/worker), for who asks (worker_client.h) and for the wire (worker.proto, which explains the
// fields; worker_messages.h translates). No header of gRPC or protobuf is behind this one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace millrace::proto {

struct LocateRequest {
  std::string source;  // store::Source::identity.
  std::string path;
  uint64_t offset = 0;
  uint64_t length = 0;  // 0: to the end of the file.
};

struct LocatedExtent {
  uint64_t offset = 0;
  uint64_t length = 0;
  std::vector<std::string> workers;  // Ids in rank order.
  uint64_t present_bytes = 0;        // In the worker that answers.
};

struct LocateReply {
  std::string version;
  uint64_t size = 0;
  uint64_t extent_size = 0;
  std::vector<LocatedExtent> extents;
};

struct StatRequest {
  std::string source;
  std::string path;
};

struct ListedEntry {
  std::string name;
  bool directory = false;
  uint64_t size = 0;
  absl::Time mtime = absl::UnixEpoch();
  std::string version;
};

struct StatReply {
  ListedEntry entry;
  uint64_t present_bytes = 0;
};

struct ListRequest {
  std::string source;
  std::string path;
  std::string token;
  uint32_t entries_max = 0;  // 0: as many as the worker likes.
};

struct ListReply {
  std::vector<ListedEntry> entries;
  std::string next_token;
};

struct LoadRequest {
  std::string source;
  std::vector<std::string> paths;  // None: everything.
};

struct LoadProgress {
  uint64_t files_done = 0;
  uint64_t files_total = 0;
  uint64_t files_failed = 0;
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;
  uint64_t bytes_refused = 0;
  bool total_known = false;
  std::string last_error;
};

struct EvictRequest {
  std::string source;
  std::string path;  // Empty: everything of the source.
};

struct TierUse {
  std::string medium;  // "mem", "ssd", "hdd"
  std::string path;
  uint64_t used_bytes = 0;
  uint64_t capacity_bytes = 0;
  uint64_t files = 0;
  uint64_t files_complete = 0;
};

struct SourceUse {
  std::string identity;
  std::string url;
};

struct Hits {
  std::string kind;  // "local", "short_circuit", "remote", "store"
  uint64_t bytes = 0;
  uint64_t requests = 0;
};

struct MemberSeen {
  std::string address;
  std::string id;
  uint64_t capacity_bytes = 0;
  bool draining = false;
  bool reachable = false;
  std::string last_error;
};

struct DrainProgress {
  bool done = false;
  uint64_t extents_done = 0;
  uint64_t extents_total = 0;
  uint64_t extents_failed = 0;
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;
  bool total_known = false;
  double bytes_per_second = 0;
  std::string last_error;
};

struct WorkerReport {
  std::string id;
  std::string cluster;
  std::string version;
  int64_t started_unix = 0;  // Seconds.
  bool draining = false;
  uint64_t extent_size = 0;
  uint32_t replicas = 1;
  std::vector<TierUse> tiers;
  std::vector<SourceUse> sources;
  std::vector<Hits> hits;
  std::vector<MemberSeen> members;
  uint64_t connections = 0;
  uint64_t memory_used_bytes = 0;
  uint64_t memory_limit_bytes = 0;
  uint64_t resident_bytes = 0;
  std::optional<DrainProgress> drain;
};

}  // namespace millrace::proto
