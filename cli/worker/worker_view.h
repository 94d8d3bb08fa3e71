// How `millrace worker` shows workers. Pure functions of the reports and the time.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/json.h"
#include "common/control/protocol.h"
#include "common/proto/worker_api.h"

namespace millrace::cli {

struct AskedWorker {
  std::string address;
  absl::StatusOr<proto::WorkerReport> report;
};

// One worker, in full. REQUIRES: it answered.
std::string RenderWorker(const AskedWorker& worker, absl::Time now);

// One line each, what they are together, and the errors of those that did not answer.
std::string RenderWorkers(const std::vector<AskedWorker>& workers);

// {"workers": [{"address", "state", …} | {"address", "state": "no answer", "error"}]}
base::Json WorkersToJson(const std::vector<AskedWorker>& workers);

base::Json ToJson(const proto::DrainProgress& progress);

// For the line of progress, extents in the place of files.
control::WarmProgress BarOf(const proto::DrainProgress& progress);

// What several workers have loaded together.
control::WarmProgress SumOf(const std::vector<proto::LoadProgress>& shares, absl::Duration elapsed);

}  // namespace millrace::cli
