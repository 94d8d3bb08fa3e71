#include "fuse/vfs/listing.h"

#include <utility>

#include "absl/hash/hash.h"

namespace millrace::vfs {
namespace {

// Seeded per process: a store's names cannot be chosen to collide.
uint32_t HashOf(absl::string_view name) {
  const uint64_t hash = absl::Hash<absl::string_view>()(name);
  return static_cast<uint32_t>(hash ^ hash >> 32);
}

}  // namespace

void NameIndex::Insert(uint32_t hash, uint32_t position) {
  // Full at 4/5: there a name that is absent takes about 13 neighbouring slots, two cache lines.
  if ((used_ + 1) * 5 > slots_.size() * 4) Rebuild(slots_.size() + slots_.size() / 2 + 16);
  size_t i = Start(hash);
  while (slots_[i].position != kNone) i = i + 1 == slots_.size() ? 0 : i + 1;
  slots_[i] = {hash, position};
  ++used_;
}

void NameIndex::Shrink() {
  const size_t enough = used_ + used_ / 4 + 2;
  if (slots_.size() > enough + enough / 16) Rebuild(enough);
}

void NameIndex::Rebuild(size_t slots) {
  std::vector<Slot> old(slots);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.position == kNone) continue;
    size_t i = Start(slot.hash);
    while (slots_[i].position != kNone) i = i + 1 == slots_.size() ? 0 : i + 1;
    slots_[i] = slot;
  }
}

Listing::~Listing() {
  for (Node* const node : entries_) nodes_->Unpin(node);
  for (Node* const node : replaced_) nodes_->Unpin(node);
}

Listing::Added Listing::Add(Node* node) {
  const size_t position = PositionOf(node->name());
  if (position == kNotThere) {
    index_.Insert(HashOf(node->name()), static_cast<uint32_t>(entries_.size()));
    entries_.push_back(node);
    if (!node->is_directory()) ++files_;
    return Added::kNew;
  }
  Node* const first = entries_[position];
  if (first->is_directory() == node->is_directory()) {
    hidden_.Count(Hidden::kDuplicate, node->name());
    nodes_->Unpin(node);
    return Added::kHidden;
  }
  hidden_.Count(Hidden::kFileAndDirectory, node->name());
  if (first->is_directory()) {
    nodes_->Unpin(node);
    return Added::kHidden;
  }
  replaced_.push_back(first);
  entries_[position] = node;
  --files_;
  return Added::kReplacedFile;
}

void Listing::Finish(absl::Status status) {
  status_ = std::move(status);
  finished_ = true;
  index_.Shrink();
  entries_.shrink_to_fit();
  replaced_.shrink_to_fit();
}

size_t Listing::PositionOf(absl::string_view name) const {
  return index_.Find(HashOf(name),
                     [&](uint32_t position) { return entries_[position]->name() == name; });
}

Node* Listing::Find(absl::string_view name) const {
  const size_t position = PositionOf(name);
  return position == kNotThere ? nullptr : entries_[position];
}

}  // namespace millrace::vfs
