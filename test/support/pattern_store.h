// A store whose objects have bytes that anybody can compute, that counts what it is asked, and that
// a test can hold, break and change.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "cache/store/store.h"
#include "common/base/mutex.h"

namespace millrace::test {

// The byte at `offset` of version `version` of the object at `path`.
char PatternByte(absl::string_view path, absl::string_view version, uint64_t offset);
std::string PatternBytes(absl::string_view path, absl::string_view version, uint64_t offset,
                         uint64_t size);

// Thread-safe. Listing and Stat are not implemented: what reads bytes needs Get alone.
class PatternStore : public store::Store {
 public:
  absl::string_view kind() const override { return "pattern"; }
  absl::StatusOr<store::ListPage> List(const std::string&, const std::string&, size_t,
                                       const store::CallOptions&) override {
    return absl::UnimplementedError("PatternStore::List");
  }
  absl::StatusOr<store::Entry> Stat(const std::string&, const store::CallOptions&) override {
    return absl::UnimplementedError("PatternStore::Stat");
  }
  absl::StatusOr<std::vector<store::Entry>> Sample(size_t, const store::CallOptions&) override {
    return std::vector<store::Entry>();
  }
  absl::Status Get(const store::GetRequest& request, store::BodySink sink,
                   const store::CallOptions& call) override;

  // Objects have version "v1" until this.
  void SetVersion(const std::string& path, const std::string& version);
  // What Gets say of where their bytes came from, whether they put them in the caller's room, and
  // range_unit().
  void SetFrom(store::BytesFrom from);
  void SetUsesRoom(bool uses);
  void SetRangeUnit(uint64_t bytes);
  uint64_t range_unit() const override;
  // Gets wait before their first byte until Open.
  void Hold();
  void Open();
  // Returns when `count` Gets have begun since the start.
  void AwaitGets(size_t count);
  // The status of the next `count` Gets, after `bytes` bytes.
  void FailNext(size_t count, absl::Status status, uint64_t bytes = 0);

  std::vector<store::GetRequest> requests() const;
  uint64_t bytes_sent() const;

 private:
  mutable base::Mutex mutex_;
  base::CondVar changed_;
  store::BytesFrom from_ ABSL_GUARDED_BY(mutex_) = store::BytesFrom::kStore;
  bool uses_room_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t range_unit_ ABSL_GUARDED_BY(mutex_) = store::kRangeUnitDefault;
  bool held_ ABSL_GUARDED_BY(mutex_) = false;
  size_t fail_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status fail_status_ ABSL_GUARDED_BY(mutex_);
  uint64_t fail_after_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t bytes_sent_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<store::GetRequest> gets_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, std::string> versions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::test
