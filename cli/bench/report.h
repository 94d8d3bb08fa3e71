// What a load generator measures with, and how it says the result.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "cli/bench/histogram.h"
#include "nlohmann/json.hpp"

namespace millrace::bench {

// Nanoseconds since an arbitrary start. The generators measure the machine itself, so they read
// its clock and take no Clock.
uint64_t NowNanos();

// CPU time of this process, all threads.
struct CpuTime {
  double user_seconds = 0;
  double system_seconds = 0;

  static CpuTime Now();
  CpuTime Since(const CpuTime& start) const;
};

// p50, p99 and max in microseconds, as a flat part of `json`.
void AddLatency(const Histogram& latency, nlohmann::json* json);
void AddCpu(const CpuTime& cpu, nlohmann::json* json);

// "p50 12.3 us, p99 1.2 ms, max 30 ms".
std::string LatencyText(const Histogram& latency);

// One line to standard output, at once: a pipe shows each epoch when it ends.
void PrintLine(absl::string_view line);
// The same with an object on one line. Bytes that are no UTF-8 (in a path) are replaced.
void PrintJson(const nlohmann::json& json);

}  // namespace millrace::bench
