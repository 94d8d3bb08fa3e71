// How `millrace status` shows a mount. Pure functions of the report and the time.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/control/protocol.h"

namespace millrace::cli {

// One mount, in full.
std::string RenderStatus(const control::StatusReport& report, absl::Time now);

// One line of the list of mounts.
struct MountLine {
  std::string mountpoint;
  std::string state;  // "serving", "dead", "no answer".
  std::vector<std::string> sources;
  control::StatusReport report;  // Empty unless it answered.
};
std::string RenderMounts(const std::vector<MountLine>& mounts, absl::Time now);

}  // namespace millrace::cli
