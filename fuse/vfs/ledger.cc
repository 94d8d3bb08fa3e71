#include "fuse/vfs/ledger.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace millrace::vfs {
namespace {

constexpr uint64_t kMagic = 0x726567646c72696d;  // "mirldger".
// Of header, slots and records. Another number is another program's file: nothing is converted.
constexpr uint32_t kLayout = 1;
constexpr uint64_t kUnit = 32;
constexpr uint64_t kHeaderBytes = 4096;
// A record has at most a name of 255 bytes and a version of 65,535.
constexpr uint32_t kRecordUnitsMax = 1 << 12;
constexpr uint32_t kLookupsMax = std::numeric_limits<uint32_t>::max();

enum RecordState : uint32_t { kDead = 0, kLive = 1, kListed = 2 };
enum SlotState : uint32_t { kFree = 0, kCached = 1, kPassthrough = 2, kBacking = 3 };

absl::Status Damaged(absl::string_view what, uint64_t at) {
  return absl::DataLossError(
      absl::StrCat("the saved state of the mount is damaged: ", what, " at ", at));
}

absl::Status OtherLayout(uint32_t layout) {
  return absl::FailedPreconditionError(absl::StrCat("the saved state of the mount has layout ",
                                                    layout, ", this version reads ", kLayout));
}

}  // namespace

struct Ledger::Header {
  std::atomic<uint64_t> magic;  // Written last: without it nobody began.
  uint32_t layout;
  uint32_t slots_max;
  uint64_t bytes;
  std::atomic<uint32_t> generation;
  std::atomic<uint32_t> profile;  // Profile + 1; 0 while there is none.
  std::atomic<uint32_t> slots_end;
  std::atomic<uint64_t> units_end;
};

struct Ledger::Record {
  std::atomic<uint32_t> units;  // Never changes once it is there.
  std::atomic<uint32_t> state;
  uint64_t id;
  uint64_t parent;
  uint64_t size;
  std::atomic<int64_t> mtime_ns;
  std::atomic<uint32_t> lookups;
  uint16_t version_size;
  uint8_t name_size;
  uint8_t flags;
  char text[];  // Name, then version.
};

struct Ledger::SlotRecord {
  std::atomic<uint32_t> state;
  std::atomic<int32_t> backing_id;
  std::atomic<uint64_t> node;
  std::atomic<uint64_t> unique;
  uint64_t unused;
};

Ledger::Header* Ledger::header() const { return reinterpret_cast<Header*>(memory_); }

Ledger::Record* Ledger::RecordAt(uint64_t unit) const {
  return reinterpret_cast<Record*>(memory_ + kHeaderBytes + header()->slots_max * kUnit +
                                   unit * kUnit);
}

Ledger::SlotRecord* Ledger::SlotOf(Slot slot) const {
  return reinterpret_cast<SlotRecord*>(memory_ + kHeaderBytes + (uint64_t{slot} - 1) * kUnit);
}

uint64_t Ledger::units_max() const { return (size_ - kHeaderBytes) / kUnit - header()->slots_max; }

absl::StatusOr<std::unique_ptr<Ledger>> Ledger::Open(base::UniqueFd memfd) {
  return Open(std::move(memfd), Size());
}

absl::StatusOr<std::unique_ptr<Ledger>> Ledger::Open(base::UniqueFd memfd, const Size& size) {
  static_assert(sizeof(Header) <= kHeaderBytes && sizeof(SlotRecord) == kUnit);
  static_assert(sizeof(Record) == 48 && std::atomic<uint64_t>::is_always_lock_free);
  struct stat st;
  if (fstat(memfd.get(), &st) != 0) return base::ErrnoStatus(errno, "fstat of the saved state");
  if (st.st_size == 0) {
    if (ftruncate(memfd.get(), static_cast<off_t>(size.bytes)) != 0) {
      return base::ErrnoStatus(errno, "ftruncate of the saved state");
    }
    st.st_size = static_cast<off_t>(size.bytes);
  }
  const uint64_t bytes = static_cast<uint64_t>(st.st_size);
  if (bytes < kHeaderBytes + kUnit || bytes / kUnit > std::numeric_limits<Index>::max()) {
    return Damaged("no such size", bytes);
  }
  void* const memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memfd.get(), 0);
  if (memory == MAP_FAILED) return base::ErrnoStatus(errno, "mmap of the saved state");
  std::unique_ptr<Ledger> ledger(new Ledger(std::move(memfd), static_cast<char*>(memory), bytes));
  Header* const header = ledger->header();
  if (header->magic.load(std::memory_order_acquire) == 0 && bytes == size.bytes) {
    ledger->Begin(size.slots);
  }
  RETURN_IF_ERROR(ledger->CheckHeader());
  RETURN_IF_ERROR(ledger->ScanRecords());
  RETURN_IF_ERROR(ledger->ScanSlots());
  ledger->generation_ = header->generation.fetch_add(1, std::memory_order_relaxed) + 1;
  return ledger;
}

absl::Status Ledger::CheckLayout(int memfd) {
  uint64_t magic = 0;
  uint32_t layout = 0;
  if (pread(memfd, &magic, sizeof(magic), offsetof(Header, magic)) != sizeof(magic) ||
      pread(memfd, &layout, sizeof(layout), offsetof(Header, layout)) != sizeof(layout) ||
      magic == 0) {
    return absl::OkStatus();  // Nobody has begun it.
  }
  if (magic != kMagic) return Damaged("no header", 0);
  return layout == kLayout ? absl::OkStatus() : OtherLayout(layout);
}

Ledger::~Ledger() { munmap(memory_, size_); }

void Ledger::Begin(uint32_t slots) {
  Header* const to = header();
  to->layout = kLayout;
  to->slots_max = slots;
  to->bytes = size_;
  to->generation.store(0, std::memory_order_relaxed);
  to->profile.store(0, std::memory_order_relaxed);
  to->slots_end.store(0, std::memory_order_relaxed);
  to->units_end.store(0, std::memory_order_relaxed);
  to->magic.store(kMagic, std::memory_order_release);
}

absl::Status Ledger::CheckHeader() const {
  const Header& from = *header();
  if (from.magic.load(std::memory_order_acquire) != kMagic) return Damaged("no header", 0);
  if (from.layout != kLayout) return OtherLayout(from.layout);
  if (from.bytes != size_) return Damaged("another size", size_);
  if (from.slots_max > (size_ - kHeaderBytes) / kUnit ||
      from.slots_max > std::numeric_limits<Slot>::max() / 2) {
    return Damaged("more slots than there is room", from.slots_max);
  }
  if (from.slots_end.load(std::memory_order_acquire) > from.slots_max) {
    return Damaged("slots end", from.slots_end.load(std::memory_order_relaxed));
  }
  if (from.units_end.load(std::memory_order_acquire) > units_max()) {
    return Damaged("records end", from.units_end.load(std::memory_order_relaxed));
  }
  // Who writes anything has counted itself before.
  const uint32_t generation = from.generation.load(std::memory_order_relaxed);
  const bool used = from.slots_end.load(std::memory_order_relaxed) > 0 ||
                    from.units_end.load(std::memory_order_relaxed) > 0;
  if ((generation == 0 && used) || generation == std::numeric_limits<uint32_t>::max()) {
    return Damaged("generation", generation);
  }
  if (from.profile.load(std::memory_order_relaxed) > static_cast<uint32_t>(Profile::kAuto)) {
    return Damaged("no such profile", from.profile.load(std::memory_order_relaxed));
  }
  return absl::OkStatus();
}

absl::Status Ledger::ScanRecords() {
  const base::MutexLock lock(&mutex_);
  const uint64_t end = header()->units_end.load(std::memory_order_acquire);
  for (uint64_t at = 0; at < end;) {
    // The last record may begin in the last unit: its fields are looked at when its length is
    // known.
    const Record& record = *RecordAt(at);
    const uint32_t units = record.units.load(std::memory_order_relaxed);
    if (units < 2 || units > kRecordUnitsMax || at + units > end) {
      return Damaged("a record's length", at);
    }
    const uint32_t state = record.state.load(std::memory_order_acquire);
    if (state == kDead) {
      free_records_[units].push_back(static_cast<Index>(at + 1));
    } else if ((state & ~kListed) != kLive) {
      return Damaged("a record's state", at);
    } else if (sizeof(Record) + record.name_size + record.version_size > units * kUnit) {
      return Damaged("a record's names", at);
    } else {
      ++nodes_;
    }
    at += units;
  }
  return absl::OkStatus();
}

absl::Status Ledger::ScanSlots() {
  const base::MutexLock lock(&mutex_);
  const Slot end = header()->slots_end.load(std::memory_order_acquire);
  for (Slot slot = 1; slot <= end; ++slot) {
    const SlotRecord& record = *SlotOf(slot);
    const uint32_t state = record.state.load(std::memory_order_acquire);
    if (state > kBacking) return Damaged("a handle's state", slot);
    if (state == kBacking && record.backing_id.load(std::memory_order_relaxed) <= 0) {
      return Damaged("a backing id", slot);
    }
    if (state == kFree) {
      free_slots_.push_back(slot);
    } else {
      ++slots_;
    }
  }
  return absl::OkStatus();
}

Profile Ledger::profile() const {
  const uint32_t profile = header()->profile.load(std::memory_order_acquire);
  return profile == 0 ? Profile::kAuto : static_cast<Profile>(profile - 1);
}

void Ledger::SetProfile(Profile profile) {
  const uint32_t number = profile == Profile::kAuto ? 0 : static_cast<uint32_t>(profile) + 1;
  header()->profile.store(number, std::memory_order_release);
}

void Ledger::Detach() {
  detached_.store(true, std::memory_order_release);
  // A private mapping of the same file in its place: pages not written so far are read from it,
  // what is written is a copy. Threads that are in the middle of a write need not be stopped.
  void* const memory = mmap(memory_, size_, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, memfd_.get(), 0);
  if (memory == MAP_FAILED) {
    base::Log(base::Severity::kError, "the saved state could not be let go of",
              {{"cause", base::ErrnoStatus(errno, "mmap").ToString()}});
  }
}

// ---- Nodes ----

Ledger::Index Ledger::Add(const NodeRecord& node) {
  const uint64_t bytes = sizeof(Record) + node.name.size() + node.version.size();
  const uint32_t units = static_cast<uint32_t>((bytes + kUnit - 1) / kUnit);
  Index index = 0;
  {
    const base::MutexLock lock(&mutex_);
    const auto free = free_records_.find(units);
    if (free != free_records_.end() && !free->second.empty()) {
      index = free->second.back();
      free->second.pop_back();
    } else {
      const uint64_t at = header()->units_end.load(std::memory_order_relaxed);
      if (at + units > units_max()) {
        CountLost("node");
        return 0;
      }
      RecordAt(at)->units.store(units, std::memory_order_relaxed);
      header()->units_end.store(at + units, std::memory_order_release);
      index = static_cast<Index>(at + 1);
    }
    ++nodes_;
  }
  Record* const record = RecordOf(index);
  record->id = node.id;
  record->parent = node.parent;
  record->size = node.size;
  record->mtime_ns.store(node.mtime_ns, std::memory_order_relaxed);
  record->lookups.store(0, std::memory_order_relaxed);
  record->version_size = static_cast<uint16_t>(node.version.size());
  record->name_size = static_cast<uint8_t>(node.name.size());
  record->flags = node.flags;
  if (!node.name.empty()) std::memcpy(record->text, node.name.data(), node.name.size());
  if (!node.version.empty()) {
    std::memcpy(record->text + node.name.size(), node.version.data(), node.version.size());
  }
  record->state.store(kLive, std::memory_order_release);
  return index;
}

void Ledger::AddLookups(Index record, uint64_t count) {
  RecordOf(record)->lookups.fetch_add(static_cast<uint32_t>(count), std::memory_order_relaxed);
}

void Ledger::TakeLookups(Index record, uint64_t count) {
  RecordOf(record)->lookups.fetch_sub(static_cast<uint32_t>(count), std::memory_order_relaxed);
}

void Ledger::SetMtime(Index record, int64_t mtime_ns) {
  RecordOf(record)->mtime_ns.store(mtime_ns, std::memory_order_relaxed);
}

void Ledger::MarkListed(Index record) {
  std::atomic<uint32_t>& state = RecordOf(record)->state;
  if ((state.load(std::memory_order_relaxed) & kListed) == 0) {
    state.fetch_or(kListed, std::memory_order_relaxed);
  }
}

void Ledger::Remove(Index index) {
  Record* const record = RecordOf(index);
  record->state.store(kDead, std::memory_order_release);
  const base::MutexLock lock(&mutex_);
  free_records_[record->units.load(std::memory_order_relaxed)].push_back(index);
  --nodes_;
}

void Ledger::ForEachNode(absl::FunctionRef<void(const Restored&)> visit) const {
  const uint64_t end = header()->units_end.load(std::memory_order_acquire);
  for (uint64_t at = 0; at < end;) {
    const Record& record = *RecordAt(at);
    const Index index = static_cast<Index>(at + 1);
    if (record.state.load(std::memory_order_acquire) != kDead) visit(At(index));
    at += record.units.load(std::memory_order_relaxed);
  }
}

Ledger::Restored Ledger::At(Index index) const {
  const Record& record = *RecordOf(index);
  Restored restored;
  restored.record = index;
  restored.lookups = record.lookups.load(std::memory_order_relaxed);
  restored.listed = (record.state.load(std::memory_order_relaxed) & kListed) != 0;
  restored.node = {
      .id = record.id,
      .parent = record.parent,
      .size = record.size,
      .mtime_ns = record.mtime_ns.load(std::memory_order_relaxed),
      .flags = record.flags,
      .name = absl::string_view(record.text, record.name_size),
      .version = absl::string_view(record.text + record.name_size, record.version_size)};
  return restored;
}

// ---- Handles and backing files ----

Ledger::Slot Ledger::TakeSlot() {
  const base::MutexLock lock(&mutex_);
  Slot slot = 0;
  if (!free_slots_.empty()) {
    slot = free_slots_.back();
    free_slots_.pop_back();
  } else {
    const Slot end = header()->slots_end.load(std::memory_order_relaxed);
    if (end == header()->slots_max) return 0;
    header()->slots_end.store(end + 1, std::memory_order_release);
    slot = end + 1;
  }
  ++slots_;
  return slot;
}

void Ledger::FreeSlot(Slot slot) {
  SlotOf(slot)->state.store(kFree, std::memory_order_release);
  const base::MutexLock lock(&mutex_);
  free_slots_.push_back(slot);
  --slots_;
}

Ledger::Slot Ledger::AddHandle(const Handle& handle) {
  const Slot slot = TakeSlot();
  if (slot == 0) {
    const base::MutexLock lock(&mutex_);
    CountLost("handle");
    const Slot room = std::numeric_limits<Slot>::max() / 2 - header()->slots_max;
    return header()->slots_max + 1 + beyond_++ % room;
  }
  SlotRecord* const record = SlotOf(slot);
  record->node.store(handle.node, std::memory_order_relaxed);
  record->unique.store(handle.unique, std::memory_order_relaxed);
  record->state.store(handle.passthrough ? kPassthrough : kCached, std::memory_order_release);
  return slot;
}

std::pair<Ledger::Slot, Ledger::Handle> Ledger::FindHandle(uint64_t node, uint64_t unique) const {
  const Slot end = header()->slots_end.load(std::memory_order_acquire);
  for (Slot slot = 1; slot <= end; ++slot) {
    const SlotRecord& record = *SlotOf(slot);
    const uint32_t state = record.state.load(std::memory_order_acquire);
    if ((state == kCached || state == kPassthrough) &&
        record.unique.load(std::memory_order_relaxed) == unique &&
        record.node.load(std::memory_order_relaxed) == node) {
      return {slot, {.node = node, .passthrough = state == kPassthrough, .unique = unique}};
    }
  }
  return {};
}

bool Ledger::RemoveHandle(Slot slot, uint64_t node, uint32_t unique) {
  if (slot > header()->slots_max) return true;  // One that found no room.
  if (slot == 0 || slot > header()->slots_end.load(std::memory_order_acquire)) return false;
  SlotRecord* const record = SlotOf(slot);
  const uint32_t state = record->state.load(std::memory_order_acquire);
  if ((state != kCached && state != kPassthrough) ||
      record->node.load(std::memory_order_relaxed) != node ||
      static_cast<uint32_t>(record->unique.load(std::memory_order_relaxed)) != unique) {
    return false;
  }
  FreeSlot(slot);
  return true;
}

void Ledger::ForEachHandle(absl::FunctionRef<void(Slot, const Handle&)> visit) const {
  const Slot end = header()->slots_end.load(std::memory_order_acquire);
  for (Slot slot = 1; slot <= end; ++slot) {
    const SlotRecord& record = *SlotOf(slot);
    const uint32_t state = record.state.load(std::memory_order_acquire);
    if (state != kCached && state != kPassthrough) continue;
    visit(slot, {.node = record.node.load(std::memory_order_relaxed),
                 .passthrough = state == kPassthrough,
                 .unique = record.unique.load(std::memory_order_relaxed)});
  }
}

Ledger::Slot Ledger::AddBacking(uint64_t node, int backing_id) {
  const Slot slot = TakeSlot();
  if (slot == 0) return 0;
  SlotRecord* const record = SlotOf(slot);
  record->node.store(node, std::memory_order_relaxed);
  record->backing_id.store(backing_id, std::memory_order_relaxed);
  record->state.store(kBacking, std::memory_order_release);
  return slot;
}

void Ledger::RemoveBacking(Slot slot) { FreeSlot(slot); }

void Ledger::ForEachBacking(absl::FunctionRef<void(Slot, uint64_t, int)> visit) const {
  const Slot end = header()->slots_end.load(std::memory_order_acquire);
  for (Slot slot = 1; slot <= end; ++slot) {
    const SlotRecord& record = *SlotOf(slot);
    if (record.state.load(std::memory_order_acquire) != kBacking) continue;
    visit(slot, record.node.load(std::memory_order_relaxed),
          record.backing_id.load(std::memory_order_relaxed));
  }
}

std::vector<std::pair<uint64_t, int>> Ledger::BackingIds() const {
  std::vector<std::pair<uint64_t, int>> ids;
  ForEachBacking([&](Slot, uint64_t node, int id) { ids.emplace_back(node, id); });
  return ids;
}

void Ledger::CountLost(absl::string_view what) {
  if (lost_++ > 0) return;
  base::Log(base::Severity::kWarning,
            "no room to save more of the mount's state; after a crash some files will be stale",
            {{"first", what}, {"nodes", nodes_}});
}

Ledger::Stats Ledger::stats() const {
  const base::MutexLock lock(&mutex_);
  return {.nodes = nodes_,
          .slots = slots_,
          .bytes = kHeaderBytes + kUnit * (header()->slots_end.load(std::memory_order_relaxed) +
                                           header()->units_end.load(std::memory_order_relaxed)),
          .lost = lost_};
}

}  // namespace millrace::vfs
