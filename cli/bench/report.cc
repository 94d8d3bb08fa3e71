#include "cli/bench/report.h"

#include <sys/resource.h>
#include <time.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace millrace::bench {
namespace {

double Seconds(const timeval& time) { return time.tv_sec + time.tv_usec * 1e-6; }

std::string NanosText(uint64_t nanos) {
  if (nanos < 10'000) return absl::StrFormat("%.1f us", nanos * 1e-3);
  if (nanos < 1'000'000) return absl::StrFormat("%.0f us", nanos * 1e-3);
  if (nanos < 1'000'000'000) return absl::StrFormat("%.1f ms", nanos * 1e-6);
  return absl::StrFormat("%.2f s", nanos * 1e-9);
}

}  // namespace

uint64_t NowNanos() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * uint64_t{1'000'000'000} + now.tv_nsec;
}

CpuTime CpuTime::Now() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return {.user_seconds = Seconds(usage.ru_utime), .system_seconds = Seconds(usage.ru_stime)};
}

CpuTime CpuTime::Since(const CpuTime& start) const {
  return {.user_seconds = user_seconds - start.user_seconds,
          .system_seconds = system_seconds - start.system_seconds};
}

void AddLatency(const Histogram& latency, nlohmann::json* json) {
  (*json)["p50_us"] = latency.Quantile(0.50) * 1e-3;
  (*json)["p99_us"] = latency.Quantile(0.99) * 1e-3;
  (*json)["max_us"] = latency.max() * 1e-3;
}

void AddCpu(const CpuTime& cpu, nlohmann::json* json) {
  (*json)["cpu_user_seconds"] = cpu.user_seconds;
  (*json)["cpu_system_seconds"] = cpu.system_seconds;
}

std::string LatencyText(const Histogram& latency) {
  return absl::StrCat("p50 ", NanosText(latency.Quantile(0.50)), ", p99 ",
                      NanosText(latency.Quantile(0.99)), ", max ", NanosText(latency.max()));
}

void PrintLine(absl::string_view line) {
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fputc('\n', stdout);
  std::fflush(stdout);
}

void PrintJson(const nlohmann::json& json) {
  PrintLine(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace millrace::bench
