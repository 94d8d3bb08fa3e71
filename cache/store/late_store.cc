// A store that could not be opened when its mount was taken over, and may be later.
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache/store/registry.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"

namespace millrace::store {
namespace {

class LateStore : public Store {
 public:
  LateStore(std::string kind, StoreOpener open) : kind_(std::move(kind)), open_(std::move(open)) {}

  absl::string_view kind() const override { return kind_; }

  absl::StatusOr<ListPage> List(const std::string& path, const std::string& token,
                                size_t max_entries, const CallOptions& call) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<Store> store, Opened());
    return store->List(path, token, max_entries, call);
  }
  absl::StatusOr<Entry> Stat(const std::string& path, const CallOptions& call) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<Store> store, Opened());
    return store->Stat(path, call);
  }
  absl::Status Get(const GetRequest& request, BodySink sink, const CallOptions& call) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<Store> store, Opened());
    return store->Get(request, sink, call);
  }
  absl::StatusOr<std::vector<Entry>> Sample(size_t max_objects, const CallOptions& call) override {
    ASSIGN_OR_RETURN(const std::shared_ptr<Store> store, Opened());
    return store->Sample(max_objects, call);
  }

 private:
  // Whatever is wrong with it, it was right once: a retry is due, and never "no such file".
  absl::StatusOr<std::shared_ptr<Store>> Opened() {
    base::MutexLock lock(&mutex_);
    if (store_ == nullptr) {
      absl::StatusOr<std::shared_ptr<Store>> opened = open_();
      if (!opened.ok()) {
        return absl::UnavailableError(
            absl::StrCat("the store is away: ", opened.status().message()));
      }
      store_ = *std::move(opened);
    }
    return store_;
  }

  const std::string kind_;
  const StoreOpener open_;
  base::Mutex mutex_;  // Held while a directory is opened: what waits for it would fail without.
  std::shared_ptr<Store> store_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::shared_ptr<Store> NewLateStore(absl::string_view kind, StoreOpener open) {
  return std::make_shared<LateStore>(std::string(kind), std::move(open));
}

}  // namespace millrace::store
