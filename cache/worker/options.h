// What a worker is asked to be: the options of millrace-worker, parsed.
//
// As fuse/options does for a mount: a runtime.json (--config) is applied first, the command line
// overrides it. Errors are InvalidArgument (exit 2) and name option, cause and remedy.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "cache/pool/placement.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/log.h"
#include "common/base/units.h"

namespace millrace::worker {

struct WorkerOptions {
  // URL or NAME=URL, as store::OpenSource takes them.
  std::vector<std::string> sources;
  std::vector<tier::TierOptions> tiers;  // Fastest first; at least one.
  tier::EvictionPolicy eviction = tier::EvictionPolicy::kEpoch;
  double guest_share = 0.3;  // Of the tiers: what the node reads although others own it.

  std::string id;  // Unique in the pool, stable over restarts.
  std::string cluster = "millrace";
  std::vector<std::string> members;  // As pool::PoolOptions::workers; this one may be among them.
  absl::Duration members_refresh = absl::Seconds(5);  // See pool::PoolOptions.
  uint32_t replicas = 1;
  uint64_t extent_size = pool::kExtentSizeDefault;

  std::string listen_host;       // Empty: every interface.
  uint16_t control_port = 7450;  // 0: any free one.
  uint16_t data_port = 7451;
  uint16_t metrics_port = 7452;
  std::string directory;     // Of worker.sock; empty: no Unix socket.
  std::string socket_group;  // A name or a number; empty: none but root and this user.
  std::string certificate;   // PEM files: all three or none.
  std::string key;
  std::string authority;

  uint64_t memory_limit_bytes = 512 * base::kMiB;
  int64_t connections = 16;  // Parallel requests to stores and other workers.
  absl::Duration store_deadline = absl::Seconds(60);
  base::Severity log_level = base::Severity::kInfo;
  int64_t ready_fd = -1;  // See common/control/ready.h; -1: none.

  std::vector<std::string> notes;  // What was accepted but ignored, for the log.
};

struct ParsedWorker {
  WorkerOptions options;
  bool help = false;  // Print WorkerHelp() and exit 0.
};

// Arguments without the program's name.
absl::StatusOr<ParsedWorker> ParseWorkerOptions(absl::Span<const std::string> arguments);

std::string WorkerHelp();

}  // namespace millrace::worker
