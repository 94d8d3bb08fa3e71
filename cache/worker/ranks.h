// Who owns what, as this worker sees its pool: the members that have answered, and itself. Others
// may see it differently for seconds; nothing here is believed by anybody but this worker.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "cache/pool/placement.h"
#include "cache/pool/pool.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/mutex.h"

namespace millrace::worker {

class Ranks {
 public:
  struct Options {
    std::string id;  // Of this worker.
    uint64_t capacity_bytes = 0;
    uint64_t extent_size = pool::kExtentSizeDefault;
    uint32_t replicas = 1;
  };
  explicit Ranks(const Options& options);

  const Options& options() const { return options_; }

  // What the pool says of its members. True if it changes who owns what.
  bool Update(absl::Span<const pool::MemberStatus> members);
  // This worker owns nothing from now on.
  void SetDraining();
  bool draining() const;

  // This worker is among the first `replicas` of the extent's ranking.
  bool Owns(absl::string_view source, absl::string_view path, uint64_t extent) const;
  bool OwnsAny(const tier::FileKey& file) const;
  bool OwnsAll(const tier::FileKey& file) const;
  // The first of those that answer: who sends copies to the others.
  bool Leads(absl::string_view source, absl::string_view path, uint64_t extent) const;
  // Bytes of the file that this worker owns.
  uint64_t OwnedBytes(const tier::FileKey& file) const;
  // Ids, best first.
  std::vector<std::string> Ranking(absl::string_view source, absl::string_view path,
                                   uint64_t extent) const;

  uint64_t ExtentCount(uint64_t file_size) const;
  uint64_t ExtentBytes(uint64_t file_size, uint64_t extent) const;

 private:
  struct View {
    std::vector<pool::PlacedMember> members;
    std::vector<bool> reachable;
    size_t self = 0;
    bool operator==(const View& other) const;
  };
  std::shared_ptr<const View> view() const;

  const Options options_;
  mutable base::Mutex mutex_;
  std::shared_ptr<const View> view_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::worker
