#include "fuse/daemon/observers.h"

#include "absl/strings/ascii.h"
#include "common/metrics/metric_names.h"

namespace millrace::daemon {
namespace {

constexpr char kTierLocal[] = "local";
constexpr char kTierStore[] = "store";

}  // namespace

std::string DatasetLabel(const store::Source& source) {
  return source.name.empty() ? source.url : source.name;
}

ReadCounter::ReadCounter(const std::vector<std::string>& datasets, metrics::Metrics* metrics) {
  for (const std::string& name : datasets) {
    datasets_.push_back({name, metrics->Read(name, kTierLocal), metrics->Read(name, kTierStore),
                         metrics->GetCounter(metrics::kPassthroughOpens, {name}),
                         metrics->GetCounter(metrics::kPassthroughBytes, {name})});
  }
}

void ReadCounter::OnRead(size_t source, fetch::Origin origin, uint64_t bytes,
                         absl::Duration duration) {
  const Dataset& dataset = datasets_[source];
  (origin == fetch::Origin::kStore ? dataset.store : dataset.local).Record(bytes, duration);
}

void ReadCounter::OnPassthroughOpen(size_t source, uint64_t file_size) {
  datasets_[source].passthrough_opens->Add();
  datasets_[source].passthrough_bytes->Add(file_size);
}

std::vector<control::ReadStatus> ReadCounter::Reads() const {
  std::vector<control::ReadStatus> reads;
  for (const Dataset& dataset : datasets_) {
    reads.push_back(
        {dataset.name, kTierLocal, dataset.local.bytes->value(), dataset.local.requests->value()});
    reads.push_back(
        {dataset.name, kTierStore, dataset.store.bytes->value(), dataset.store.requests->value()});
  }
  return reads;
}

uint64_t ReadCounter::bytes() const {
  uint64_t sum = 0;
  for (const control::ReadStatus& read : Reads()) sum += read.bytes;
  return sum;
}

uint64_t ReadCounter::passthrough_opens() const {
  uint64_t sum = 0;
  for (const Dataset& dataset : datasets_) sum += dataset.passthrough_opens->value();
  return sum;
}

uint64_t ReadCounter::passthrough_bytes() const {
  uint64_t sum = 0;
  for (const Dataset& dataset : datasets_) sum += dataset.passthrough_bytes->value();
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
