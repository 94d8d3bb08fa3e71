// The line `millrace warm` shows while it works. Pure functions of the numbers.
#pragma once

#include <string>

#include "common/control/protocol.h"

namespace millrace::cli {

// A bar that fills the rest of `columns`, for a terminal:
//   [=======>            ]  38%  1.2 GiB of 3.1 GiB  1,203 of 4,000 files  312 MiB/s  6s left
// Without a known total the bar is left out, and "at least" says so.
std::string ProgressLine(const control::WarmProgress& progress, int columns);

// The same facts as a plain line, for logs.
std::string ProgressText(const control::WarmProgress& progress);

}  // namespace millrace::cli
