#include "cache/tier/tier_metrics.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "common/metrics/metric_names.h"

namespace millrace::tier {

void Collect(absl::Span<const TierStats> tiers, metrics::SampleSink& sink) {
  for (const TierStats& tier : tiers) {
    const std::string label = absl::StrCat(MediumName(tier.medium), ":", tier.path);
    sink.Add(metrics::kCacheUsed, {label}, static_cast<double>(tier.used_bytes));
    sink.Add(metrics::kCacheCapacity, {label}, static_cast<double>(tier.capacity_bytes));
    sink.Add(metrics::kCacheEvictions, {label, "quota"}, tier.evictions_quota);
    sink.Add(metrics::kCacheEvictions, {label, "version"}, tier.evictions_version);
    sink.Add(metrics::kCacheEvictions, {label, "user"}, tier.evictions_user);
    sink.Add(metrics::kCacheDemotions, {label}, tier.demotions);
    sink.Add(metrics::kCacheRefused, {label}, tier.refused);
    sink.Add(metrics::kErrors, {"cache", absl::StrCat("disk ", label)}, tier.faults_disk);
    sink.Add(metrics::kErrors, {"cache", absl::StrCat("damaged ", label)}, tier.faults_damaged);
  }
}

}  // namespace millrace::tier
