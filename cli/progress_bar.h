// The line `millrace warm` and `millrace worker drain` show while they work. Pure functions of the
// numbers; `things` says what is counted beside the bytes: "files", "extents".
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "common/control/protocol.h"

namespace millrace::cli {

// A bar that fills the rest of `columns`, for a terminal:
//   [=======>            ]  38%  1.2 GiB of 3.1 GiB  1,203 of 4,000 files  312 MiB/s  6s left
// Without a known total the bar is left out, and "at least" says so.
std::string ProgressLine(const control::WarmProgress& progress, absl::string_view things,
                         int columns);

// The same facts as a plain line, for logs.
std::string ProgressText(const control::WarmProgress& progress, absl::string_view things);

}  // namespace millrace::cli
