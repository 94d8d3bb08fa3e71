// One listing of a directory: its nodes in the store's order, and an index by name. Grows page by
// page, never shrinks, and never moves an entry: a position is what a directory stream's offset
// means. A refresh that finds changes makes a new Listing, and open streams keep the old one.
//
// Threads. Guarded by its Directory's mutex until finished() is true, constant from then on.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "fuse/vfs/name_rules.h"
#include "fuse/vfs/node_table.h"

namespace millrace::vfs {

// From a name to a position. Open addressing over 8 bytes a slot, which hold the hash, so that a
// growing index of millions of names touches no node.
class NameIndex {
 public:
  static constexpr uint32_t kNone = 0xffffffff;

  // The position with this hash that `matches`, or kNone.
  template <typename Matches>
  uint32_t Find(uint32_t hash, const Matches& matches) const {
    if (slots_.empty()) return kNone;
    for (size_t i = Start(hash);; i = i + 1 == slots_.size() ? 0 : i + 1) {
      const Slot& slot = slots_[i];
      if (slot.position == kNone) return kNone;
      if (slot.hash == hash && matches(slot.position)) return slot.position;
    }
  }

  // REQUIRES: no such name is there yet; position < kNone.
  void Insert(uint32_t hash, uint32_t position);

  // Gives back what growing left over.
  void Shrink();

 private:
  struct Slot {
    uint32_t hash = 0;
    uint32_t position = kNone;
  };

  size_t Start(uint32_t hash) const { return (uint64_t{hash} * slots_.size()) >> 32; }
  void Rebuild(size_t slots);

  std::vector<Slot> slots_;
  size_t used_ = 0;
};

class Listing {
 public:
  explicit Listing(std::shared_ptr<NodeTable> nodes) : nodes_(std::move(nodes)) {}
  ~Listing();
  Listing(const Listing&) = delete;
  Listing& operator=(const Listing&) = delete;

  enum class Added {
    kNew,
    kHidden,        // A duplicate, or a file under a directory's name.
    kReplacedFile,  // A directory took the place of the file that was listed before it.
  };

  // Takes over one pin of `node`, in every case.
  Added Add(Node* node);

  // Counts a name that was left out before it had a node.
  void CountHidden(Hidden reason, absl::string_view name) { hidden_.Count(reason, name); }

  // No entry comes after this: with OK the listing is complete.
  void Finish(absl::Status status);

  static constexpr size_t kNotThere = NameIndex::kNone;
  size_t PositionOf(absl::string_view name) const;
  // Null when it is not there (yet).
  Node* Find(absl::string_view name) const;
  // A node stays alive as long as the listing, also one that was replaced.
  Node* at(size_t position) const { return entries_[position]; }
  size_t size() const { return entries_.size(); }
  uint64_t files() const { return files_; }
  const HiddenCounts& hidden() const { return hidden_; }
  bool finished() const { return finished_; }
  const absl::Status& status() const { return status_; }
  size_t pages() const { return pages_; }
  void CountPage() { ++pages_; }
  // Files that gave way to directories, as their names were shown for a while.
  const std::vector<Node*>& replaced() const { return replaced_; }

 private:
  const std::shared_ptr<NodeTable> nodes_;
  std::vector<Node*> entries_;  // Pinned.
  NameIndex index_;
  std::vector<Node*> replaced_;  // Pinned.
  HiddenCounts hidden_;
  uint64_t files_ = 0;
  size_t pages_ = 0;
  bool finished_ = false;
  absl::Status status_;
};

}  // namespace millrace::vfs
