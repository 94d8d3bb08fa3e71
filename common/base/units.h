// Sizes and durations as people write them, and back.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace millrace::base {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;

// "4Gi", "512Mi", "1.5Gi", "100M" (decimal), "4096": the quantities of Kubernetes.
// InvalidArgument names the text for anything else, and for values beyond 2^63-1.
absl::StatusOr<uint64_t> ParseBytes(absl::string_view text);

// "1.4 GiB", "312 MiB", "17 B".
std::string FormatBytes(uint64_t bytes);

// "30s", "5m", "1h30m", "250ms", and "inf". InvalidArgument for negative or anything else.
absl::StatusOr<absl::Duration> ParseDuration(absl::string_view text);

}  // namespace millrace::base
