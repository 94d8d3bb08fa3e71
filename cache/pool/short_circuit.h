// A cache that also has what the worker of this node has: a file that is complete there is read
// through the worker's own data file, whose descriptor it hands over, as if it were complete here
// (a "borrowed" file). No byte of it is kept a second time.
//
// The worker does not make room with a file while it is borrowed: the lease ends with the last
// holder of the CachedFile and of what its Open returned. A worker that dies takes its leases with
// it, and leaves the descriptors readable; the same holds for a file that it dropped all the same
// (a lease that grew old, a user's wish, another version). Both count as evicted, so that whoever
// holds them lets go when nobody has them open, and borrows the file again when it is needed.
//
// A borrowed file that cannot be read is not borrowed again for kFaultKept: its bytes come by the
// way of those that the worker has not.
//
// Thread-safe. The lookups may block for one exchange with the worker (Pool::OpenLocal).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cache/pool/pool.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/clock.h"
#include "common/io/file_io.h"

namespace millrace::pool {

class ShortCircuitCache final : public tier::TieredCache {
 public:
  // A smaller file costs less as one GET over the worker's socket than as a lease and a
  // descriptor, each with a call of its own.
  static constexpr uint64_t kBorrowedMin = 1 << 20;

  static constexpr absl::Duration kFaultKept = absl::Minutes(1);

  // Each borrowed file is an open descriptor: of more than `borrowed_max` at a time the others come
  // by the way of those that the worker has not. `pool`, `file_io` and `clock` must outlive the
  // cache, and every file found through it.
  ShortCircuitCache(std::unique_ptr<tier::TieredCache> local, Pool* pool, size_t borrowed_max,
                    io::FileIo* file_io, base::Clock* clock);

  // Complete here, else borrowed, else what is here of it.
  std::shared_ptr<tier::CachedFile> FindOrAdmit(const tier::FileKey& key) override;
  std::shared_ptr<tier::CachedFile> Find(const tier::FileKey& key) override;

  // What follows is about the local cache alone.
  uint64_t RoomBytes() const override { return local_->RoomBytes(); }
  bool HasRoomFor(const tier::FileKey& key) const override { return local_->HasRoomFor(key); }
  uint64_t Evict(absl::string_view source, absl::string_view path_prefix) override {
    return local_->Evict(source, path_prefix);
  }
  void ForEach(absl::FunctionRef<void(tier::CachedFile&)> each) const override {
    local_->ForEach(each);
  }
  void Reclassify(absl::FunctionRef<bool(const tier::FileKey&)> in_use) override {
    local_->Reclassify(in_use);
  }
  void ForgetEmpty(const tier::FileKey& key) override { local_->ForgetEmpty(key); }
  std::vector<tier::TierStats> Stats() const override { return local_->Stats(); }
  absl::Status Close() override { return local_->Close(); }
  absl::Status HandOver() override { return local_->HandOver(); }

 private:
  class BorrowedFile;
  // Null: the worker has not all of it, or there is none.
  std::shared_ptr<tier::CachedFile> Borrow(const tier::FileKey& key);

  const std::unique_ptr<tier::TieredCache> local_;
  Pool* const pool_;
  const size_t borrowed_max_;
  io::FileIo* const file_io_;
  class Borrowings;
  const std::shared_ptr<Borrowings> borrowings_;
};

}  // namespace millrace::pool
