#include "cache/pool/short_circuit.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_join.h"
#include "common/base/log.h"
#include "common/base/mutex.h"

namespace millrace::pool {

using tier::CachedFile;
using tier::FileKey;
using tier::OpenData;

// What is borrowed now, and what could not be read lately.
class ShortCircuitCache::Borrowings {
 public:
  explicit Borrowings(base::Clock* clock) : clock_(clock) {}

  size_t count() const { return count_.load(std::memory_order_relaxed); }
  void Begin() { count_.fetch_add(1, std::memory_order_relaxed); }
  void End() { count_.fetch_sub(1, std::memory_order_relaxed); }

  void AddFault(const FileKey& key) {
    base::MutexLock lock(&mutex_);
    // A disk that fails altogether: forgetting the old ones costs a failed read each.
    if (faults_.size() >= kFaultsMax) faults_.clear();
    faults_[NameOf(key)] = clock_->Monotonic() + kFaultKept;
  }

  bool HasFault(const FileKey& key) {
    base::MutexLock lock(&mutex_);
    if (faults_.empty()) return false;
    const auto found = faults_.find(NameOf(key));
    if (found == faults_.end()) return false;
    if (clock_->Monotonic() < found->second) return true;
    faults_.erase(found);
    return false;
  }

 private:
  static constexpr size_t kFaultsMax = 1000;
  // No part of a name has a NUL.
  static std::string NameOf(const FileKey& key) {
    return absl::StrJoin({key.source, key.path, key.version}, absl::string_view("\0", 1));
  }

  base::Clock* const clock_;
  std::atomic<size_t> count_{0};
  base::Mutex mutex_;
  absl::flat_hash_map<std::string, absl::Duration> faults_ ABSL_GUARDED_BY(mutex_);
};

// A complete file of the worker's. Whatever is wrong with it is the worker's to count and mend:
// after the first fault it has no block any more, and its holder fetches what it needs.
class ShortCircuitCache::BorrowedFile final : public CachedFile,
                                              public std::enable_shared_from_this<BorrowedFile> {
 public:
  BorrowedFile(FileKey key, std::shared_ptr<const OpenData> data, io::FileIo* file_io,
               std::shared_ptr<Borrowings> borrowings)
      : key_(std::move(key)),
        data_(std::move(data)),
        file_io_(file_io),
        borrowings_(std::move(borrowings)) {
    borrowings_->Begin();
  }
  ~BorrowedFile() override { borrowings_->End(); }

  const FileKey& key() const override { return key_; }
  bool complete() const override { return !faulty(); }
  // Asked once a second, and where a file is opened.
  bool evicted() const override {
    struct stat file;
    return faulty() || !data_->leased() || fstat(data_->fd(), &file) != 0 || file.st_nlink == 0;
  }
  bool borrowed() const override { return true; }
  // Where the worker keeps it is its own affair: nothing is written through this one.
  tier::Medium medium() const override { return tier::Medium::kSsd; }
  bool Has(uint64_t, uint64_t) const override { return !faulty(); }
  bool HasBlock(uint64_t) const override { return !faulty(); }

  absl::StatusOr<absl::optional<size_t>> ReadNow(uint64_t offset,
                                                 absl::Span<char> buffer) override {
    buffer = Clamp(offset, buffer);
    absl::StatusOr<absl::optional<size_t>> got = file_io_->ReadNow(data_->fd(), offset, buffer);
    if (got.ok() && !got->has_value()) return got;
    const absl::StatusOr<size_t> judged =
        Judge(buffer.size(), got.ok() ? absl::StatusOr<size_t>(**got) : got.status());
    if (!judged.ok()) return judged.status();
    return got;
  }

  void Read(uint64_t offset, absl::Span<char> buffer, io::ReadDone done) override {
    buffer = Clamp(offset, buffer);
    file_io_->Read(data_->fd(), offset, buffer,
                   [self = shared_from_this(), want = buffer.size(),
                    done = std::move(done)](absl::StatusOr<size_t> got) mutable {
                     std::move(done)(self->Judge(want, std::move(got)));
                   });
  }

  // Every block is present already.
  absl::Status Put(uint64_t, absl::Span<const char>) override { return absl::OkStatus(); }
  absl::Status PutBlocks(uint64_t, io::Pieces) override { return absl::OkStatus(); }

  absl::StatusOr<std::shared_ptr<const OpenData>> Open() override { return data_; }

 private:
  bool faulty() const { return faulty_.load(std::memory_order_relaxed); }

  absl::Span<char> Clamp(uint64_t offset, absl::Span<char> buffer) const {
    const uint64_t left = key_.size - std::min(offset, key_.size);
    return buffer.subspan(0, std::min<uint64_t>(left, buffer.size()));
  }

  absl::StatusOr<size_t> Judge(size_t want, absl::StatusOr<size_t> got) {
    if (got.ok() && *got == want) return got;
    if (got.ok()) got = absl::DataLossError("the worker's file is shorter than the object");
    if (!faulty_.exchange(true)) {
      borrowings_->AddFault(key_);
      base::Log(base::Severity::kWarning, "a file of the worker's cannot be read",
                {{"source", key_.source}, {"path", key_.path}, {"cause", got.status().ToString()}});
    }
    return got;
  }

  const FileKey key_;
  const std::shared_ptr<const OpenData> data_;
  io::FileIo* const file_io_;
  const std::shared_ptr<Borrowings> borrowings_;
  std::atomic<bool> faulty_{false};
};

ShortCircuitCache::ShortCircuitCache(std::unique_ptr<tier::TieredCache> local, Pool* pool,
                                     size_t borrowed_max, io::FileIo* file_io, base::Clock* clock)
    : local_(std::move(local)),
      pool_(pool),
      borrowed_max_(borrowed_max),
      file_io_(file_io),
      borrowings_(std::make_shared<Borrowings>(clock)) {}

std::shared_ptr<CachedFile> ShortCircuitCache::Borrow(const FileKey& key) {
  if (key.size <= kBorrowedMin || borrowings_->count() >= borrowed_max_ ||
      borrowings_->HasFault(key)) {
    return nullptr;
  }
  absl::StatusOr<std::shared_ptr<const OpenData>> data = pool_->OpenLocal(key);
  if (!data.ok()) return nullptr;
  // A pipe would block its reader, a shorter file end him.
  struct stat file;
  if (fstat((*data)->fd(), &file) != 0 || !S_ISREG(file.st_mode) ||
      static_cast<uint64_t>(file.st_size) != key.size) {
    base::Log(base::Severity::kWarning, "the worker handed over something that is not the file",
              {{"source", key.source}, {"path", key.path}});
    return nullptr;
  }
  return std::make_shared<BorrowedFile>(key, *std::move(data), file_io_, borrowings_);
}

std::shared_ptr<CachedFile> ShortCircuitCache::FindOrAdmit(const FileKey& key) {
  std::shared_ptr<CachedFile> found = Find(key);
  return found != nullptr ? found : local_->FindOrAdmit(key);
}

std::shared_ptr<CachedFile> ShortCircuitCache::Find(const FileKey& key) {
  std::shared_ptr<CachedFile> local = local_->Find(key);
  if (local != nullptr && local->complete()) return local;
  std::shared_ptr<CachedFile> borrowed = Borrow(key);
  return borrowed != nullptr ? borrowed : local;
}

}  // namespace millrace::pool
