// What StoreTree takes over from a predecessor: its nodes, and the directories that the kernel
// knows.
//
// A restored directory has no listing, but its names that the kernel holds are known, each with the
// node it was told: they are answered from there, also while the store is away. It is listed as
// soon as there is room, and where the listing differs, the kernel is told.
#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "common/base/log.h"
#include "fuse/vfs/store_tree.h"

namespace millrace::vfs {
namespace {

// Listings of restored directories on their way. Few: applications wait for others meanwhile, and
// what they ask for goes first.
constexpr size_t kRestoringMax = 4;

struct Saved {
  Ledger::Index record = 0;
  Node* node = nullptr;  // Pinned.
  bool visited = false;  // And not made: part of a loop, below one that is missing, or no node.
};

}  // namespace

std::vector<Node*> StoreTree::RestoreNodes() {
  Ledger* const ledger = options_.ledger;
  // Only directories are looked for by their ids; the many files are taken as they come.
  absl::flat_hash_map<NodeId, Saved> saved;
  std::vector<Ledger::Index> files;
  std::vector<Ledger::Index> bad;
  files.reserve(ledger->stats().nodes);
  ledger->ForEachNode([&](const Ledger::Restored& restored) {
    if (!NodeTable::IsDirectory(restored.node)) {
      files.push_back(restored.record);
    } else if (!saved.try_emplace(restored.node.id, Saved{restored.record}).second) {
      bad.push_back(restored.record);
    }
  });
  const auto saved_of = [&](NodeId id) -> Saved* {
    const auto found = id == kRootNode ? saved.end() : saved.find(id);
    return found == saved.end() ? nullptr : &found->second;
  };
  std::vector<Node*> nodes;
  nodes.reserve(saved.size() + files.size());
  std::vector<Saved*> chain;
  for (auto& [id, first] : saved) {
    // From the first ancestor that is there down to this one.
    chain.clear();
    Node* parent = nullptr;
    for (Saved* at = &first; at != nullptr && !at->visited;) {
      at->visited = true;
      chain.push_back(at);
      const NodeId parent_id = ledger->At(at->record).node.parent;
      at = saved_of(parent_id);
      parent = at != nullptr ? at->node : parent_id == kRootNode ? root_ : nullptr;
    }
    for (auto at = chain.rbegin(); at != chain.rend() && parent != nullptr; ++at) {
      parent = (*at)->node = nodes_->Restore(ledger->At((*at)->record), parent);
      if (parent != nullptr) nodes.push_back(parent);
    }
  }
  for (const auto& [id, one] : saved) {
    if (one.node == nullptr) bad.push_back(one.record);
  }
  for (const Ledger::Index record : files) {
    const Ledger::Restored file = ledger->At(record);
    const Saved* const directory = saved_of(file.node.parent);
    Node* const parent = directory != nullptr            ? directory->node
                         : file.node.parent == kRootNode ? root_
                                                         : nullptr;
    Node* const node = parent == nullptr ? nullptr : nodes_->Restore(file, parent);
    if (node == nullptr) {
      bad.push_back(record);
    } else {
      nodes.push_back(node);
    }
  }
  if (!bad.empty()) {
    base::Log(base::Severity::kError, "saved nodes make no tree; their files are stale",
              {{"nodes", bad.size()}, {"of", bad.size() + nodes.size()}});
  }
  for (const Ledger::Index record : bad) ledger->Remove(record);
  return nodes;
}

void StoreTree::Restore() {
  const std::vector<Node*> nodes = RestoreNodes();
  absl::flat_hash_map<const Node*, std::shared_ptr<Directory>> directories;
  const int64_t now_ns = absl::ToInt64Nanoseconds(Now());
  // The Directory of a node that the kernel knows; null for the root over named sources.
  const auto directory_of = [&](Node* node) {
    std::shared_ptr<Directory>& directory = directories[node];
    if (directory != nullptr) return directory.get();
    if (node == root_ && !root_->is_source_root()) return static_cast<Directory*>(nullptr);
    const Node* source_root = nullptr;
    std::string path = PathOf(node, &source_root);
    nodes_->Pin(node);
    directory = std::make_shared<Directory>(nodes_, node, source_root->source(), std::move(path));
    directory->last_used_ns = now_ns;
    const base::MutexLock lock(&directory->mutex);
    directory->told = std::make_unique<Listing>(nodes_);
    return directory.get();
  };
  directory_of(root_);
  for (Node* const node : nodes) {
    const bool held = node->lookups() > 0;
    if (held && nodes_->Listed(node)) directory_of(node);
    Directory* const parent = held ? directory_of(node->parent()) : nullptr;
    if (parent == nullptr) {
      nodes_->Unpin(node);
      continue;
    }
    // A place in the listing keeps the node, or a second node of its name loses it.
    nodes_->Pin(node);
    const base::MutexLock lock(&parent->mutex);
    if (parent->told->Add(node) != Listing::Added::kNew) {
      parent->early.insert_or_assign(node->name(), kToldUnknown);
    }
    nodes_->Unpin(node);
  }

  const base::MutexLock lock(&refresh_mutex_);
  for (auto& [node, directory] : directories) {
    if (directory == nullptr) continue;
    {
      const base::MutexLock directory_lock(&directory->mutex);
      directory->told->Finish(absl::OkStatus());
    }
    directories_.Insert(directory);
    // With this the promise is that nothing is listed again by itself.
    if (options_.refresh != absl::InfiniteDuration()) unlisted_.push_back(std::move(directory));
  }
  base::Log(base::Severity::kInfo, "nodes taken over",
            {{"nodes", nodes.size()}, {"directories", directories.size()}});
}

void StoreTree::ListRestored() {
  if (invalidator_.load() == nullptr) return;
  // Each is tried once at most: those that fail come again behind the others, a while later.
  size_t tries = 0;
  {
    const base::MutexLock lock(&refresh_mutex_);
    tries = unlisted_.size();
  }
  for (; tries > 0 && !stopping_; --tries) {
    std::shared_ptr<Directory> directory;
    {
      const base::MutexLock lock(&refresh_mutex_);
      if (restoring_ >= kRestoringMax || unlisted_.empty()) return;
      directory = std::move(unlisted_.front());
      unlisted_.pop_front();
      ++restoring_;
    }
    std::shared_ptr<ListJob> job;
    bool later = false;
    {
      const base::MutexLock lock(&directory->mutex);
      // No job: it failed a moment ago, or is being listed for somebody, who may see it fail.
      later = directory->told != nullptr;
      if (later && EnsureListing(directory, &job).ok() && job != nullptr) job->counted = true;
    }
    if (job != nullptr) {
      Submit(std::move(job));
      continue;
    }
    const base::MutexLock lock(&refresh_mutex_);
    --restoring_;
    if (later) unlisted_.push_back(std::move(directory));
  }
}

void StoreTree::EndRestored(const std::shared_ptr<Directory>& directory, bool again) {
  {
    const base::MutexLock lock(&refresh_mutex_);
    --restoring_;
    if (again) unlisted_.push_back(directory);
    // The next one takes the place of one that is done; a store that fails is left alone for a
    // moment.
    refresh_wanted_ |= !again && !unlisted_.empty();
  }
  refresh_changed_.NotifyAll();
}

}  // namespace millrace::vfs
