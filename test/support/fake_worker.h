// A worker without a cache, for tests of its control port: answers what the test says, and counts.
// Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache/worker/worker.h"
#include "common/base/mutex.h"
#include "common/metrics/metrics.h"

namespace millrace::testing {

class FakeWorker : public worker::Worker {
 public:
  static constexpr char kSource[] = "s3://bucket";

  absl::Status Stop(absl::Duration /*grace*/) override { return absl::OkStatus(); }
  net::Address data_address() const override { return {}; }
  std::string socket_path() const override { return ""; }
  int metrics_port() const override { return 0; }
  metrics::Metrics& metrics() override { return metrics_; }

  proto::WorkerReport Report() const override {
    base::MutexLock lock(&mutex_);
    while (report_held_) changed_.Wait(&mutex_);
    proto::WorkerReport report = report_;
    report.drain = drain_;
    report.draining = drain_.has_value();
    return report;
  }

  absl::StatusOr<proto::LocateReply> Locate(const proto::LocateRequest& request) override {
    if (request.source != kSource) return Unknown(request.source);
    proto::LocateReply reply;
    reply.version = "v1";
    reply.size = 100;
    reply.extent_size = 64;
    reply.extents = {{0, 64, {"b", "a"}, 10}, {64, 36, {"a", "b"}, 36}};
    return reply;
  }

  absl::StatusOr<proto::StatReply> Stat(const proto::StatRequest& request) override {
    if (request.source != kSource) return Unknown(request.source);
    return proto::StatReply{Entry(request.path), 7};
  }

  absl::StatusOr<proto::ListReply> List(const proto::ListRequest& request) override {
    if (request.source != kSource) return Unknown(request.source);
    proto::ListReply reply;
    reply.entries = {Entry("a"), Entry("caf\xe9")};
    reply.next_token = absl::StrCat(request.token, "+", request.entries_max);
    return reply;
  }

  // Reports until the test lets it finish, or nobody wants to know any more.
  absl::Status Load(const proto::LoadRequest& request, worker::LoadObserver observer) override {
    if (request.source != kSource) return Unknown(request.source);
    base::MutexLock lock(&mutex_);
    ++loads_running_;
    changed_.NotifyAll();
    absl::Status status;
    proto::LoadProgress progress;
    progress.files_total = 3;
    progress.bytes_total = 30;
    progress.total_known = true;
    while (true) {
      progress.files_done = loads_may_end_ ? 3 : 1;
      progress.bytes_done = progress.files_done * 10;
      mutex_.Unlock();
      const bool wanted = observer(progress);
      mutex_.Lock();
      if (!wanted) status = absl::CancelledError("stopped");
      if (!wanted || progress.files_done == 3) break;
      changed_.WaitFor(&mutex_, absl::Milliseconds(10));
    }
    --loads_running_;
    changed_.NotifyAll();
    return status;
  }

  absl::StatusOr<uint64_t> Evict(const proto::EvictRequest& request) override {
    if (request.source != kSource) return Unknown(request.source);
    return 1000 + request.path.size();
  }

  void StartDrain() override {
    base::MutexLock lock(&mutex_);
    if (drain_.has_value()) return;
    drain_ = proto::DrainProgress();
    drain_->extents_total = 4;
    drain_->bytes_total = 256;
    drain_->total_known = true;
    changed_.NotifyAll();
  }

  absl::Status WatchDrain(worker::DrainObserver observer) override {
    base::MutexLock lock(&mutex_);
    if (!drain_.has_value()) {
      return absl::FailedPreconditionError("this worker is not being drained");
    }
    ++watching_;
    changed_.NotifyAll();
    absl::Status status;
    while (true) {
      const proto::DrainProgress progress = *drain_;
      mutex_.Unlock();
      const bool wanted = observer(progress);
      mutex_.Lock();
      if (!wanted) status = absl::CancelledError("nobody watches");
      if (!wanted || progress.done) break;
      changed_.WaitFor(&mutex_, absl::Milliseconds(10));
    }
    --watching_;
    changed_.NotifyAll();
    return status;
  }

  // --- The test's side ---
  void SetReport(proto::WorkerReport report) {
    base::MutexLock lock(&mutex_);
    report_ = std::move(report);
  }
  void SetDrain(const proto::DrainProgress& progress) {
    base::MutexLock lock(&mutex_);
    drain_ = progress;
    changed_.NotifyAll();
  }
  // Report answers only when it is not held.
  void HoldReport(bool held) {
    base::MutexLock lock(&mutex_);
    report_held_ = held;
    changed_.NotifyAll();
  }
  void LetLoadsEnd() {
    base::MutexLock lock(&mutex_);
    loads_may_end_ = true;
    changed_.NotifyAll();
  }
  void AwaitLoads(int running) {
    base::MutexLock lock(&mutex_);
    while (loads_running_ != running) changed_.Wait(&mutex_);
  }
  void AwaitWatchers(int watching) {
    base::MutexLock lock(&mutex_);
    while (watching_ != watching) changed_.Wait(&mutex_);
  }
  bool draining() const {
    base::MutexLock lock(&mutex_);
    return drain_.has_value();
  }

 private:
  static absl::Status Unknown(const std::string& source) {
    return absl::NotFoundError(absl::StrCat("this worker has no source ", source));
  }
  static proto::ListedEntry Entry(std::string name) {
    proto::ListedEntry entry;
    entry.name = std::move(name);
    entry.size = 5;
    entry.mtime = absl::FromUnixNanos(1'600'000'000'123'456'789);
    entry.version = "v1";
    return entry;
  }

  metrics::Metrics metrics_{"test"};
  mutable base::Mutex mutex_;
  mutable base::CondVar changed_;
  proto::WorkerReport report_ ABSL_GUARDED_BY(mutex_);
  std::optional<proto::DrainProgress> drain_ ABSL_GUARDED_BY(mutex_);
  bool report_held_ ABSL_GUARDED_BY(mutex_) = false;
  bool loads_may_end_ ABSL_GUARDED_BY(mutex_) = false;
  int loads_running_ ABSL_GUARDED_BY(mutex_) = 0;
  int watching_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace millrace::testing
