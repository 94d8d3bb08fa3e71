// Walk and Siblings of StoreTree: on top of its other methods, for warming and look-ahead.
#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"
#include "fuse/vfs/store_tree.h"

namespace millrace::vfs {
namespace {

// Deeper than any key of a store has components worth the name; a loop of links or of index pages
// that contain each other ends here.
constexpr size_t kDepthMax = 512;
constexpr size_t kBatch = 256;

// A value that a callback delivers to a blocked caller.
template <typename T>
class Blocking {
 public:
  void Set(T value) {
    const base::MutexLock lock(&mutex_);
    value_ = std::move(value);
    changed_.NotifyAll();
  }
  T Take() {
    const base::MutexLock lock(&mutex_);
    while (!value_.has_value()) changed_.Wait(&mutex_);
    return *std::move(value_);
  }

 private:
  base::Mutex mutex_;
  base::CondVar changed_;
  std::optional<T> value_;
};

// A lookup held while the walk needs its node.
class HeldNode {
 public:
  HeldNode(Tree* tree, Attributes attributes) : tree_(tree), attributes_(attributes) {}
  ~HeldNode() {
    if (attributes_.id != kRootNode) tree_->Forget(attributes_.id, 1);
  }
  HeldNode(const HeldNode&) = delete;
  HeldNode& operator=(const HeldNode&) = delete;
  const Attributes& attributes() const { return attributes_; }

 private:
  Tree* const tree_;
  const Attributes attributes_;
};

absl::StatusOr<std::unique_ptr<HeldNode>> LookupBlocking(Tree* tree, NodeId parent,
                                                         absl::string_view name) {
  Blocking<absl::StatusOr<Attributes>> answer;
  tree->Lookup(parent, name,
               [&](absl::StatusOr<Attributes> found) { answer.Set(std::move(found)); });
  absl::StatusOr<Attributes> found = answer.Take();
  if (!found.ok()) return found.status();
  return std::make_unique<HeldNode>(tree, *found);
}

// The names in a path from the mount's root.
absl::StatusOr<std::vector<absl::string_view>> SplitPath(absl::string_view path) {
  std::vector<absl::string_view> names = absl::StrSplit(path, '/', absl::SkipEmpty());
  for (const absl::string_view name : names) {
    if (name == "." || name == "..") {
      return absl::InvalidArgumentError(absl::StrCat("path \"", path,
                                                     "\": \".\" and \"..\" are not allowed; "
                                                     "give the path from the mount's root"));
    }
  }
  return names;
}

absl::StatusOr<std::unique_ptr<HeldNode>> Find(Tree* tree, absl::string_view path) {
  ASSIGN_OR_RETURN(const std::vector<absl::string_view> names, SplitPath(path));
  ASSIGN_OR_RETURN(const Attributes root, tree->GetAttributes(kRootNode));
  auto node = std::make_unique<HeldNode>(tree, root);
  for (const absl::string_view name : names) {
    if (!node->attributes().is_directory) {
      return absl::NotFoundError(absl::StrCat("path \"", path, "\": not a directory"));
    }
    auto next = LookupBlocking(tree, node->attributes().id, name);
    if (absl::IsNotFound(next.status())) {
      return absl::NotFoundError(absl::StrCat("path \"", path, "\": no such file or directory"));
    }
    ASSIGN_OR_RETURN(node, std::move(next));
  }
  return node;
}

// One directory of the walk's stack: a stream and the entries read ahead from it.
struct Level {
  std::shared_ptr<DirectoryHandle> handle;
  uint64_t offset = 0;
  std::vector<Attributes> batch;
  size_t next = 0;
};

absl::Status ReadBatch(Tree* tree, Level& level) {
  level.batch.clear();
  level.next = 0;
  Blocking<absl::Status> done;
  tree->ReadDirectory(
      level.handle, level.offset, false,
      [&level](const Tree::DirectoryEntry& entry) {
        if (level.batch.size() == kBatch) return false;
        level.batch.push_back(*entry.attributes);
        level.offset = entry.next_offset;
        return true;
      },
      [&done](absl::Status status) { done.Set(std::move(status)); });
  return done.Take();
}

absl::Status Enter(Tree* tree, NodeId directory, std::vector<Level>& stack) {
  if (stack.size() == kDepthMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("directories nested more than ", kDepthMax, " deep: is there a loop?"));
  }
  ASSIGN_OR_RETURN(std::shared_ptr<DirectoryHandle> handle, tree->OpenDirectory(directory));
  stack.push_back({.handle = std::move(handle)});
  return absl::OkStatus();
}

absl::Status WalkDirectory(Tree* tree, NodeId top, absl::FunctionRef<bool(const FileRef&)> visit) {
  std::vector<Level> stack;
  RETURN_IF_ERROR(Enter(tree, top, stack));
  while (!stack.empty()) {
    Level& level = stack.back();
    if (level.next == level.batch.size()) {
      absl::Status read = ReadBatch(tree, level);
      const bool vanished = absl::IsNotFound(read) && stack.size() > 1;
      if (!read.ok() && !vanished) return read;
      if (level.batch.empty()) stack.pop_back();
      continue;
    }
    // The listing that the handle reads keeps the node alive.
    const Attributes entry = level.batch[level.next++];
    if (entry.is_directory) {
      RETURN_IF_ERROR(Enter(tree, entry.id, stack));
      continue;
    }
    ASSIGN_OR_RETURN(const FileRef file, tree->File(entry.id));
    if (!visit(file)) return absl::OkStatus();
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status StoreTree::Walk(absl::string_view path,
                             absl::FunctionRef<bool(const FileRef&)> visit) {
  ASSIGN_OR_RETURN(const std::unique_ptr<HeldNode> node, Find(this, path));
  if (node->attributes().is_directory) return WalkDirectory(this, node->attributes().id, visit);
  ASSIGN_OR_RETURN(const FileRef file, File(node->attributes().id));
  visit(file);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SourcePath>> StoreTree::Resolve(absl::string_view path) {
  ASSIGN_OR_RETURN(std::vector<absl::string_view> names, SplitPath(path));
  if (root_->is_source_root()) return std::vector<SourcePath>{{0, absl::StrJoin(names, "/")}};
  std::vector<SourcePath> paths;
  const absl::string_view wanted = names.empty() ? absl::string_view() : names.front();
  for (size_t i = 0; i < options_.sources.size(); ++i) {
    const std::string& name = options_.sources[i].source.name;
    if (names.empty()) {
      paths.push_back({i, ""});
    } else if (name == wanted) {
      names.erase(names.begin());
      return std::vector<SourcePath>{{i, absl::StrJoin(names, "/")}};
    }
  }
  if (names.empty()) return paths;
  return absl::NotFoundError(absl::StrCat("path \"", path, "\": no source \"", wanted, "\""));
}

std::vector<FileRef> StoreTree::Siblings(NodeId id, size_t* cursor, size_t max) {
  std::vector<FileRef> files;
  Node* const node = nodes_->Find(id);
  if (node == nullptr) return files;
  std::shared_ptr<Directory> directory;
  if (node->parent() != nullptr) directory = directories_.Find(node->parent()->id());
  std::shared_ptr<Listing> listing;
  if (directory != nullptr) {
    const base::MutexLock lock(&directory->mutex);
    listing = directory->listing;
    if (listing != nullptr && *cursor == kAfterNode) {
      const size_t position = listing->PositionOf(node->name());
      if (position == Listing::kNotThere) {
        listing = nullptr;  // Answered by a Stat, or gone: no place to start from.
      } else {
        *cursor = position + 1;
      }
    }
  }
  nodes_->Unpin(node);
  std::vector<Node*> batch(1);
  while (listing != nullptr && files.size() < max && !batch.empty()) {
    batch.clear();
    {
      const base::MutexLock lock(&directory->mutex);
      const size_t end = std::min(listing->size(), *cursor + std::min(kBatch, max));
      while (*cursor < end) batch.push_back(listing->at((*cursor)++));
    }
    for (size_t i = 0; i < batch.size(); ++i) {
      if (files.size() == max) {
        *cursor -= batch.size() - i;
        break;
      }
      if (!batch[i]->is_directory()) files.push_back(RefOf(batch[i]));
    }
  }
  return files;
}

}  // namespace millrace::vfs
