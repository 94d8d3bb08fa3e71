#include "common/metrics/metrics.h"

#include <netdb.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/file_text.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "prometheus/collectable.h"
#include "prometheus/exposer.h"
#include "prometheus/metric_family.h"
#include "prometheus/text_serializer.h"

namespace millrace::metrics {
namespace {

prometheus::MetricType TypeOf(MetricKind kind) {
  switch (kind) {
    case MetricKind::kCounter:
      return prometheus::MetricType::Counter;
    case MetricKind::kGauge:
      return prometheus::MetricType::Gauge;
    case MetricKind::kHistogram:
      return prometheus::MetricType::Histogram;
  }
  return prometheus::MetricType::Untyped;
}

prometheus::ClientMetric Labelled(const MetricInfo& metric, const LabelValues& labels) {
  prometheus::ClientMetric sample;
  for (size_t i = 0; i < std::min(metric.label_count(), labels.size()); ++i) {
    sample.label.push_back({std::string(metric.labels[i]), labels[i]});
  }
  return sample;
}

// The samples of one page, grouped by metric.
class Families : public SampleSink {
 public:
  void Add(const MetricInfo& metric, const LabelValues& labels, double value) override {
    if (!std::isfinite(value)) return;
    prometheus::ClientMetric sample = Labelled(metric, labels);
    if (metric.kind == MetricKind::kCounter) {
      sample.counter.value = value;
    } else {
      sample.gauge.value = value;
    }
    samples_[&metric].push_back(std::move(sample));
  }

  void AddHistogram(const MetricInfo& metric, const LabelValues& labels,
                    const Histogram::Snapshot& snapshot) override {
    prometheus::ClientMetric sample = Labelled(metric, labels);
    uint64_t cumulative = 0;
    for (size_t i = 0; i < snapshot.buckets.size(); ++i) {
      cumulative += snapshot.buckets[i];
      const double bound = i < Histogram::kBounds.size() ? Histogram::kBounds[i] / 1e9
                                                         : std::numeric_limits<double>::infinity();
      sample.histogram.bucket.push_back({cumulative, bound});
    }
    sample.histogram.sample_count = snapshot.count;
    sample.histogram.sample_sum = snapshot.sum_seconds;
    samples_[&metric].push_back(std::move(sample));
  }

  std::vector<prometheus::MetricFamily> Take() {
    std::vector<prometheus::MetricFamily> families;
    for (const MetricInfo* const metric : kAllMetrics) {
      const auto found = samples_.find(metric);
      if (found == samples_.end()) continue;
      families.push_back({std::string(metric->name), std::string(metric->help),
                          TypeOf(metric->kind), std::move(found->second)});
    }
    return families;
  }

 private:
  std::map<const MetricInfo*, std::vector<prometheus::ClientMetric>> samples_;
};

// From /proc/self/stat, fields of proc(5) counted from the state, which follows the ")" that ends
// the only field a program can choose.
void AddProcess(SampleSink* sink) {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) { return time.tv_sec + time.tv_usec * 1e-6; };
  sink->Add(kProcessCpu, {}, seconds(usage.ru_utime) + seconds(usage.ru_stime));
  const absl::StatusOr<std::string> stat = base::ReadTextFile("/proc/self/stat", 1 << 16);
  const absl::StatusOr<std::string> uptime = base::ReadTextFile("/proc/stat", 1 << 24);
  if (!stat.ok() || !uptime.ok()) return;
  const std::vector<absl::string_view> fields =
      absl::StrSplit(absl::string_view(*stat).substr(stat->rfind(')') + 1), ' ', absl::SkipEmpty());
  uint64_t start_ticks = 0;
  uint64_t resident_pages = 0;
  uint64_t boot_seconds = 0;
  const size_t boot = uptime->find("\nbtime ");
  if (boot == std::string::npos || fields.size() < 22 ||
      !absl::SimpleAtoi(fields[19], &start_ticks) ||
      !absl::SimpleAtoi(fields[21], &resident_pages) ||
      !absl::SimpleAtoi(uptime->substr(boot + 7, uptime->find('\n', boot + 7) - boot - 7),
                        &boot_seconds)) {
    return;
  }
  sink->Add(kProcessResident, {}, static_cast<double>(resident_pages * sysconf(_SC_PAGESIZE)));
  sink->Add(kProcessStart, {},
            boot_seconds + static_cast<double>(start_ticks) / sysconf(_SC_CLK_TCK));
}

struct HostPort {
  std::string host;  // Empty for every interface.
  int port = 0;
};

absl::StatusOr<HostPort> ParseAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  HostPort parsed;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &parsed.port) ||
      parsed.port < 0 || parsed.port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\" is not HOST:PORT; write it like 127.0.0.1:7462 or :7462"));
  }
  parsed.host = address.substr(0, colon);
  if (parsed.host.size() >= 2 && parsed.host.front() == '[' && parsed.host.back() == ']') {
    parsed.host = parsed.host.substr(1, parsed.host.size() - 2);
  }
  return parsed;
}

absl::Status CannotServe(const std::string& address, absl::string_view cause) {
  return absl::UnavailableError(
      absl::StrCat("cannot serve metrics on ", address, ": ", cause,
                   "; give --metrics another HOST:PORT, or stop the program that uses it"));
}

// Binds the address once to see whether that works: the server library tells no cause. Returns
// the numeric form the library understands.
absl::StatusOr<std::string> CheckBindable(const std::string& address) {
  ASSIGN_OR_RETURN(const HostPort wanted, ParseAddress(address));
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  // "Every interface" is IPv4's: a host without IPv6 has it too.
  hints.ai_family = wanted.host.empty() ? AF_INET : AF_UNSPEC;
  addrinfo* list = nullptr;
  const int failed = getaddrinfo(wanted.host.empty() ? nullptr : wanted.host.c_str(),
                                 std::to_string(wanted.port).c_str(), &hints, &list);
  if (failed != 0) return CannotServe(address, gai_strerror(failed));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(list, freeaddrinfo);
  const base::UniqueFd fd(socket(list->ai_family, list->ai_socktype | SOCK_CLOEXEC, 0));
  const int yes = 1;
  if (!fd.valid() || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) != 0 ||
      bind(fd.get(), list->ai_addr, list->ai_addrlen) != 0 || listen(fd.get(), 1) != 0) {
    // The daemon of root has none either.
    return CannotServe(address, errno == EACCES ? "a port below 1024 takes a privilege that the "
                                                  "daemon does not have"
                                                : strerror(errno));
  }
  char numeric[NI_MAXHOST];
  if (getnameinfo(list->ai_addr, list->ai_addrlen, numeric, sizeof(numeric), nullptr, 0,
                  NI_NUMERICHOST) != 0) {
    return CannotServe(address, "the address has no numeric form");
  }
  return list->ai_family == AF_INET6 ? absl::StrCat("[", numeric, "]:", wanted.port)
                                     : absl::StrCat(numeric, ":", wanted.port);
}

class EmptyPage : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override { return {}; }
};

}  // namespace

void Histogram::Observe(absl::Duration duration) {
  const int64_t nanoseconds = absl::ToInt64Nanoseconds(duration);
  const size_t bucket =
      std::lower_bound(kBounds.begin(), kBounds.end(), nanoseconds) - kBounds.begin();
  buckets_[bucket].fetch_add(1, std::memory_order_relaxed);
  sum_ns_.fetch_add(nanoseconds, std::memory_order_relaxed);
}

Histogram::Snapshot Histogram::Take() const {
  Snapshot snapshot;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    snapshot.buckets[i] = buckets_[i].load(std::memory_order_relaxed);
    snapshot.count += snapshot.buckets[i];
  }
  snapshot.sum_seconds = static_cast<double>(sum_ns_.load(std::memory_order_relaxed)) * 1e-9;
  return snapshot;
}

CollectorHandle::~CollectorHandle() {
  if (metrics_ != nullptr) metrics_->RemoveCollector(id_);
}

// Makes the page's samples. Owned by a shared_ptr because the server library keeps a weak one.
class Metrics::Collector : public prometheus::Collectable {
 public:
  explicit Collector(const Metrics* metrics) : metrics_(metrics) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    Families families;
    {
      base::MutexLock lock(&metrics_->collect_mutex_);
      for (const auto& [id, collect] : metrics_->collectors_) collect(families);
    }
    {
      base::MutexLock lock(&metrics_->mutex_);
      AddOwn(&families);
    }
    families.Add(kBuildInfo, {metrics_->version_}, 1);
    AddProcess(&families);
    return families.Take();
  }

 private:
  void AddOwn(Families* families) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(metrics_->mutex_) {
    for (const auto& [metric, by_labels] : metrics_->counters_) {
      for (const auto& [labels, counter] : by_labels) {
        families->Add(*metric, labels, static_cast<double>(counter->value()));
      }
    }
    for (const auto& [metric, by_labels] : metrics_->histograms_) {
      for (const auto& [labels, histogram] : by_labels) {
        families->AddHistogram(*metric, labels, histogram->Take());
      }
    }
    AddHitRatios(families);
  }

  void AddHitRatios(Families* families) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(metrics_->mutex_) {
    const auto reads = metrics_->counters_.find(&kReadBytes);
    if (reads == metrics_->counters_.end()) return;
    struct Bytes {
      uint64_t all = 0;
      uint64_t from_store = 0;
    };
    std::map<std::string, Bytes> by_dataset;
    for (const auto& [labels, counter] : reads->second) {
      Bytes& bytes = by_dataset[labels[0]];
      const uint64_t value = counter->value();
      bytes.all += value;
      if (labels[1] == kTierStore) bytes.from_store += value;
    }
    for (const auto& [dataset, bytes] : by_dataset) {
      if (bytes.all == 0) continue;
      families->Add(kCacheHitRatio, {dataset},
                    1 - static_cast<double>(bytes.from_store) / static_cast<double>(bytes.all));
    }
  }

  const Metrics* const metrics_;
};

struct Metrics::Server {
  explicit Server(const std::string& address)
      // A client that sends its request slowly, or none, holds one of the two threads: not long.
      : exposer(std::vector<std::string>{"listening_ports", address, "num_threads", "2",
                                         "request_timeout_ms", "5000"}) {}
  prometheus::Exposer exposer;
  std::shared_ptr<EmptyPage> health = std::make_shared<EmptyPage>();
  int port = 0;
};

Metrics::Metrics(absl::string_view version)
    : version_(version), collector_(std::make_shared<Collector>(this)) {}

Metrics::~Metrics() {
  server_.reset();  // Before anything a page is made of.
}

Counter* Metrics::GetCounter(const MetricInfo& metric, const LabelValues& labels) {
  base::MutexLock lock(&mutex_);
  std::unique_ptr<Counter>& counter = counters_[&metric][labels];
  if (counter == nullptr) counter = std::make_unique<Counter>();
  return counter.get();
}

Histogram* Metrics::GetHistogram(const MetricInfo& metric, const LabelValues& labels) {
  base::MutexLock lock(&mutex_);
  std::unique_ptr<Histogram>& histogram = histograms_[&metric][labels];
  if (histogram == nullptr) histogram = std::make_unique<Histogram>();
  return histogram.get();
}

ReadMetrics Metrics::Read(absl::string_view dataset, absl::string_view tier) {
  const LabelValues labels = {std::string(dataset), std::string(tier)};
  return {GetCounter(kReadBytes, labels), GetCounter(kReadRequests, labels),
          GetHistogram(kReadSeconds, labels)};
}

void Metrics::CountError(absl::string_view component, absl::string_view kind) {
  GetCounter(kErrors, {std::string(component), std::string(kind)})->Add();
}

CollectorHandle Metrics::AddCollector(std::function<void(SampleSink&)> collect) {
  base::MutexLock lock(&collect_mutex_);
  const uint64_t id = next_collector_++;
  collectors_.emplace(id, std::move(collect));
  return CollectorHandle(this, id);
}

void Metrics::RemoveCollector(uint64_t id) {
  base::MutexLock lock(&collect_mutex_);
  collectors_.erase(id);
}

std::vector<std::pair<LabelValues, uint64_t>> Metrics::Counters(const MetricInfo& metric) const {
  std::vector<std::pair<LabelValues, uint64_t>> values;
  base::MutexLock lock(&mutex_);
  const auto found = counters_.find(&metric);
  if (found == counters_.end()) return values;
  for (const auto& [labels, counter] : found->second) values.emplace_back(labels, counter->value());
  return values;
}

absl::Status Metrics::Serve(const std::string& address) {
  ASSIGN_OR_RETURN(const std::string numeric, CheckBindable(address));
  try {
    server_ = std::make_unique<Server>(numeric);
    server_->exposer.RegisterCollectable(collector_);
    server_->exposer.RegisterCollectable(server_->health, "/healthz");
    const std::vector<int> ports = server_->exposer.GetListeningPorts();
    server_->port = ports.empty() ? 0 : ports.front();
  } catch (const std::exception& error) {
    server_.reset();
    return CannotServe(address, error.what());
  }
  return absl::OkStatus();
}

void Metrics::SetReady() {
  if (server_ != nullptr) server_->exposer.RegisterCollectable(server_->health, "/readyz");
}

void Metrics::StopServing() { server_.reset(); }

int Metrics::port() const { return server_ == nullptr ? 0 : server_->port; }

std::string Metrics::Page() const {
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, collector_->Collect());
  return out.str();
}

}  // namespace millrace::metrics
