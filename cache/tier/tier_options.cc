// The text form of a tier's options.
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace millrace::tier {
namespace {

absl::Status Wrong(absl::string_view text, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("tier \"", text, "\": ", what,
                   "; expected MEDIUM:PATH:QUOTA[,high=0.95][,low=0.70], for example "
                   "ssd:/var/cache/millrace:100Gi"));
}

absl::StatusOr<double> ParseShare(absl::string_view text, absl::string_view option) {
  double share = 0;
  const absl::string_view value = option.substr(option.find('=') + 1);
  if (!absl::SimpleAtod(value, &share) || !(share > 0 && share <= 1)) {
    return Wrong(text, absl::StrCat("\"", value, "\" is no share between 0 and 1"));
  }
  return share;
}

}  // namespace

absl::string_view MediumName(Medium medium) {
  switch (medium) {
    case Medium::kMem:
      return "mem";
    case Medium::kSsd:
      return "ssd";
    case Medium::kHdd:
      return "hdd";
  }
  return "unknown";
}

absl::StatusOr<TierOptions> ParseTier(absl::string_view text) {
  const std::vector<absl::string_view> options = absl::StrSplit(text, ',');
  const absl::string_view place = options[0];
  const size_t first = place.find(':');
  const size_t last = place.rfind(':');
  if (first == absl::string_view::npos || first == last) {
    return Wrong(text, "it needs a medium, a path and a quota");
  }
  TierOptions tier;
  const absl::string_view medium = place.substr(0, first);
  if (medium == "mem") {
    tier.medium = Medium::kMem;
  } else if (medium == "ssd") {
    tier.medium = Medium::kSsd;
  } else if (medium == "hdd") {
    tier.medium = Medium::kHdd;
  } else {
    return Wrong(text, absl::StrCat("medium \"", medium, "\" is none of mem, ssd, hdd"));
  }
  tier.path = std::string(place.substr(first + 1, last - first - 1));
  if (tier.path.empty() || tier.path[0] != '/') {
    return Wrong(text, absl::StrCat("path \"", tier.path, "\" is not absolute"));
  }
  const absl::string_view quota = place.substr(last + 1);
  const absl::StatusOr<uint64_t> bytes = base::ParseBytes(quota);
  if (!bytes.ok()) return Wrong(text, absl::StrCat("quota \"", quota, "\" is no size"));
  if (*bytes == 0) return Wrong(text, "the quota is 0");
  tier.quota_bytes = *bytes;
  for (size_t i = 1; i < options.size(); ++i) {
    if (absl::StartsWith(options[i], "high=")) {
      ASSIGN_OR_RETURN(tier.high_water, ParseShare(text, options[i]));
    } else if (absl::StartsWith(options[i], "low=")) {
      ASSIGN_OR_RETURN(tier.low_water, ParseShare(text, options[i]));
    } else {
      return Wrong(text, absl::StrCat("unknown option \"", options[i], "\""));
    }
  }
  if (tier.low_water > tier.high_water) return Wrong(text, "low is above high");
  return tier;
}

}  // namespace millrace::tier
