#include "cache/tier/data_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "common/base/crc32c.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/io/blocking_read.h"

namespace millrace::tier {
namespace {

using Crcs = absl::InlinedVector<uint32_t, 16>;
using Blocks = absl::InlinedVector<absl::Span<const char>, 16>;

uint32_t CrcOf(absl::Span<const char> bytes) {
  return base::Crc32c(0, absl::string_view(bytes.data(), bytes.size()));
}

bool OutOfDescriptors(const absl::Status& status) {
  const int error = base::ErrnoOf(status).value_or(0);
  return error == EMFILE || error == ENFILE;
}

}  // namespace

DataFile::DataFile(FileKey key, const FileId& id, Tier* tier, Source* source, uint64_t committed)
    : key_(std::move(key)),
      id_(id),
      tier_(tier),
      source_(source),
      committed_(committed),
      map_(BlockCount(key_.size)),
      queued_in_use_(source->in_use),
      counted_in_use_(source->in_use) {
  tier_->counters().files.fetch_add(1, std::memory_order_relaxed);
}

DataFile::~DataFile() {
  // The descriptor cache knows this file without holding it. The lock waits for a call of
  // YieldDescriptor under way; once the descriptor is off the list there is no other.
  std::shared_ptr<Descriptor> descriptor;
  {
    base::MutexLock lock(&mutex_);
    descriptor = std::move(descriptor_);
  }
  if (descriptor != nullptr) tier_->environment().descriptors->Remove(descriptor.get());
}

// --- Geometry -----------------------------------------------------------------------------------

DataFile::BlockRange DataFile::BlocksOf(uint64_t offset, uint64_t length) {
  const uint64_t first = offset / kBlockSize;
  return {first, length == 0 ? 0 : (offset + length - 1) / kBlockSize - first + 1};
}

uint64_t DataFile::BlockLength(uint64_t index) const {
  return std::min(kBlockSize, key_.size - index * kBlockSize);
}

uint64_t DataFile::BytesOf(BlockRange range) const {
  const uint64_t end = std::min(key_.size, (range.first + range.count) * kBlockSize);
  return end - range.first * kBlockSize;
}

bool DataFile::AnyUnverified(BlockRange range) const {
  return map_.any_unverified() && map_.NextUnverified(range.first) < range.first + range.count;
}

absl::Span<char> DataFile::Clamp(uint64_t offset, absl::Span<char> buffer) const {
  const uint64_t left = offset < key_.size ? key_.size - offset : 0;
  return buffer.subspan(0, std::min<uint64_t>(buffer.size(), left));
}

bool DataFile::Has(uint64_t offset, uint64_t length) const {
  if (offset >= key_.size) return true;
  length = std::min(length, key_.size - offset);
  if (length == 0) return true;
  const BlockRange range = BlocksOf(offset, length);
  return map_.HasAll(range.first, range.count);
}

// --- Writers and eviction -----------------------------------------------------------------------

bool DataFile::BeginWrite() {
  if (!tier_->BeginChange()) return false;
  {
    base::MutexLock lock(&mutex_);
    if (!evicted()) {
      ++writers_;
      return true;
    }
  }
  tier_->EndChange();
  return false;
}

bool DataFile::LeaveWrite() {
  base::MutexLock lock(&mutex_);
  return --writers_ == 0 && evicted();
}

void DataFile::EndWrite() {
  if (LeaveWrite()) {
    // The eviction may have come before there was anything to open.
    PinDescriptor();
    RemoveData();
  }
  tier_->EndChange();
}

uint64_t DataFile::Evict() {
  uint64_t freed = 0;
  {
    base::MutexLock lock(&mutex_);
    if (evicted()) return 0;
    evicted_.store(true, std::memory_order_release);
    ++writers_;  // Keeps the data file until a holder's descriptor is open.
    freed = bytes_;
    SubtractBytes(freed);
    if (complete()) tier_->counters().files_complete.fetch_sub(1, std::memory_order_relaxed);
  }
  tier_->Dequeue(*this);
  tier_->Uncommit(committed_);
  tier_->counters().files.fetch_sub(1, std::memory_order_relaxed);
  if (held()) PinDescriptor();
  if (LeaveWrite()) RemoveData();
  return freed;
}

void DataFile::Abandon() {
  tier_->Dequeue(*this);
  tier_->Uncommit(committed_);
  tier_->counters().files.fetch_sub(1, std::memory_order_relaxed);
  evicted_.store(true, std::memory_order_release);
}

void DataFile::PinDescriptor() {
  // Without a descriptor (none left, disk gone) the holder's reads fail: a miss, not an error.
  const absl::StatusOr<std::shared_ptr<Descriptor>> descriptor = Acquire();
  if (!descriptor.ok()) return;
  {
    base::MutexLock lock(&mutex_);
    pinned_ = true;
    descriptor_ = *descriptor;
  }
  tier_->environment().descriptors->Remove(descriptor->get());
}

void DataFile::RemoveData() {
  // Before the unlink: nobody may take the next file of this name for this one (OpenFile).
  const Place place = place_.exchange(Place::kNowhere);
  if (place == Place::kNowhere) {
    tier_->RemoveDying(ref());
  } else {
    // A file that is gone already is as good as removed; one that cannot be removed is foreign at
    // the next start.
    unlinkat(directory(place), id_.Name().c_str(), 0);
    std::string record;
    AppendRemoved(ref(), &record);
    tier_->RemoveDyingAt(ref(), tier_->journal().Append(record, EncodedSize() + record.size()));
  }
}

// --- Writing ------------------------------------------------------------------------------------

absl::Status DataFile::CheckPut(uint64_t offset, uint64_t size) const {
  const bool inside = offset <= key_.size && size <= key_.size - offset;
  const bool ends = inside && offset + size == key_.size;
  if (offset % kBlockSize != 0 || !inside || (size % kBlockSize != 0 && !ends)) {
    return absl::InvalidArgumentError(
        absl::StrCat("not whole blocks of ", key_.path, ": ", size, " bytes at ", offset));
  }
  return absl::OkStatus();
}

absl::Status DataFile::Put(uint64_t offset, absl::Span<const char> data) {
  RETURN_IF_ERROR(CheckPut(offset, data.size()));
  Blocks blocks;
  for (size_t at = 0; at < data.size(); at += kBlockSize) {
    blocks.push_back(data.subspan(at, kBlockSize));
  }
  return PutBlocks(offset / kBlockSize, blocks);
}

absl::Status DataFile::PutBlocks(uint64_t first_block, io::Pieces blocks) {
  for (uint64_t i = 0; i < blocks.size(); ++i) {
    RETURN_IF_ERROR(CheckPut((first_block + i) * kBlockSize, blocks[i].size()));
    if (blocks[i].size() != BlockLength(first_block + i)) {
      return absl::InvalidArgumentError(absl::StrCat("not one block each: ", key_.path));
    }
  }
  if (blocks.empty()) return absl::OkStatus();
  if (!BeginWrite()) return absl::CancelledError("the cached file was evicted");
  absl::Status status = PutMissing(first_block, blocks);
  EndWrite();
  // An entry that holds nothing and gets nothing would only be found in vain.
  if (!status.ok() && map_.present() == 0) {
    tier_->environment().host->Discard(*this, EvictReason::kEmpty);
  }
  return status;
}

absl::Status DataFile::PutMissing(uint64_t first_block, io::Pieces blocks) {
  const uint64_t end = first_block + blocks.size();
  absl::Status first_error;
  // Runs of blocks that nobody has written or writes now, each with one write.
  for (uint64_t index = first_block; index < end;) {
    if (!map_.Claim(index)) {
      ++index;
      continue;
    }
    BlockRange run{index, 1};
    while (run.first + run.count < end && map_.Claim(run.first + run.count)) ++run.count;
    const io::Pieces pieces = blocks.subspan(run.first - first_block, run.count);
    absl::Status status = PutClaimed(run, pieces);
    if (absl::IsResourceExhausted(status) && run.count > 1) {
      // No room for all of them is still room for some.
      for (uint64_t i = 0; i < run.count; ++i) {
        if (!map_.Claim(run.first + i)) continue;
        status = PutClaimed({run.first + i, 1}, pieces.subspan(i, 1));
        if (!status.ok()) break;
      }
    }
    if (!status.ok() && first_error.ok()) first_error = status;
    index = run.first + run.count;
  }
  return first_error;
}

absl::Status DataFile::PutClaimed(BlockRange range, io::Pieces blocks) {
  const uint64_t bytes = BytesOf(range);
  // All blocks are claimed by this call, so nobody else makes the data file.
  const bool at_once = range.count == map_.blocks() && place_.load() == Place::kNowhere;
  absl::Status status = Reserve(bytes);
  if (status.ok()) {
    status = at_once ? WriteWhole(blocks) : WriteBlocks(range, blocks);
    if (!status.ok()) {
      tier_->Release(bytes);
      if (!OutOfDescriptors(status) && !absl::IsDataLoss(status)) tier_->CountDiskFault(status);
    }
  }
  if (!status.ok()) {
    for (uint64_t i = 0; i < range.count; ++i) map_.Unclaim(range.first + i);
    return status;
  }
  TakeReserved(bytes);
  Crcs crcs;
  for (const absl::Span<const char> block : blocks) crcs.push_back(CrcOf(block));
  std::string records;
  // A file that fills bit by bit got its record when it was made.
  if (at_once) AppendFile(ref(), key_.size, key_.path, key_.version, &records);
  AppendBlocks(ref(), range.first, crcs, false, &records);
  // Before anybody can see the blocks: a record of their loss must follow this one.
  tier_->journal().Append(records, 0);
  for (uint64_t i = 0; i < range.count; ++i) map_.Set(range.first + i, crcs[i]);
  MaybeComplete();
  return absl::OkStatus();
}

absl::Status DataFile::Reserve(uint64_t bytes) {
  if (!tier_->usable()) return absl::UnavailableError("the tier is set aside after disk faults");
  FileHost& host = *tier_->environment().host;
  if (MayBeIdle(bytes)) {
    if (tier_->TryReserve(bytes)) return absl::OkStatus();
    if (host.MakeRoom(*tier_, bytes) && tier_->TryReserve(bytes)) return absl::OkStatus();
  }
  tier_->counters().refused.fetch_add(1, std::memory_order_relaxed);
  return absl::ResourceExhaustedError("the tier is full");
}

// The share of files that are not in use allows for `bytes` more of this one.
bool DataFile::MayBeIdle(uint64_t bytes) {
  if (tier_->environment().idle_share >= 1 || in_use()) return true;
  return tier_->environment().host->MakeIdleRoom(*tier_, bytes, *this);
}

void DataFile::TakeReserved(uint64_t bytes) {
  base::MutexLock lock(&mutex_);
  if (evicted()) {
    tier_->Release(bytes);
  } else {
    AddBytes(bytes);
  }
}

void DataFile::AddBytes(uint64_t bytes) {
  bytes_ += bytes;
  if (!counted_in_use_) tier_->AddIdle(bytes);
}

void DataFile::SubtractBytes(uint64_t bytes) {
  bytes_ -= bytes;
  tier_->Release(bytes);
  if (!counted_in_use_) tier_->SubtractIdle(bytes);
}

absl::Status DataFile::WriteBlocks(BlockRange range, io::Pieces blocks) {
  RETURN_IF_ERROR(EnsureMade());
  const absl::StatusOr<std::shared_ptr<Descriptor>> descriptor = Acquire();
  if (!descriptor.ok()) {
    if (base::ErrnoOf(descriptor.status()) != ENOENT) return descriptor.status();
    return Damage({0, map_.blocks()}, "the cache file is gone");
  }
  base::MutexLock writing(&writing_);
  return file_io().WritePieces((*descriptor)->fd(), range.first * kBlockSize, blocks);
}

absl::Status DataFile::WriteWhole(io::Pieces blocks) {
  const std::string name = id_.Name();
  const int partial = source_->partial.get();
  const base::UniqueFd fd(
      openat(partial, name.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return base::ErrnoStatus(errno, "creating a cache file");
  absl::Status status =
      blocks.empty() ? absl::OkStatus() : file_io().WritePieces(fd.get(), 0, blocks);
  if (status.ok() && renameat(partial, name.c_str(), source_->complete.get(), name.c_str()) != 0) {
    status = base::ErrnoStatus(errno, "renaming a cache file");
  }
  if (status.ok()) {
    place_ = Place::kComplete;
  } else {
    unlinkat(partial, name.c_str(), 0);
  }
  return status;
}

absl::Status DataFile::MakeEmpty() {
  if (!BeginWrite()) return absl::CancelledError("the cached file was evicted");
  absl::Status status = WriteWhole({});
  if (status.ok()) {
    MaybeComplete();
    std::string record;
    AppendFile(ref(), key_.size, key_.path, key_.version, &record);
    tier_->journal().Append(record, 0);
  } else {
    tier_->CountDiskFault(status);
  }
  EndWrite();
  return status;
}

absl::Status DataFile::EnsureMade() {
  if (place_.load() != Place::kNowhere) return absl::OkStatus();
  base::MutexLock layout(&tier_->layout_mutex(id_));
  if (place_.load() != Place::kNowhere) return absl::OkStatus();
  const std::string name = id_.Name();
  const base::UniqueFd fd(openat(source_->partial.get(), name.c_str(),
                                 O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return base::ErrnoStatus(errno, "creating a cache file");
  // Sparse, of the final size: a later start tells a truncated file by it.
  if (ftruncate(fd.get(), static_cast<off_t>(key_.size)) != 0) {
    const int error = errno;
    unlinkat(source_->partial.get(), name.c_str(), 0);
    return base::ErrnoStatus(error, "sizing a cache file");
  }
  std::string record;
  AppendFile(ref(), key_.size, key_.path, key_.version, &record);
  tier_->journal().Append(record, 0);
  place_ = Place::kPartial;
  return absl::OkStatus();
}

// REQUIRES: the layout lock.
absl::Status DataFile::Move(Place to) {
  const Place from = place_.load();
  if (from == to) return absl::OkStatus();
  const std::string name = id_.Name();
  if (renameat(directory(from), name.c_str(), directory(to), name.c_str()) != 0) {
    return base::ErrnoStatus(errno, "renaming a cache file");
  }
  place_ = to;
  // The next user opens it with the rights of its new place.
  DetachDescriptor();
  return absl::OkStatus();
}

// REQUIRES: within BeginWrite and EndWrite.
void DataFile::MaybeComplete() {
  if (!map_.full() || map_.any_unverified() || complete()) return;
  base::MutexLock layout(&tier_->layout_mutex(id_));
  if (!map_.full()) return;
  if (const absl::Status moved = Move(Place::kComplete); !moved.ok()) {
    tier_->CountDiskFault(moved);  // Served as a partial file until the next start.
    return;
  }
  base::MutexLock lock(&mutex_);
  // Under the lock that Drop takes after it cleared a block.
  if (evicted() || !map_.full() || complete()) return;
  complete_.store(true, std::memory_order_release);
  tier_->counters().files_complete.fetch_add(1, std::memory_order_relaxed);
}

// --- Descriptors --------------------------------------------------------------------------------

absl::StatusOr<std::shared_ptr<Descriptor>> DataFile::Acquire() {
  // A move between opening and keeping makes the descriptor one of the wrong kind: tried again.
  for (int attempt = 0; attempt < 3; ++attempt) {
    {
      base::MutexLock lock(&mutex_);
      if (descriptor_ != nullptr) {
        descriptor_->MarkUsed();
        return descriptor_;
      }
    }
    bool writable = false;
    absl::StatusOr<base::UniqueFd> fd = OpenFile(&writable);
    if (!fd.ok()) return fd.status();
    auto descriptor = std::make_shared<Descriptor>(*std::move(fd), writable, this);
    {
      base::MutexLock lock(&mutex_);
      if (descriptor_ != nullptr) return descriptor_;
      if (writable != (place_.load() == Place::kPartial)) continue;
      descriptor_ = descriptor;
    }
    DescriptorCache& descriptors = *tier_->environment().descriptors;
    descriptors.Add(descriptor.get());
    bool detached;
    {
      base::MutexLock lock(&mutex_);
      detached = descriptor_ != descriptor;
    }
    // Detached in between, when it was not listed yet. It never comes back.
    if (detached) descriptors.Remove(descriptor.get());
    return descriptor;
  }
  return absl::UnavailableError("the cache file moves all the time");
}

absl::StatusOr<base::UniqueFd> DataFile::OpenFile(bool* writable) {
  const std::string name = id_.Name();
  int error = ENOENT;
  for (int attempt = 0; attempt < 3; ++attempt) {
    const Place place = place_.load();
    if (place == Place::kNowhere) break;
    *writable = place == Place::kPartial;
    const int flags = (*writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW;
    base::UniqueFd fd(openat(directory(place), name.c_str(), flags));
    if (fd.valid()) {
      // Evicted and unlinked by now, the name may have been another file's already; handed over,
      // it may be a successor's, with other holes.
      if (place_.load() == Place::kNowhere || tier_->handed_over() || !HasItsSize(fd.get())) break;
      return fd;
    }
    error = errno;
    if (error == EMFILE || error == ENFILE) {
      tier_->environment().descriptors->Trim();
    } else if (error != ENOENT || place_.load() == place) {
      break;  // ENOENT of another place: it was moved, and is opened there.
    }
  }
  return base::ErrnoStatus(error, "opening a cache file");
}

bool DataFile::HasItsSize(int fd) {
  if (size_checked_.load(std::memory_order_relaxed)) return true;
  struct stat status;
  if (fstat(fd, &status) != 0 || static_cast<uint64_t>(status.st_size) != key_.size) return false;
  size_checked_.store(true, std::memory_order_relaxed);
  return true;
}

void DataFile::CheckSize() {
  if (size_checked_.load(std::memory_order_relaxed) || evicted()) return;
  {
    base::MutexLock layout(&tier_->layout_mutex(id_));
    const Place place = place_.load();
    if (place == Place::kNowhere) return;
    struct stat status;
    if (fstatat(directory(place), id_.Name().c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 &&
        S_ISREG(status.st_mode) && static_cast<uint64_t>(status.st_size) == key_.size) {
      size_checked_.store(true, std::memory_order_relaxed);
      return;
    }
  }
  Damage({0, map_.blocks()}, "the data file is gone or of the wrong size").IgnoreError();
}

void DataFile::DetachDescriptor() {
  std::shared_ptr<Descriptor> detached;
  {
    base::MutexLock lock(&mutex_);
    if (pinned_) return;
    detached = std::move(descriptor_);
  }
  if (detached != nullptr) tier_->environment().descriptors->Remove(detached.get());
}

std::shared_ptr<Descriptor> DataFile::YieldDescriptor(const Descriptor& descriptor) {
  base::MutexLock lock(&mutex_);
  // Copies are made under this lock only, or from a copy: one user means nobody but the cache.
  if (pinned_ || descriptor_.get() != &descriptor || descriptor_.use_count() > 1) return nullptr;
  return std::move(descriptor_);
}

absl::StatusOr<std::shared_ptr<const OpenData>> DataFile::Open() {
  absl::StatusOr<std::shared_ptr<Descriptor>> descriptor = Acquire();
  if (descriptor.ok()) return std::shared_ptr<const OpenData>(*std::move(descriptor));
  return ReadFault({0, map_.blocks()}, descriptor.status());
}

// --- Reading ------------------------------------------------------------------------------------

absl::StatusOr<absl::optional<size_t>> DataFile::ReadNow(uint64_t offset, absl::Span<char> buffer) {
  buffer = Clamp(offset, buffer);
  if (buffer.empty()) return absl::optional<size_t>(0);
  const BlockRange range = BlocksOf(offset, buffer.size());
  if (AnyUnverified(range)) return absl::optional<size_t>();
  RETURN_IF_ERROR(CheckPresent(range));
  absl::StatusOr<std::shared_ptr<Descriptor>> descriptor = Acquire();
  if (!descriptor.ok()) return ReadFault(range, descriptor.status());
  absl::StatusOr<absl::optional<size_t>> got =
      file_io().ReadNow((*descriptor)->fd(), offset, buffer);
  if (got.ok() && (!got->has_value() || **got == buffer.size())) return got;
  const absl::StatusOr<size_t> judged = got.ok() ? JudgeRead(offset, buffer.size(), **got)
                                                 : JudgeRead(offset, buffer.size(), got.status());
  return judged.status();
}

// A chain of reads, one per unverified block, and then the read that was asked for. Owns itself.
struct DataFile::CheckedRead {
  DataFile* file;
  std::shared_ptr<Descriptor> descriptor;
  uint64_t offset;
  absl::Span<char> buffer;
  io::ReadDone done;
  uint64_t next;  // Block.
  uint64_t end;
  std::unique_ptr<char[]> block = std::make_unique<char[]>(kBlockSize);

  void Step() {
    next = file->map_.NextUnverified(next);
    if (next >= end) {
      file->ReadVerified(offset, buffer, std::move(done));
      delete this;
      return;
    }
    const absl::Span<char> into(block.get(), file->BlockLength(next));
    file->file_io().Read(descriptor->fd(), next * kBlockSize, into,
                         [this, into](absl::StatusOr<size_t> got) { Check(into, std::move(got)); });
  }

  void Check(absl::Span<char> into, absl::StatusOr<size_t> got) {
    absl::StatusOr<size_t> judged = file->JudgeRead(next * kBlockSize, into.size(), std::move(got));
    absl::Status status = judged.ok() ? file->CheckBlock(next, into) : std::move(judged).status();
    if (status.ok()) {
      Step();
      return;
    }
    std::move(done)(std::move(status));
    delete this;
  }
};

void DataFile::Read(uint64_t offset, absl::Span<char> buffer, io::ReadDone done) {
  buffer = Clamp(offset, buffer);
  const BlockRange range = BlocksOf(offset, buffer.size());
  if (buffer.empty() || !AnyUnverified(range)) {
    ReadVerified(offset, buffer, std::move(done));
    return;
  }
  absl::StatusOr<std::shared_ptr<Descriptor>> descriptor = Acquire();
  if (!descriptor.ok()) {
    std::move(done)(ReadFault(range, descriptor.status()));
    return;
  }
  if (TakeCheckRequest()) tier_->environment().host->RequestCheck(*this);
  auto* read =
      new CheckedRead{this,        *std::move(descriptor),   offset, buffer, std::move(done),
                      range.first, range.first + range.count};
  read->Step();
}

void DataFile::ReadVerified(uint64_t offset, absl::Span<char> buffer, io::ReadDone done) {
  if (buffer.empty()) {
    std::move(done)(size_t{0});
    return;
  }
  const BlockRange range = BlocksOf(offset, buffer.size());
  if (const absl::Status status = CheckPresent(range); !status.ok()) {
    std::move(done)(status);
    return;
  }
  absl::StatusOr<std::shared_ptr<Descriptor>> descriptor = Acquire();
  if (!descriptor.ok()) {
    std::move(done)(ReadFault(range, descriptor.status()));
    return;
  }
  const int fd = (*descriptor)->fd();
  file_io().Read(fd, offset, buffer,
                 [this, offset, size = buffer.size(), descriptor = *std::move(descriptor),
                  done = std::move(done)](absl::StatusOr<size_t> got) mutable {
                   absl::StatusOr<size_t> judged = JudgeRead(offset, size, std::move(got));
                   descriptor.reset();
                   std::move(done)(std::move(judged));
                 });
}

// Called after the blocks were seen not to be unverified, and before their bytes are read: a block
// that failed its check loses its presence first, then that mark. Verified or written anew, a block
// that is present now is right.
absl::Status DataFile::CheckPresent(BlockRange range) const {
  if (map_.HasAll(range.first, range.count)) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("blocks were dropped: ", key_.path));
}

absl::StatusOr<size_t> DataFile::JudgeRead(uint64_t offset, size_t wanted,
                                           absl::StatusOr<size_t> got) {
  if (got.ok() && *got == wanted) return got;
  const BlockRange range = BlocksOf(offset, wanted);
  if (!got.ok()) return ReadFault(range, got.status());
  return Damage(range, "the cache file is truncated");
}

absl::Status DataFile::ReadFault(BlockRange range, const absl::Status& status) {
  if (evicted()) return status;
  // The process's shortage, not the file's.
  if (OutOfDescriptors(status)) return status;
  if (base::ErrnoOf(status) == ENOENT) return Damage({0, map_.blocks()}, "the cache file is gone");
  tier_->CountDiskFault(status);
  Drop(range);
  return status;
}

absl::Status DataFile::Damage(BlockRange range, absl::string_view what) {
  // Counted by the one who dropped it: a reader and a check may find the same damage.
  if (Drop(range)) tier_->CountDamage(what, id_.Name());
  return absl::DataLossError(absl::StrCat(what, ": ", key_.path));
}

bool DataFile::Drop(BlockRange range) {
  const bool recorded = BeginWrite();
  if (!recorded && evicted()) return false;
  uint64_t freed;
  {
    base::MutexLock layout(&tier_->layout_mutex(id_));
    freed = recorded ? DropUnderLock(range) : ClearBlocks(range);
  }
  if (recorded) {
    EndWrite();
  } else {
    // Handed over: the file is a successor's, but nobody here shall look for the blocks again.
    GiveBack(freed);
  }
  if (map_.present() == 0) tier_->environment().host->Discard(*this, EvictReason::kDamaged);
  return freed > 0;
}

uint64_t DataFile::DropUnderLock(BlockRange range) {
  const uint64_t freed = ClearBlocks(range);
  if (freed == 0) return 0;
  GiveBack(freed);
  std::string record;
  AppendDropped(ref(), range.first, range.count, &record);
  tier_->journal().Append(record, 2 * record.size());
  if (map_.present() > 0) {
    const absl::Status moved = Move(Place::kPartial);
    if (!moved.ok()) tier_->CountDiskFault(moved);
  }
  return freed;
}

uint64_t DataFile::ClearBlocks(BlockRange range) {
  uint64_t freed = 0;
  const uint64_t end = range.first + range.count;
  for (uint64_t index = map_.NextPresent(range.first); index < end;
       index = map_.NextPresent(index + 1)) {
    if (map_.Clear(index)) freed += BlockLength(index);
  }
  return freed;
}

void DataFile::GiveBack(uint64_t freed) {
  base::MutexLock lock(&mutex_);
  if (evicted() || freed == 0) return;  // Given back with the rest.
  SubtractBytes(freed);
  if (complete_.exchange(false)) {
    tier_->counters().files_complete.fetch_sub(1, std::memory_order_relaxed);
  }
}

// --- Lending ------------------------------------------------------------------------------------

absl::optional<uint32_t> DataFile::BlockCrc(uint64_t index) const {
  // In this order, as CheckPresent says why.
  if (index >= map_.blocks() || map_.Unverified(index) || !map_.Has(index)) return absl::nullopt;
  return map_.crc(index);
}

bool DataFile::Recheck(uint64_t index) {
  if (!map_.Has(index)) return false;
  const auto buffer = std::make_unique<char[]>(kBlockSize);
  const absl::Span<char> bytes(buffer.get(), BlockLength(index));
  if (!ReadBlock(index, bytes).ok() || !map_.Has(index)) return false;
  if (CrcOf(bytes) == map_.crc(index)) return true;
  Damage({index, 1}, "a block's checksum is wrong").IgnoreError();
  return false;
}

class DataFile::HeldLease {
 public:
  explicit HeldLease(std::shared_ptr<DataFile> file) : file_(std::move(file)) {
    const absl::Duration until = file_->tier_->environment().clock->Monotonic() + kLeaseTime;
    file_->leased_until_ns_.store(absl::ToInt64Nanoseconds(until), std::memory_order_relaxed);
    file_->leases_.fetch_add(1, std::memory_order_relaxed);
  }
  ~HeldLease() { file_->leases_.fetch_sub(1, std::memory_order_relaxed); }
  HeldLease(const HeldLease&) = delete;
  HeldLease& operator=(const HeldLease&) = delete;

 private:
  const std::shared_ptr<DataFile> file_;
};

std::shared_ptr<const void> DataFile::Lease() {
  return std::make_shared<HeldLease>(shared_from_this());
}

bool DataFile::leased() const {
  return leases_.load(std::memory_order_relaxed) > 0 &&
         absl::ToInt64Nanoseconds(tier_->environment().clock->Monotonic()) <
             leased_until_ns_.load(std::memory_order_relaxed);
}

bool DataFile::in_use() const {
  base::MutexLock lock(&mutex_);
  return counted_in_use_;
}

void DataFile::SetInUse(bool in_use) {
  {
    base::MutexLock lock(&mutex_);
    if (counted_in_use_ == in_use) return;
    counted_in_use_ = in_use;
    if (in_use) {
      tier_->SubtractIdle(bytes_);
    } else {
      tier_->AddIdle(bytes_);
    }
  }
  tier_->Requeue(*this, in_use);
}

// --- Checking and copying -----------------------------------------------------------------------

absl::Status DataFile::CheckBlock(uint64_t index, absl::Span<const char> bytes) {
  if (!map_.Unverified(index)) return absl::OkStatus();  // Another reader was faster.
  const uint32_t crc = map_.crc(index);
  if (CrcOf(bytes) != crc) return Damage({index, 1}, "a block's checksum is wrong");
  // An evicted file is read on by its holders, and nothing of it is recorded any more.
  const bool recorded = BeginWrite();
  {
    // With Drop's lock: whether the block was verified last or dropped last, the journal says so.
    base::MutexLock layout(&tier_->layout_mutex(id_));
    if (map_.MarkVerified(index) && recorded) {
      std::string record;
      AppendBlocks(ref(), index, absl::MakeConstSpan(&crc, 1), false, &record);
      tier_->journal().Append(record, record.size());
    }
  }
  if (recorded) {
    MaybeComplete();
    EndWrite();
  }
  return absl::OkStatus();
}

absl::Status DataFile::ReadBlock(uint64_t index, absl::Span<char> buffer) {
  absl::StatusOr<std::shared_ptr<Descriptor>> descriptor = Acquire();
  if (!descriptor.ok()) return ReadFault({index, 1}, descriptor.status());
  const uint64_t offset = index * kBlockSize;
  absl::StatusOr<size_t> got = io::ReadAndWait(file_io(), (*descriptor)->fd(), offset, buffer);
  return JudgeRead(offset, buffer.size(), std::move(got)).status();
}

void DataFile::CheckAll(const std::atomic<bool>& stop) {
  const auto buffer = std::make_unique<char[]>(kBlockSize);
  for (uint64_t index = map_.NextUnverified(0); index < map_.blocks() && !stop && !evicted();
       index = map_.NextUnverified(index + 1)) {
    const absl::Span<char> bytes(buffer.get(), BlockLength(index));
    // A failure has dropped the block and is counted; the others are checked all the same.
    if (ReadBlock(index, bytes).ok()) CheckBlock(index, bytes).IgnoreError();
  }
}

absl::Status DataFile::CopyTo(DataFile& to, const std::atomic<bool>& stop) {
  const auto buffer = std::make_unique<char[]>(kBlockSize);
  for (uint64_t index = 0; index < map_.blocks(); ++index) {
    if (stop || evicted()) return absl::CancelledError("stopped");
    const absl::Span<char> bytes(buffer.get(), BlockLength(index));
    RETURN_IF_ERROR(ReadBlock(index, bytes));
    if (!map_.Has(index)) return absl::DataLossError("a block was dropped");
    if (CrcOf(bytes) != map_.crc(index)) return Damage({index, 1}, "a block's checksum is wrong");
    RETURN_IF_ERROR(to.Put(index * kBlockSize, bytes));
  }
  return map_.blocks() == 0 ? to.MakeEmpty() : absl::OkStatus();
}

// --- Journal ------------------------------------------------------------------------------------

void DataFile::Encode(SnapshotSink sink) const {
  if (place_.load() == Place::kNowhere || evicted()) return;
  std::string records;
  AppendFile(ref(), key_.size, key_.path, key_.version, &records);
  Crcs crcs;
  for (uint64_t index = map_.NextPresent(0); index < map_.blocks();) {
    const uint64_t first = index;
    const bool unverified = map_.Unverified(first);
    crcs.clear();
    while (index < map_.blocks() && crcs.size() < kBlocksPerRecordMax && map_.Has(index) &&
           map_.Unverified(index) == unverified) {
      crcs.push_back(map_.crc(index++));
    }
    // Nothing: the block was dropped in between.
    AppendBlocks(ref(), first, crcs, unverified, &records);
    sink(records);
    records.clear();
    index = map_.NextPresent(std::max(index, first + 1));
  }
  sink(records);
}

uint64_t DataFile::EncodedSize() const {
  // Headers, fixed fields and padding of the two records, give or take.
  constexpr uint64_t kFixed = 112;
  return kFixed + key_.path.size() + key_.version.size() + map_.present() * sizeof(uint32_t);
}

}  // namespace millrace::tier
