// A store in memory, for tests: flat keys like S3's, so that hostile names can be put in.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "cache/store/store.h"
#include "common/base/mutex.h"

namespace millrace::store {

// Safe for concurrent use, changes included: a Get that has begun goes on with the bytes it found.
class MemoryStore : public Store {
 public:
  MemoryStore() = default;

  // Adds or replaces the object `path`; directories come and go with their objects. An empty
  // `version` becomes one that no other Put got.
  void Put(const std::string& path, std::string bytes, const std::string& version = "");
  void Remove(const std::string& path);
  // An object whose size is claimed without bytes behind it (up to 2^63-1); Get gives zeros.
  void PutClaimed(const std::string& path, uint64_t size, const std::string& version);

  absl::string_view kind() const override { return "memory"; }
  uint64_t range_unit() const override { return kRangeUnitPage; }
  absl::StatusOr<ListPage> List(const std::string& path, const std::string& token,
                                size_t max_entries, const CallOptions& call) override;
  absl::StatusOr<Entry> Stat(const std::string& path, const CallOptions& call) override;
  absl::Status Get(const GetRequest& request, BodySink sink, const CallOptions& call) override;
  absl::StatusOr<std::vector<Entry>> Sample(size_t max_objects, const CallOptions& call) override;

 private:
  struct Object {
    std::shared_ptr<const std::string> bytes;  // Null: claimed only.
    uint64_t size = 0;
    std::string version;
    absl::Time mtime;
  };
  Entry MakeEntry(absl::string_view name, const Object& object) const;
  void Insert(const std::string& path, Object object, const std::string& version);

  mutable base::Mutex mutex_;
  std::map<std::string, Object> objects_ ABSL_GUARDED_BY(mutex_);
  uint64_t puts_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace millrace::store
