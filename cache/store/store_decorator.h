// A store in front of another: passes on whatever a derived class does not take for itself, so that
// what a store learns to answer later reaches it through every decorator.
//
// As thread-safe as the store behind it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cache/store/store.h"

namespace millrace::store {

class StoreDecorator : public Store {
 public:
  explicit StoreDecorator(std::shared_ptr<Store> store) : store_(std::move(store)) {}

  absl::string_view kind() const override { return store_->kind(); }
  uint64_t range_unit() const override { return store_->range_unit(); }
  absl::StatusOr<ListPage> List(const std::string& path, const std::string& token,
                                size_t max_entries, const CallOptions& call) override {
    return store_->List(path, token, max_entries, call);
  }
  absl::StatusOr<Entry> Stat(const std::string& path, const CallOptions& call) override {
    return store_->Stat(path, call);
  }
  absl::Status Get(const GetRequest& request, BodySink sink, const CallOptions& call) override {
    return store_->Get(request, sink, call);
  }
  absl::StatusOr<uint64_t> Warm(const GetRequest& request, const CallOptions& call) override {
    return store_->Warm(request, call);
  }
  absl::StatusOr<std::vector<Entry>> Sample(size_t max_objects, const CallOptions& call) override {
    return store_->Sample(max_objects, call);
  }

 protected:
  const std::shared_ptr<Store> store_;
};

}  // namespace millrace::store
