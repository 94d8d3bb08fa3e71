#include <utility>

#include "cache/store/registry.h"
#include "cache/store/store_decorator.h"
#include "common/base/clock.h"

namespace millrace::store {
namespace {

class CountingStore : public StoreDecorator {
 public:
  CountingStore(std::shared_ptr<Store> store, StoreObserver* observer)
      : StoreDecorator(std::move(store)), observer_(observer) {}

  absl::StatusOr<ListPage> List(const std::string& path, const std::string& token,
                                size_t max_entries, const CallOptions& call) override {
    const absl::Duration began = Now();
    absl::StatusOr<ListPage> page = store_->List(path, token, max_entries, call);
    Report("list", page.status(), 0, began);
    return page;
  }

  absl::StatusOr<Entry> Stat(const std::string& path, const CallOptions& call) override {
    const absl::Duration began = Now();
    absl::StatusOr<Entry> entry = store_->Stat(path, call);
    Report("stat", entry.status(), 0, began);
    return entry;
  }

  absl::Status Get(const GetRequest& request, BodySink sink, const CallOptions& call) override {
    const absl::Duration began = Now();
    uint64_t bytes = 0;
    const auto counted = [&](absl::string_view piece) {
      bytes += piece.size();
      return sink(piece);
    };
    absl::Status status = store_->Get(request, counted, call);
    Report("get", status, bytes, began);
    return status;
  }

  absl::StatusOr<std::vector<Entry>> Sample(size_t max_objects, const CallOptions& call) override {
    const absl::Duration began = Now();
    absl::StatusOr<std::vector<Entry>> sample = store_->Sample(max_objects, call);
    Report("sample", sample.status(), 0, began);
    return sample;
  }

 private:
  static absl::Duration Now() { return base::RealClock()->Monotonic(); }

  void Report(absl::string_view operation, const absl::Status& status, uint64_t bytes,
              absl::Duration began) {
    StoreObserver::Call call;
    call.store = store_->kind();
    call.operation = operation;
    call.code = status.code();
    call.bytes_in = bytes;
    call.elapsed = Now() - began;
    observer_->OnCall(call);
  }

  StoreObserver* const observer_;
};

}  // namespace

std::shared_ptr<Store> NewCountingStore(std::shared_ptr<Store> store, StoreObserver* observer) {
  return std::make_shared<CountingStore>(std::move(store), observer);
}

}  // namespace millrace::store
