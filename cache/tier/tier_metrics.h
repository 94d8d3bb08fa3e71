// What a process with a cache shows of it to Prometheus.
#pragma once

#include "absl/types/span.h"
#include "cache/tier/tiered_cache.h"
#include "common/metrics/metrics.h"

namespace millrace::tier {

// The samples of each tier, labelled MEDIUM:PATH.
void Collect(absl::Span<const TierStats> tiers, metrics::SampleSink& sink);

}  // namespace millrace::tier
