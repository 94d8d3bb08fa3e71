#include "fuse/daemon/observers.h"

#include "absl/strings/ascii.h"
#include "common/metrics/metric_names.h"

namespace millrace::daemon {
namespace {

// By fetch::Origin.
constexpr std::array<const char*, fetch::kOrigins> kTiers = {
    metrics::kTierLocal, metrics::kTierShortCircuit, metrics::kTierRemote, metrics::kTierStore};

size_t Index(fetch::Origin origin) { return static_cast<size_t>(origin); }

}  // namespace

std::string DatasetLabel(const store::Source& source) {
  return source.name.empty() ? source.url : source.name;
}

ReadCounter::ReadCounter(const std::vector<std::string>& datasets, metrics::Metrics* metrics) {
  for (const std::string& name : datasets) {
    Dataset dataset{name, {}};
    for (size_t i = 0; i < kTiers.size(); ++i) {
      dataset.places[i].reads = metrics->Read(name, kTiers[i]);
    }
    for (const fetch::Origin origin : {fetch::Origin::kLocal, fetch::Origin::kShortCircuit}) {
      Place& place = dataset.places[Index(origin)];
      const metrics::LabelValues labels = {name, kTiers[Index(origin)]};
      place.passthrough_opens = metrics->GetCounter(metrics::kPassthroughOpens, labels);
      place.passthrough_bytes = metrics->GetCounter(metrics::kPassthroughBytes, labels);
    }
    datasets_.push_back(std::move(dataset));
  }
}

void ReadCounter::OnRead(size_t source, fetch::Origin origin, uint64_t bytes,
                         absl::Duration duration) {
  datasets_[source].places[Index(origin)].reads.Record(bytes, duration);
}

void ReadCounter::OnPassthroughOpen(size_t source, fetch::Origin origin, uint64_t file_size) {
  const Place& place = datasets_[source].places[Index(origin)];
  place.passthrough_opens->Add();
  place.passthrough_bytes->Add(file_size);
}

std::vector<control::ReadStatus> ReadCounter::Reads() const {
  std::vector<control::ReadStatus> reads;
  for (const Dataset& dataset : datasets_) {
    for (size_t i = 0; i < kTiers.size(); ++i) {
      const metrics::ReadMetrics& of_place = dataset.places[i].reads;
      reads.push_back(
          {dataset.name, kTiers[i], of_place.bytes->value(), of_place.requests->value()});
    }
  }
  return reads;
}

uint64_t ReadCounter::bytes() const {
  uint64_t sum = 0;
  for (const control::ReadStatus& read : Reads()) sum += read.bytes;
  return sum;
}

ReadCounter::Passthrough ReadCounter::passthrough(fetch::Origin origin) const {
  Passthrough sum;
  for (const Dataset& dataset : datasets_) {
    const Place& place = dataset.places[Index(origin)];
    sum.opens += place.passthrough_opens->value();
    sum.bytes += place.passthrough_bytes->value();
  }
  return sum;
}

StoreCounter::StoreCounter(std::string label, metrics::Metrics* metrics)
    : label_(std::move(label)),
      metrics_(metrics),
      bytes_(metrics->GetCounter(metrics::kStoreBytes, {label_, "read"})),
      gets_ok_(metrics->GetCounter(metrics::kStoreRequests, {label_, "get", "ok"})) {}

void StoreCounter::OnCall(const Call& call) {
  requests_.fetch_add(1, std::memory_order_relaxed);
  bytes_->Add(call.bytes_in);
  if (call.code == absl::StatusCode::kOk && call.operation == "get") {
    gets_ok_->Add();
    return;
  }
  const std::string code = absl::AsciiStrToLower(absl::StatusCodeToString(call.code));
  metrics_->GetCounter(metrics::kStoreRequests, {label_, std::string(call.operation), code})->Add();
  // A missing object and a transfer nobody wanted any more are no errors of a store.
  if (call.code != absl::StatusCode::kOk && call.code != absl::StatusCode::kNotFound &&
      call.code != absl::StatusCode::kCancelled) {
    metrics_->CountError("store", code);
  }
}

}  // namespace millrace::daemon
