// SEAM: where the worker has the namespace indexes from that it serves with kIndex frames
// (cache/index builds and reads them). The bytes are opaque here.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/tier/tiered_cache.h"

namespace millrace::worker {

// A whole index or a delta: `size` bytes of a file from its start, or else the text.
struct IndexBytes {
  std::shared_ptr<const tier::OpenData> file;
  uint64_t size = 0;
  std::string text;
};

class IndexSource {
 public:
  virtual ~IndexSource() = default;

  // A delta from version `have`, where that is still known, else the whole index. May block while
  // an index is built, until `cancelled` says that nobody waits any more. NotFound: this worker
  // does not keep an index of the source. Thread-safe.
  virtual absl::StatusOr<IndexBytes> Get(const std::string& source, uint64_t have,
                                         const std::atomic<bool>& cancelled) = 0;
};

// None.
class NoIndexSource final : public IndexSource {
 public:
  absl::StatusOr<IndexBytes> Get(const std::string&, uint64_t, const std::atomic<bool>&) override {
    return absl::NotFoundError("this worker keeps no index");
  }
};

}  // namespace millrace::worker
