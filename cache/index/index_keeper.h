// The indexes of a worker: one for each source that somebody asks for, listed when it is asked for
// and again when those who ask want it newer; with its last differences, so that most answers are
// short.
//
// Nothing is listed for nobody: a listing begins with a question. So the first question of all is
// answered Unavailable, with the time after which to ask again, and who asks lists the store itself
// meanwhile. However many ask, there is one listing of a source at a time, and listings take at
// most a fifth of the time.
//
// On disk: DIRECTORY/<StableHash64({identity}) as 16 hexadecimal digits>/index and delta-<from
// version>, all made under another name and renamed. What a start finds there is checked; its age
// is not known until a listing confirmed it.
//
// Threads. Thread-safe. Get does not wait for the store; Refresh does.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cache/index/answer.h"
#include "cache/index/builder.h"
#include "cache/index/index_file.h"
#include "cache/store/store.h"
#include "common/base/clock.h"

namespace millrace::index {

struct IndexKeeperOptions {
  std::string directory;  // Made if need be; empty: indexes are kept in memory.
  // A source is listed again at most this often, however new an index is asked for.
  absl::Duration refresh_min = absl::Seconds(15);
  size_t threads = 16;  // Calls to a store at a time.
  uint64_t entries_max = 100'000'000;
  size_t sort_memory_bytes = 64 << 20;
  base::Clock* clock = nullptr;  // Null: the machine's.
};

// What to send: the head, and then the index's file or the delta, if there is one.
struct IndexAnswer {
  AnswerHead head;
  std::shared_ptr<const Index> index;        // Of kIndex: header().file_bytes of fd().
  std::shared_ptr<const std::string> delta;  // Of kDelta.
};

struct IndexStatus {
  std::string source;
  uint64_t version = 0;  // 0: there is none.
  uint64_t entries = 0;
  uint64_t file_bytes = 0;
  absl::Duration age = absl::InfiniteDuration();
  bool listing = false;
  uint64_t listings = 0;           // Since the start.
  absl::Duration listing_elapsed;  // Of the last one.
  std::string last_error;          // Of the last one; empty if it succeeded.
};

class IndexKeeper {
 public:
  struct Source {
    std::string identity;
    std::shared_ptr<store::Store> store;  // Tries again by itself.
  };
  // Does not touch the disk: what cannot be kept there is an error of each listing.
  static std::unique_ptr<IndexKeeper> Create(const IndexKeeperOptions& options,
                                             const std::vector<Source>& sources);
  // Ends the listings.
  virtual ~IndexKeeper() = default;

  // The newest index for a client that has version `have` (0: none). Begins a listing when the
  // last one began longer than `max_age` ago. NotFound: no such source. Unavailable, with
  // store::kRetryAfterPayload: there is no index yet.
  virtual absl::StatusOr<IndexAnswer> Get(const std::string& source, uint64_t have,
                                          absl::Duration max_age) = 0;

  // Lists the source now, or waits for the listing that is under way. The listing's error.
  virtual absl::Status Refresh(const std::string& source) = 0;

  virtual std::vector<IndexStatus> Status() const = 0;
};

}  // namespace millrace::index
