#include "cache/fetch/object.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/container/inlined_vector.h"
#include "cache/fetch/flight.h"
#include "cache/fetch/scattered_read.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"

namespace millrace::fetch {
namespace {

// Where ReadNow puts bytes: one buffer a thread, so memory is bounded by the number of threads.
absl::Span<char> ThreadBuffer(uint64_t size) {
  thread_local const std::unique_ptr<char[]> buffer(new char[Object::kReadMax]);
  return {buffer.get(), size};
}

// A cache file may lose a block under a reader (bad checksum, bad sector): it is then fetched
// again, and the fetch hands it over in memory. This many rounds mean that nothing helps.
constexpr int kReadAttempts = 8;

// How long a failed fetch is not tried again. The kernel sends a failed read a second time, page by
// page, and for each reader in turn: each would wait for the store's whole deadline.
constexpr absl::Duration kFailureKept = absl::Seconds(1);

// Lets one thread wait for one event.
class Latch {
 public:
  void Open() {
    base::MutexLock lock(&mutex_);
    open_ = true;
    condition_.NotifyAll();
  }
  void Wait() {
    base::MutexLock lock(&mutex_);
    while (!open_) condition_.Wait(&mutex_);
  }

 private:
  base::Mutex mutex_;
  base::CondVar condition_;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

// A read, or a prefetch that somebody waits for, until its last block is there.
class Object::PendingRead {
 public:
  PendingRead(uint64_t offset, uint64_t size, ReadCallback done)
      : offset(offset),
        size(size),
        first(offset / kBlockSize),
        last((offset + size - 1) / kBlockSize),
        blocks(last - first + 1),
        done(std::move(done)) {}
  PendingRead(uint64_t offset, uint64_t size, FillCallback filled)
      : offset(offset),
        size(size),
        first(offset / kBlockSize),
        last((offset + size - 1) / kBlockSize),
        filled(std::move(filled)) {}
  PendingRead(uint64_t offset, uint64_t size, BlockRequest request, BlockCallback done)
      : offset(offset),
        size(size),
        first(request.index),
        last(request.index),
        priority(request.priority),
        fetch(request.fetch),
        given_up(std::move(request.given_up)),
        blocks(1),
        block_done(std::move(done)) {}

  bool wants_data() const { return !blocks.empty(); }
  bool GivenUpNow() const {
    return given_up != nullptr && given_up->load(std::memory_order_relaxed);
  }
  // Answers who reads.
  void Answer(absl::Status error) {
    if (block_done) {
      std::move(block_done)(std::move(error));
    } else {
      std::move(done)(std::move(error));
    }
  }
  bool AllInMemory() const {
    return std::all_of(blocks.begin(), blocks.end(),
                       [](const BlockRef& block) { return block != nullptr; });
  }

  void Fail(const absl::Status& error) {
    base::MutexLock lock(&mutex);
    if (status.ok()) status = error;
  }
  absl::Status TakeStatus() {
    base::MutexLock lock(&mutex);
    return std::exchange(status, absl::OkStatus());
  }
  // True for the caller whose part was the last.
  bool PartDone() { return remaining.fetch_sub(1, std::memory_order_acq_rel) == 1; }

  const uint64_t offset;
  const uint64_t size;
  const uint64_t first;
  const uint64_t last;
  const Priority priority = Priority::kDemand;
  const bool fetch = true;  // Else it takes what is here or on its way.
  GivenUp given_up;
  std::atomic<uint64_t> remaining{0};
  // Slot i is written once, by whoever brings block first + i, before its PartDone.
  std::vector<BlockRef> blocks;
  bool fetched = false;  // Some of the blocks were fetched for this read, or ahead of it.
  int attempts = 0;
  // One of these.
  ReadCallback done;
  FillCallback filled;
  BlockCallback block_done;

 private:
  base::Mutex mutex;
  absl::Status status ABSL_GUARDED_BY(mutex);
};

Object::Object(tier::FileKey key, std::shared_ptr<store::Store> store, Shared* shared)
    : key_(std::move(key)), store_(std::move(store)), shared_(shared) {
  std::shared_ptr<tier::CachedFile> file;
  if (key_.size > 0) file = shared_->cache->FindOrAdmit(key_);
  base::MutexLock lock(&mutex_);
  SwapCached(file);
  looked_at_ = shared_->clock->Monotonic();
}

Object::~Object() = default;

uint64_t Object::BlockBytes(uint64_t index) const {
  return std::min(kBlockSize, key_.size - index * kBlockSize);
}

std::shared_ptr<tier::CachedFile> Object::cached() const {
  base::MutexLock lock(&mutex_);
  return cached_;
}

std::shared_ptr<tier::CachedFile> Object::CachedForFill() {
  {
    base::MutexLock lock(&mutex_);
    if (cached_ != nullptr && !cached_->evicted()) return cached_;
  }
  if (!shared_->cache->HasRoomFor(key_)) return cached();
  std::shared_ptr<tier::CachedFile> admitted = shared_->cache->FindOrAdmit(key_);
  base::MutexLock lock(&mutex_);
  if (admitted != nullptr) SwapCached(admitted);
  return cached_;
}

void Object::SwapCached(std::shared_ptr<tier::CachedFile>& file) {
  cached_.swap(file);
  origin_.store(cached_ != nullptr && cached_->borrowed() ? Origin::kShortCircuit : Origin::kLocal,
                std::memory_order_relaxed);
}

void Object::LookForComplete() {
  {
    base::MutexLock lock(&mutex_);
    const absl::Duration now = shared_->clock->Monotonic();
    if (key_.size == 0 || (cached_ != nullptr && cached_->complete() && !cached_->evicted()) ||
        now - looked_at_ < kLookAgain) {
      return;
    }
    looked_at_ = now;
  }
  std::shared_ptr<tier::CachedFile> found = shared_->cache->Find(key_);
  if (found == nullptr || !found->complete()) return;
  base::MutexLock lock(&mutex_);
  SwapCached(found);
  ForgetBlocks();
}

bool Object::Complete() {
  const std::shared_ptr<tier::CachedFile> file = cached();
  return file != nullptr && file->complete();
}

absl::StatusOr<std::shared_ptr<const tier::OpenData>> Object::OpenComplete() {
  const std::shared_ptr<tier::CachedFile> file = cached();
  if (file == nullptr || !file->complete()) return absl::NotFoundError("not complete");
  return file->Open();
}

std::shared_ptr<const tier::OpenData> Object::OpenHit() {
  if (unread_count_.load(std::memory_order_relaxed) > 0) return nullptr;
  const absl::StatusOr<std::shared_ptr<const tier::OpenData>> data = OpenComplete();
  return data.ok() ? *data : nullptr;
}

bool Object::Evicted() const {
  base::MutexLock lock(&mutex_);
  return cached_ != nullptr && cached_->evicted();
}

bool Object::Uncached() const {
  base::MutexLock lock(&mutex_);
  return cached_ == nullptr;
}

bool Object::InMemoryTier() const {
  base::MutexLock lock(&mutex_);
  return cached_ != nullptr && cached_->medium() == tier::Medium::kMem;
}

uint64_t Object::PresentBytes() const {
  base::MutexLock lock(&mutex_);
  uint64_t present = 0;
  for (uint64_t index = 0; index < BlockCount(); ++index) {
    const auto in_memory = blocks_.find(index);
    if ((cached_ != nullptr && cached_->HasBlock(index)) ||
        (in_memory != blocks_.end() && in_memory->second.data != nullptr)) {
      present += BlockBytes(index);
    }
  }
  return present;
}

uint64_t Object::CachedBytes(uint64_t offset, uint64_t size) const {
  const std::shared_ptr<tier::CachedFile> file = cached();
  // What was evicted can still be read here, and is in the cache no more.
  if (file == nullptr || file->evicted()) return 0;
  return tier::PresentBytes(*file, offset, size);
}

void Object::Read(uint64_t offset, uint64_t size, ReadCallback done) {
  if (offset >= key_.size || size == 0) {
    std::move(done)(ReadResult());
    return;
  }
  size = std::min({size, key_.size - offset, kReadMax});
  const bool unread = TakeUnread(offset / kBlockSize, (offset + size - 1) / kBlockSize);
  // The common case costs no allocation: everything is in the cache and in the page cache. What
  // was fetched ahead is still in memory, and costs less from there.
  if (const std::shared_ptr<tier::CachedFile> file = cached();
      !unread && file != nullptr && file->Has(offset, size)) {
    const absl::Span<char> buffer = ThreadBuffer(size);
    const absl::StatusOr<absl::optional<size_t>> got = file->ReadNow(offset, buffer);
    if (got.ok() && got->has_value() && **got == size) {
      ReadResult result;
      result.pieces = {buffer};
      result.size = size;
      result.origin = origin();
      std::move(done)(std::move(result));
      return;
    }
  }
  auto read = std::make_shared<PendingRead>(offset, size, std::move(done));
  read->fetched = unread;
  StartRead(std::move(read));
}

void Object::ReadScattered(uint64_t offset, uint64_t size, ReadCallback done) {
  const uint64_t unit = store_->range_unit();
  if (unit < kBlockSize && key_.size > kWholeMax && size > 0 && offset < key_.size) {
    size = std::min(size, key_.size - offset);
    const uint64_t begin = offset / unit * unit;
    const uint64_t end = std::min((offset + size + unit - 1) / unit * unit, key_.size);
    if (end - begin <= kBlockSize && MayBypass(begin / kBlockSize, (end - 1) / kBlockSize)) {
      shared_->queue->Submit(std::make_shared<ScatteredRead>(
                                 shared_from_this(), ScatteredRead::Range{begin, end - begin},
                                 ScatteredRead::Range{offset, size}, std::move(done)),
                             Priority::kDemand);
      return;
    }
  }
  Read(offset, size, std::move(done));
}

bool Object::MayBypass(uint64_t first, uint64_t last) {
  if (stale_.load(std::memory_order_relaxed) || shared_->cache->HasRoomFor(key_)) {
    return false;
  }
  base::MutexLock lock(&mutex_);
  if ((cached_ != nullptr && !cached_->evicted()) || FailedJustNow()) return false;
  for (uint64_t index = first; index <= last; ++index) {
    if (blocks_.contains(index)) return false;
  }
  return true;
}

bool Object::ReadToEnd(const PendingRead& read, uint64_t index) const {
  return read.wants_data() && !shared_->keeps_read &&
         read.offset + read.size >= index * kBlockSize + BlockBytes(index);
}

void Object::NoteLeft(uint64_t index) {
  left_.resize(kLeftMax);
  left_[index % kLeftMax] = {index, ++left_count_};
}

uint64_t Object::Mark() const {
  base::MutexLock lock(&mutex_);
  return left_count_;
}

void Object::ReadAhead(uint64_t offset, uint64_t size, uint64_t mark) {
  const uint64_t end = offset + size;
  {
    base::MutexLock lock(&mutex_);
    while (offset < end && !left_.empty()) {
      const uint64_t index = offset / kBlockSize;
      const Left& left = left_[index % kLeftMax];
      if (left.index != index || left.number <= mark) break;
      offset = std::min(end, (index + 1) * kBlockSize);
    }
  }
  if (offset < end) Prefetch(offset, end - offset, Priority::kReadAhead);
}

store::GetRequest Object::Request(uint64_t offset, uint64_t size, Priority priority) const {
  store::GetRequest request;
  request.path = key_.path;
  request.offset = offset;
  request.length = size;
  request.version = key_.version;
  request.file_size = key_.size;
  request.urgency = static_cast<uint8_t>(priority);
  return request;
}

bool Object::TakeUnread(uint64_t first, uint64_t last) {
  if (unread_count_.load(std::memory_order_relaxed) == 0) return false;
  base::MutexLock lock(&mutex_);
  bool any = false;
  for (uint64_t index = first; index <= last; ++index) any |= unread_.erase(index) > 0;
  unread_count_.store(unread_.size(), std::memory_order_relaxed);
  return any;
}

void Object::StartRead(std::shared_ptr<PendingRead> read) {
  std::shared_ptr<tier::CachedFile> file = cached();
  if (read->fetch && (file == nullptr || !file->Has(read->offset, read->size))) {
    file = CachedForFill();
  }
  read->remaining.store(1, std::memory_order_relaxed);  // This function's own part.
  Plan plan;
  {
    base::MutexLock lock(&mutex_);
    plan = PlanRange(read->first, read->last, read->priority, read, file.get());
  }
  Launch(std::move(plan), read->priority);
  if (read->PartDone()) FinishRead(std::move(read));
}

Object::Plan Object::PlanRange(uint64_t first, uint64_t last, Priority priority,
                               const std::shared_ptr<PendingRead>& read,
                               const tier::CachedFile* cached) {
  Plan plan;
  std::vector<uint64_t> missing;
  const auto wait = [&](uint64_t index, BlockState& state) {
    // A fetch of the whole object brings more blocks than were asked for.
    if (read == nullptr || index < read->first || index > read->last) return;
    state.waiters.push_back(read);
    read->remaining.fetch_add(1, std::memory_order_relaxed);
    read->fetched = true;
  };
  for (uint64_t index = first; index <= last; ++index) {
    const auto found = blocks_.find(index);
    if (found == blocks_.end() ||
        (found->second.data == nullptr &&
         (found->second.flight == nullptr || found->second.flight->Abandoned()))) {
      if (cached == nullptr || !cached->HasBlock(index)) missing.push_back(index);
      continue;
    }
    BlockState& state = found->second;
    if (state.data != nullptr) {
      if (read == nullptr || !read->wants_data()) continue;
      read->blocks[index - read->first] = state.data;
      // Memory kept it for this first reader; the cache has it for all others.
      const bool left = ReadToEnd(*read, index);
      if (left) NoteLeft(index);
      if (left || (cached != nullptr && cached->HasBlock(index))) blocks_.erase(found);
      continue;
    }
    if (priority == Priority::kDemand &&
        (plan.promote.empty() || plan.promote.back() != state.flight)) {
      plan.promote.push_back(state.flight);
    }
    wait(index, state);
  }
  if (missing.empty()) return plan;
  if (read != nullptr && !read->fetch) {
    read->Fail(absl::NotFoundError("neither here nor on its way"));
    return plan;
  }
  if (stale_.load(std::memory_order_relaxed)) {
    // What is here of this version stays readable; the rest is gone for ever.
    if (read != nullptr) {
      read->Fail(base::WithErrno(absl::FailedPreconditionError("the object changed in the store"),
                                 ESTALE));
    }
    return plan;
  }
  if (FailedJustNow()) {
    if (read != nullptr) read->Fail(failure_);
    return plan;
  }
  if (key_.size <= kWholeMax && (first > 0 || last + 1 < BlockCount())) {
    // Fetch the rest of a small object in the same GET.
    missing.clear();
    for (uint64_t index = 0; index < BlockCount(); ++index) {
      const auto found = blocks_.find(index);
      const bool coming = found != blocks_.end() &&
                          (found->second.data != nullptr ||
                           (found->second.flight != nullptr && !found->second.flight->Abandoned()));
      if (!coming && (cached == nullptr || !cached->HasBlock(index))) missing.push_back(index);
    }
  }
  constexpr uint64_t kFlightBlocks = kFlightSize / kBlockSize;
  for (size_t i = 0; i < missing.size();) {
    size_t end = i + 1;
    while (end < missing.size() && missing[end] == missing[end - 1] + 1 &&
           (priority == Priority::kDemand || missing[end] % kFlightBlocks != 0)) {
      ++end;
    }
    auto flight = std::make_shared<Flight>(shared_from_this(), missing[i], end - i, priority);
    for (; i < end; ++i) {
      BlockState& state = blocks_[missing[i]];
      state.flight = flight;
      wait(missing[i], state);
    }
    plan.start.push_back(std::move(flight));
  }
  return plan;
}

void Object::Launch(Plan plan, Priority priority) {
  for (std::shared_ptr<Flight>& flight : plan.start) {
    shared_->queue->Submit(std::move(flight), priority);
  }
  for (std::shared_ptr<Flight>& flight : plan.promote) shared_->queue->Promote(std::move(flight));
}

void Object::ReadBlock(BlockRequest request, BlockCallback done) {
  const uint64_t index = request.index;
  TakeUnread(index, index);
  StartRead(std::make_shared<PendingRead>(index * kBlockSize, BlockBytes(index), std::move(request),
                                          std::move(done)));
}

void Object::Prefetch(uint64_t offset, uint64_t size, Priority priority, FillCallback done,
                      GivenUp given_up) {
  size = offset < key_.size ? std::min(size, key_.size - offset) : 0;
  if (size == 0) {
    if (done) std::move(done)(absl::OkStatus());
    return;
  }
  const std::shared_ptr<tier::CachedFile> file = CachedForFill();
  std::shared_ptr<PendingRead> fill;
  if (given_up != nullptr && !done) done = [](const absl::Status&) {};
  if (done) {
    fill = std::make_shared<PendingRead>(offset, size, std::move(done));
    fill->given_up = std::move(given_up);
    fill->remaining.store(1, std::memory_order_relaxed);
  }
  Plan plan;
  {
    base::MutexLock lock(&mutex_);
    plan = PlanRange(offset / kBlockSize, (offset + size - 1) / kBlockSize, priority, fill,
                     file.get());
  }
  Launch(std::move(plan), priority);
  if (fill != nullptr && fill->PartDone()) FinishRead(std::move(fill));
}

void Object::CancelPrefetch() {
  base::MutexLock lock(&mutex_);
  std::vector<Flight*> wanted;
  for (const auto& [index, state] : blocks_) {
    const bool awaited = std::any_of(state.waiters.begin(), state.waiters.end(),
                                     [](const auto& read) { return !read->GivenUpNow(); });
    if (state.flight != nullptr && awaited) wanted.push_back(state.flight.get());
  }
  for (const auto& [index, state] : blocks_) {
    if (state.flight != nullptr &&
        std::find(wanted.begin(), wanted.end(), state.flight.get()) == wanted.end()) {
      state.flight->Abandon();
    }
  }
  if (!shared_->keeps_read) ForgetBlocks();
}

void Object::ForgetBlocks() {
  for (auto it = blocks_.begin(); it != blocks_.end();) {
    const auto block = it++;
    if (block->second.data != nullptr) blocks_.erase(block);
  }
  unread_.clear();
  unread_count_.store(0, std::memory_order_relaxed);
}

void Object::OnBlock(std::shared_ptr<Block> block, Priority priority, Arrived* arrived) {
  const uint64_t index = arrived->first + arrived->blocks.size();
  std::vector<std::shared_ptr<PendingRead>> waiters;
  {
    base::MutexLock lock(&mutex_);
    BlockState& state = blocks_[index];
    state.flight = nullptr;
    state.data = block;
    failure_ = absl::OkStatus();
    waiters.swap(state.waiters);
    const bool awaited = std::any_of(waiters.begin(), waiters.end(),
                                     [](const auto& read) { return read->wants_data(); });
    if (!awaited && priority != Priority::kBulk && shared_->keeps_unread) {
      unread_.insert(index);
      unread_count_.store(unread_.size(), std::memory_order_relaxed);
    }
    if (std::any_of(waiters.begin(), waiters.end(),
                    [&](const auto& read) { return ReadToEnd(*read, index); })) {
      NoteLeft(index);
      blocks_.erase(index);
    }
  }
  // Readers first: what they wait for must not wait for the disk. Who loads the cache wants it to
  // be there.
  for (std::shared_ptr<PendingRead>& read : waiters) {
    if (!read->wants_data()) {
      arrived->fills.push_back(std::move(read));
      continue;
    }
    read->blocks[index - read->first] = block;
    if (read->PartDone()) FinishRead(std::move(read));
  }
  arrived->blocks.push_back(std::move(block));
}

void Object::Keep(Arrived arrived) {
  if (arrived.blocks.empty()) return;
  const std::shared_ptr<tier::CachedFile> file = cached();
  if (file != nullptr && !file->evicted()) {
    absl::InlinedVector<absl::Span<const char>, 16> pieces;
    for (const std::shared_ptr<Block>& block : arrived.blocks) {
      pieces.push_back(absl::MakeConstSpan(block->data, block->size));
    }
    // What it does not take is counted there, and stays in memory here.
    file->PutBlocks(arrived.first, pieces).IgnoreError();
  }
  struct InMemory {
    uint64_t index;
    bool cached;
  };
  absl::InlinedVector<InMemory, 16> in_memory;
  {
    base::MutexLock lock(&mutex_);
    for (uint64_t i = 0; i < arrived.blocks.size(); ++i) {
      const uint64_t index = arrived.first + i;
      // Fetched ahead: the reader it was fetched for takes it from memory, which saves reading the
      // cache file again (13 % of the processor time of a cold sequential read).
      const bool kept = file != nullptr && !file->evicted() && file->HasBlock(index);
      const auto found = blocks_.find(index);
      if (found == blocks_.end() || found->second.data != arrived.blocks[i]) continue;
      if (!kept || unread_.contains(index)) {
        in_memory.push_back({index, kept});
      } else {
        blocks_.erase(found);
      }
    }
  }
  for (const InMemory& block : in_memory) {
    shared_->memory->Add(weak_from_this(), block.index, block.cached);
  }
  for (std::shared_ptr<PendingRead>& fill : arrived.fills) {
    if (fill->PartDone()) FinishRead(std::move(fill));
  }
}

bool Object::FailedJustNow() const {
  return !failure_.ok() && shared_->clock->Monotonic() - failed_at_ < kFailureKept;
}

absl::Status Object::KeepFailure(uint64_t offset, const absl::Status& status) {
  // Whatever the store did wrong, the reader did not: only a refusal has its own number.
  const bool refused = absl::IsPermissionDenied(status) || absl::IsUnauthenticated(status);
  const absl::Status error = refused ? status : base::WithErrno(status, EIO);
  {
    base::MutexLock lock(&mutex_);
    const bool known = FailedJustNow();
    failure_ = error;
    failed_at_ = shared_->clock->Monotonic();
    if (known) return error;  // Of several fetches that end together one line tells it all.
  }
  base::Log(base::Severity::kError, "fetch failed",
            {{"source", key_.source},
             {"path", key_.path},
             {"offset", offset},
             {"cause", status.ToString()}});
  return error;
}

absl::Status Object::Explain(uint64_t offset, const absl::Status& status) {
  if (absl::IsFailedPrecondition(status) || absl::IsNotFound(status)) {
    if (!stale_.exchange(true)) {
      shared_->stale_objects.fetch_add(1);
      base::Log(base::Severity::kWarning, "object changed under an open file",
                {{"source", key_.source},
                 {"path", key_.path},
                 {"version", key_.version},
                 {"cause", status.message()}});
    }
    return base::WithErrno(status, ESTALE);
  }
  if (absl::IsCancelled(status)) return status;
  shared_->store_errors.fetch_add(1);
  return KeepFailure(offset, status);
}

void Object::OnFlightEnd(const Flight* flight, uint64_t next, const absl::Status& status) {
  const absl::Status error = Explain(next * kBlockSize, status);
  std::vector<std::shared_ptr<PendingRead>> waiters;
  {
    base::MutexLock lock(&mutex_);
    for (uint64_t index = next; index <= flight->last_block(); ++index) {
      const auto found = blocks_.find(index);
      if (found == blocks_.end() || found->second.flight.get() != flight) continue;
      for (std::shared_ptr<PendingRead>& read : found->second.waiters) {
        waiters.push_back(std::move(read));
      }
      blocks_.erase(found);
    }
  }
  for (std::shared_ptr<PendingRead>& read : waiters) {
    read->Fail(error);
    if (read->PartDone()) FinishRead(std::move(read));
  }
}

void Object::FinishRead(std::shared_ptr<PendingRead> read) {
  const absl::Status status = read->TakeStatus();
  if (!read->wants_data()) {
    std::move(read->filled)(status);
    return;
  }
  if (!status.ok()) {
    read->Answer(status);
    return;
  }
  if (!read->AllInMemory()) {
    ReadFromTier(std::move(read));
    return;
  }
  if (read->block_done) {
    std::move(read->block_done)(std::move(read->blocks.front()));
    return;
  }
  ReadResult result;
  result.size = read->size;
  result.origin = OriginOf(*read);
  result.pieces.reserve(read->blocks.size());
  uint64_t at = read->offset;
  const uint64_t end = read->offset + read->size;
  for (const BlockRef& block : read->blocks) {
    const uint64_t from = at % kBlockSize;
    const uint64_t count = std::min(end - at, block->size - from);
    result.pieces.push_back({block->data + from, count});
    at += count;
  }
  std::move(read->done)(std::move(result));
}

void Object::ReadFromTier(std::shared_ptr<PendingRead> read) {
  const std::shared_ptr<tier::CachedFile> file = cached();
  if (++read->attempts > kReadAttempts || file == nullptr) {
    read->Answer(
        base::WithErrno(absl::DataLossError("the cache lost the same block again and again"), EIO));
    return;
  }
  std::vector<size_t> slots;
  for (size_t slot = 0; slot < read->blocks.size(); ++slot) {
    if (read->blocks[slot] != nullptr) continue;
    if (!file->HasBlock(read->first + slot)) {
      // Evicted and admitted anew since the plan was made: this file has other blocks.
      StartRead(std::move(read));
      return;
    }
    slots.push_back(slot);
  }
  if (!shared_->pool->TryReserve(slots.size(), /*urgent=*/true)) {
    // No memory for buffers: this thread reads into its own, one request after the other. From
    // the thread that completes reads it must not wait, so a repeated round takes from the heap.
    if (read->attempts == 1 && !read->block_done) {
      ReadBlocking(*file, std::move(read));
      return;
    }
    read->remaining.store(slots.size(), std::memory_order_relaxed);
    for (const size_t slot : slots) {
      ReadSlot(file, read, slot,
               std::shared_ptr<Block>(new Block{new char[kBlockSize], 0}, [](Block* owned) {
                 delete[] owned->data;
                 delete owned;
               }));
    }
    return;
  }
  read->remaining.store(slots.size(), std::memory_order_relaxed);
  for (const size_t slot : slots) ReadSlot(file, read, slot, shared_->pool->Acquire());
}

void Object::ReadSlot(const std::shared_ptr<tier::CachedFile>& file,
                      const std::shared_ptr<PendingRead>& read, size_t slot,
                      std::shared_ptr<Block> block) {
  const uint64_t index = read->first + slot;
  const absl::Span<char> buffer(block->data, BlockBytes(index));
  auto finish = [self = shared_from_this(), read, file, slot, block = std::move(block),
                 want = buffer.size()](absl::StatusOr<size_t> got) mutable {
    if (got.ok() && *got == want) {
      block->size = want;
      read->blocks[slot] = std::move(block);
    } else {
      self->shared_->cache_errors.fetch_add(1);
    }
    if (!read->PartDone()) return;
    // A block that is still missing starts another round: it is fetched again.
    if (read->AllInMemory()) {
      self->FinishRead(std::move(read));
    } else {
      self->StartRead(std::move(read));
    }
  };
  // Mostly the block was written a moment ago and is still in the page cache.
  const absl::StatusOr<absl::optional<size_t>> now = file->ReadNow(index * kBlockSize, buffer);
  if (now.ok() && now->has_value()) {
    finish(**now);
  } else {
    file->Read(index * kBlockSize, buffer, std::move(finish));
  }
}

void Object::ReadBlocking(tier::CachedFile& file, std::shared_ptr<PendingRead> read) {
  const absl::Span<char> buffer = ThreadBuffer(read->size);
  uint64_t at = read->offset;
  for (const BlockRef& block : read->blocks) {
    const uint64_t index = at / kBlockSize;
    const uint64_t from = at % kBlockSize;
    const uint64_t count = std::min(read->offset + read->size - at, BlockBytes(index) - from);
    const absl::Span<char> part = buffer.subspan(at - read->offset, count);
    at += count;
    if (block != nullptr) {
      std::memcpy(part.data(), block->data + from, count);
      continue;
    }
    Latch latch;
    bool whole = false;
    file.Read(at - count, part, [&](absl::StatusOr<size_t> got) {
      whole = got.ok() && *got == count;
      latch.Open();
    });
    latch.Wait();
    if (!whole) {
      shared_->cache_errors.fetch_add(1);
      StartRead(std::move(read));
      return;
    }
  }
  ReadResult result;
  result.pieces = {buffer};
  result.size = read->size;
  result.origin = OriginOf(*read);
  std::move(read->done)(std::move(result));
}

Origin Object::OriginOf(const PendingRead& read) const {
  Origin farthest = origin();
  for (const BlockRef& block : read.blocks) {
    // Without a cache it was fetched for this reader or another one, and is gone after it.
    const bool counts = read.fetched || !shared_->keeps_read;
    if (counts && block != nullptr) farthest = std::max(farthest, block->origin);
  }
  return farthest;
}

void Object::DropFromMemory(uint64_t index) {
  base::MutexLock lock(&mutex_);
  const auto found = blocks_.find(index);
  if (found != blocks_.end() && found->second.data != nullptr) blocks_.erase(found);
}

void MemoryCache::Add(std::weak_ptr<Object> object, uint64_t index, bool cached) {
  bool full;
  {
    base::MutexLock lock(&mutex_);
    (cached ? cached_ : uncached_).push_back({std::move(object), index});
    full =
        cached_.size() + uncached_.size() > blocks_max_ || cached_.size() > kCachedMax / kBlockSize;
  }
  if (full) DropOldest();
}

bool MemoryCache::DropOldest() {
  Kept oldest;
  {
    base::MutexLock lock(&mutex_);
    std::deque<Kept>& kept = cached_.empty() ? uncached_ : cached_;
    if (kept.empty()) return false;
    oldest = std::move(kept.front());
    kept.pop_front();
  }
  if (const std::shared_ptr<Object> object = oldest.object.lock()) {
    object->DropFromMemory(oldest.index);
  }
  return true;
}

}  // namespace millrace::fetch
