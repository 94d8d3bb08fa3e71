#include "cache/worker/observers.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "common/metrics/metric_names.h"

namespace millrace::worker {
namespace {

const char* TierOf(fetch::Origin origin) {
  switch (origin) {
    case fetch::Origin::kLocal:
      return metrics::kTierLocal;
    case fetch::Origin::kShortCircuit:
      return metrics::kTierShortCircuit;
    case fetch::Origin::kRemote:
      return metrics::kTierRemote;
    case fetch::Origin::kStore:
      break;
  }
  return metrics::kTierStore;
}

}  // namespace

StoreCounter::StoreCounter(std::string label, metrics::Metrics* metrics)
    : label_(std::move(label)),
      metrics_(metrics),
      bytes_(metrics->GetCounter(metrics::kStoreBytes, {label_, "read"})) {}

void StoreCounter::OnCall(const Call& call) {
  bytes_->Add(call.bytes_in);
  const std::string code = absl::AsciiStrToLower(absl::StatusCodeToString(call.code));
  metrics_->GetCounter(metrics::kStoreRequests, {label_, std::string(call.operation), code})->Add();
  // A missing object and a transfer nobody wanted any more are no errors of a store.
  if (call.code != absl::StatusCode::kOk && call.code != absl::StatusCode::kNotFound &&
      call.code != absl::StatusCode::kCancelled) {
    metrics_->CountError("store", code);
  }
}

DoorCounter::DoorCounter(std::vector<Dataset> datasets, metrics::Metrics* metrics)
    : metrics_(metrics) {
  for (Dataset& dataset : datasets) {
    auto counters = std::make_unique<Counters>();
    counters->identity = std::move(dataset.identity);
    for (size_t i = 0; i < fetch::kOrigins; ++i) {
      counters->reads[i] = metrics->Read(dataset.label, TierOf(static_cast<fetch::Origin>(i)));
    }
    counters->handed_over = metrics->GetCounter(metrics::kWorkerHandedOver, {dataset.label});
    datasets_.push_back(std::move(counters));
  }
}

void DoorCounter::OnRefused(Refusal refusal) {
  metrics_->GetCounter(metrics::kWorkerRefused, {std::string(RefusalName(refusal))})->Add();
}

void DoorCounter::OnSent(size_t source, fetch::Origin origin, uint64_t bytes) {
  datasets_[source]->reads[static_cast<size_t>(origin)].bytes->Add(bytes);
}

void DoorCounter::OnAnswered(size_t source, fetch::Origin origin, absl::Duration duration) {
  const metrics::ReadMetrics& reads = datasets_[source]->reads[static_cast<size_t>(origin)];
  reads.requests->Add();
  reads.seconds->Observe(duration);
}

void DoorCounter::OnHandedOver(absl::string_view source, uint64_t file_size) {
  for (const auto& dataset : datasets_) {
    if (dataset->identity != source) continue;
    dataset->handed_over->Add(file_size);
    dataset->handed_over_files.fetch_add(1, std::memory_order_relaxed);
  }
}

std::vector<proto::Hits> DoorCounter::Hits() const {
  std::vector<proto::Hits> hits;
  for (size_t i = 0; i < fetch::kOrigins; ++i) {
    const auto origin = static_cast<fetch::Origin>(i);
    proto::Hits sum;
    sum.kind = TierOf(origin);
    for (const auto& dataset : datasets_) {
      sum.bytes += dataset->reads[i].bytes->value();
      sum.requests += dataset->reads[i].requests->value();
      if (origin == fetch::Origin::kShortCircuit) {
        sum.bytes += dataset->handed_over->value();
        sum.requests += dataset->handed_over_files.load(std::memory_order_relaxed);
      }
    }
    hits.push_back(std::move(sum));
  }
  return hits;
}

}  // namespace millrace::worker
