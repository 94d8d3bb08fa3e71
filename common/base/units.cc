#include "common/base/units.h"

#include <cmath>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace millrace::base {
namespace {

struct Suffix {
  absl::string_view text;
  double factor;
};

// Longer suffixes first: "Mi" must not be taken for "M" followed by "i".
constexpr Suffix kSuffixes[] = {
    {"Ki", 0x1p10}, {"Mi", 0x1p20}, {"Gi", 0x1p30}, {"Ti", 0x1p40}, {"Pi", 0x1p50}, {"k", 1e3},
    {"M", 1e6},     {"G", 1e9},     {"T", 1e12},    {"P", 1e15},    {"", 1},
};

absl::Status BadSize(absl::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat("\"", text, "\" is not a size; write it like 512Mi, 4Gi or 1.5Ti"));
}

}  // namespace

absl::StatusOr<uint64_t> ParseBytes(absl::string_view text) {
  const absl::string_view trimmed = absl::StripAsciiWhitespace(text);
  for (const Suffix& suffix : kSuffixes) {
    if (trimmed.size() <= suffix.text.size() ||
        trimmed.substr(trimmed.size() - suffix.text.size()) != suffix.text) {
      continue;
    }
    const absl::string_view number = trimmed.substr(0, trimmed.size() - suffix.text.size());
    double value = 0;
    // SimpleAtod also takes "inf", "nan", "0x10" and signs: only digits and a point may pass.
    if (number.find_first_not_of("0123456789.") != absl::string_view::npos ||
        !absl::SimpleAtod(number, &value)) {
      return BadSize(text);
    }
    value *= suffix.factor;
    if (!std::isfinite(value) || value >= 0x1p63) return BadSize(text);
    return static_cast<uint64_t>(value);
  }
  return BadSize(text);
}

std::string FormatBytes(uint64_t bytes) {
  constexpr absl::string_view kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  if (unit == 0) return absl::StrCat(bytes, " B");
  return absl::StrFormat(value < 10 ? "%.1f %s" : "%.0f %s", value, kUnits[unit]);
}

absl::StatusOr<absl::Duration> ParseDuration(absl::string_view text) {
  absl::Duration duration;
  if (!absl::ParseDuration(absl::StripAsciiWhitespace(text), &duration) ||
      duration < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is not a duration; write it like 250ms, 30s, 5m or 1h30m"));
  }
  return duration;
}

}  // namespace millrace::base
