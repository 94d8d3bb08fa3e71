#include "fuse/vfs/file.h"

#include <utility>

#include "common/base/log.h"

namespace millrace::vfs {
namespace {

// Handles whose reads are told apart in one file; more share the pattern of handle 0.
constexpr size_t kPatternsMax = 256;

}  // namespace

File::File(FileRef ref, std::shared_ptr<fetch::Object> object, BackingFiles* backing,
           Ledger* ledger, const Restored& restored)
    : ref_(std::move(ref)),
      object_(std::move(object)),
      backing_(backing),
      ledger_(ledger),
      opens_cached_(restored.opens_cached),
      opens_passthrough_(restored.opens_passthrough),
      opened_before_(restored.opens_cached + restored.opens_passthrough > 0),
      backing_id_(restored.backing_id),
      backing_slot_(restored.backing_slot) {}

File::~File() {
  base::MutexLock lock(&mutex_);
  Unregister();
}

bool File::GiveBack() {
  base::MutexLock lock(&mutex_);
  if (opens_cached_ + opens_passthrough_ > 0) return false;
  Unregister();
  return true;
}

void File::Unregister() {
  // A successor goes on with the id of one that was handed over.
  if (backing_id_ == 0 || (ledger_ != nullptr && ledger_->detached())) return;
  if (backing_slot_ != 0) ledger_->RemoveBacking(backing_slot_);
  backing_->Close(ref_.id, backing_id_);
  backing_id_ = 0;
  backing_slot_ = 0;
}

void File::Register() {
  const absl::StatusOr<std::shared_ptr<const tier::OpenData>> data = object_->OpenComplete();
  if (!data.ok()) return;
  const absl::StatusOr<int> id = backing_->Open(ref_.id, (*data)->fd());
  if (!id.ok()) return;
  // An id that a successor would not know must not be open anywhere: it would take another one
  // for this node, and the kernel refuses that.
  if (ledger_ != nullptr) {
    backing_slot_ = ledger_->AddBacking(ref_.id, *id);
    if (backing_slot_ == 0) return backing_->Close(ref_.id, *id);
  }
  backing_id_ = *id;
}

File::Opened File::Open(PageCache page_cache) {
  object_->LookForComplete();
  base::MutexLock lock(&mutex_);
  const bool may_pass = backing_ != nullptr && opens_cached_ == 0;
  // The one call under this lock that leaves the process: two opens at once must not register two
  // backing files for one inode.
  if (may_pass && backing_id_ == 0) Register();
  if (may_pass && backing_id_ > 0) {
    ++opens_passthrough_;
    return {OpenMode::kPassthrough, backing_id_};
  }
  ++opens_cached_;
  const bool first = !std::exchange(opened_before_, true);
  const bool worth_it =
      page_cache == PageCache::kOnReturn ? !first : page_cache == PageCache::kUsed;
  // A complete file is only here while an older open lasts: the kernel may as well keep it.
  const bool direct = !worth_it && !object_->Complete();
  return {direct ? OpenMode::kDirect : OpenMode::kCached, 0};
}

int File::backing_id() const {
  base::MutexLock lock(&mutex_);
  return backing_id_;
}

bool File::Close(OpenMode mode, uint64_t handle) {
  base::MutexLock lock(&mutex_);
  uint64_t& opens = mode == OpenMode::kPassthrough ? opens_passthrough_ : opens_cached_;
  if (opens > 0) --opens;
  patterns_.erase(handle);
  return opens_cached_ + opens_passthrough_ == 0;
}

bool File::IsOpen() const {
  base::MutexLock lock(&mutex_);
  return opens_cached_ + opens_passthrough_ > 0;
}

File::Outlook File::OnRead(uint64_t handle, uint64_t offset, uint64_t size, uint64_t window_max) {
  base::MutexLock lock(&mutex_);
  auto found = patterns_.find(handle);
  if (found == patterns_.end()) {
    if (patterns_.size() >= kPatternsMax) handle = 0;
    found = patterns_.try_emplace(handle).first;
  }
  ReadPattern& pattern = found->second;
  Outlook outlook;
  outlook.ahead = pattern.OnRead(offset, size, ref_.size, window_max);
  outlook.random = pattern.random();
  return outlook;
}

bool File::KnownComplete() {
  if (complete_.load(std::memory_order_relaxed)) return true;
  if (!object_->Complete()) return false;
  complete_.store(true, std::memory_order_relaxed);
  return true;
}

std::shared_ptr<File> FileTable::Find(NodeId node) {
  Shard& shard = ShardOf(node);
  base::MutexLock lock(&shard.mutex);
  const auto found = shard.files.find(node);
  if (found == shard.files.end()) return nullptr;
  shard.uses.splice(shard.uses.begin(), shard.uses, found->second.use);
  return found->second.file;
}

std::shared_ptr<File> FileTable::Insert(NodeId node, std::shared_ptr<File> file) {
  Shard& shard = ShardOf(node);
  std::vector<std::pair<NodeId, std::shared_ptr<File>>> unused;
  {
    base::MutexLock lock(&shard.mutex);
    const auto [at, inserted] = shard.files.try_emplace(node);
    if (!inserted) return at->second.file;
    shard.uses.push_front(node);
    at->second = {file, shard.uses.begin()};
    // Open files are passed over; a few steps per insertion keep the table at its bound.
    auto oldest = shard.uses.end();
    const size_t room = idle_max_ / kShards;
    for (size_t step = 0; step < 4 && shard.files.size() > room + unused.size(); ++step) {
      --oldest;
      if (*oldest == node) break;
      const std::shared_ptr<File>& candidate = shard.files.find(*oldest)->second.file;
      if (!candidate->IsOpen()) unused.emplace_back(*oldest, candidate);
    }
  }
  for (const auto& [id, candidate] : unused) Retire(id, candidate);
  return file;
}

void FileTable::Drop(NodeId node) {
  if (const std::shared_ptr<File> file = Find(node); file != nullptr) Retire(node, file);
}

void FileTable::DropIf(absl::FunctionRef<bool(const File&)> match) {
  for (Shard& shard : shards_) {
    std::vector<std::pair<NodeId, std::shared_ptr<File>>> unused;
    {
      base::MutexLock lock(&shard.mutex);
      for (const auto& [node, slot] : shard.files) {
        if (!slot.file->IsOpen() && match(*slot.file)) unused.emplace_back(node, slot.file);
      }
    }
    for (const auto& [node, file] : unused) Retire(node, file);
  }
}

// The id is given back, which is I/O and so needs the lock to be free, while the file is still the
// one that everybody finds; who opens it meanwhile registers anew, through the same file. It goes
// when it has no id and the table has the last reference but the caller's: the next one to ask
// makes another.
void FileTable::Retire(NodeId node, const std::shared_ptr<File>& file) {
  constexpr long kTableAndCaller = 2;
  if (!file->GiveBack()) return;
  Shard& shard = ShardOf(node);
  base::MutexLock lock(&shard.mutex);
  const auto found = shard.files.find(node);
  if (found == shard.files.end() || found->second.file != file ||
      file.use_count() > kTableAndCaller || file->IsOpen() || file->backing_id() != 0) {
    return;
  }
  shard.uses.erase(found->second.use);
  shard.files.erase(found);
}

}  // namespace millrace::vfs
