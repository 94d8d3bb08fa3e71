// Nodes, lookups and directory streams of StoreTree.
#include "fuse/vfs/tree.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/base/hash.h"
#include "common/base/log.h"
#include "fuse/vfs/store_tree.h"

namespace millrace::vfs {
namespace {

// Unused for this many refresh intervals, a directory is no longer refreshed.
constexpr int kIdleRefreshes = 10;

absl::Status NameNotFound() { return absl::NotFoundError("no such file or directory"); }

absl::Status UnknownNode() { return absl::NotFoundError("unknown node: stale file handle"); }

int64_t IdleNanoseconds(absl::Duration refresh) {
  // Saturates: an infinite interval is never exceeded.
  return absl::ToInt64Nanoseconds(refresh * kIdleRefreshes);
}

// Pages of large listings may take most threads, but not those that answer single names.
std::vector<size_t> WorkLimits(size_t threads) {
  return {threads - threads / 4, threads / 2, threads / 4};
}

}  // namespace

std::unique_ptr<Tree> Tree::Create(TreeOptions options) {
  return std::make_unique<StoreTree>(std::move(options));
}

StoreTree::StoreTree(TreeOptions options)
    : options_(std::move(options)),
      idle_ns_(IdleNanoseconds(options_.refresh)),
      nodes_(std::make_shared<NodeTable>(options_.ledger)),
      calls_(options_.threads, WorkLimits(options_.threads)),
      notifier_(1, {1}) {
  MakeRoot();
  if (options_.ledger != nullptr && options_.ledger->restored()) Restore();
  if (options_.refresh_thread && options_.refresh != absl::InfiniteDuration()) {
    refresher_ = std::thread([this] { RefreshLoop(); });
  }
}

StoreTree::~StoreTree() {
  stopping_ = true;
  {
    const base::MutexLock lock(&refresh_mutex_);
    refresh_stop_ = true;
  }
  refresh_changed_.NotifyAll();
  if (refresher_.joinable()) refresher_.join();
  calls_.Stop();
  notifier_.Stop();
  directories_.Clear();
  nodes_->Unpin(root_);
}

void StoreTree::MakeRoot() {
  const bool one = options_.sources.size() == 1 && options_.sources[0].source.name.empty();
  root_ = nodes_->FindOrCreate({.id = kRootNode, .is_directory = true, .is_source_root = one});
  if (one) return;

  nodes_->Pin(root_);
  auto directory = std::make_shared<Directory>(nodes_, root_, 0, "");
  directory->is_sources_root = true;
  auto listing = std::make_shared<Listing>(nodes_);
  for (size_t i = 0; i < options_.sources.size(); ++i) {
    const store::Source& source = options_.sources[i].source;
    if (const Hidden hidden = HiddenByName(source.name); hidden != Hidden::kNo) {
      base::Log(base::Severity::kError, "source left out: its name cannot be a directory's",
                {{"name", source.name}, {"cause", HiddenReason(hidden)}, {"url", source.url}});
      continue;
    }
    listing->Add(nodes_->FindOrCreate(
        {.id = std::max(base::StableHash64({source.name, source.url, ""}), kRootNode + 1),
         .parent = root_,
         .name = source.name,
         .is_directory = true,
         .is_source_root = true,
         .size = i}));
  }
  listing->Finish(absl::OkStatus());
  CountListing(*listing, true);
  {
    const base::MutexLock lock(&directory->mutex);
    directory->listing = std::move(listing);
  }
  directories_.Insert(std::move(directory));
}

void StoreTree::SetInvalidator(Invalidator* invalidator) {
  invalidator_ = invalidator;
  {
    // Restored directories are not listed before there is someone to tell.
    const base::MutexLock lock(&refresh_mutex_);
    refresh_wanted_ |= invalidator != nullptr && !unlisted_.empty();
  }
  refresh_changed_.NotifyAll();
}

void StoreTree::Touch(const std::shared_ptr<Directory>& directory) {
  const int64_t now_ns = absl::ToInt64Nanoseconds(Now());
  const int64_t before_ns = directory->last_used_ns.exchange(now_ns, std::memory_order_relaxed);
  if (now_ns - before_ns > idle_ns_) StartRefresh(directory, nullptr);
}

absl::StatusOr<std::shared_ptr<Directory>> StoreTree::Use(NodeId id) {
  std::shared_ptr<Directory> directory = directories_.Find(id);
  if (directory == nullptr) return MakeDirectory(id);
  Touch(directory);
  return directory;
}

absl::StatusOr<std::shared_ptr<Directory>> StoreTree::MakeDirectory(NodeId id) {
  Node* const node = nodes_->Find(id);
  if (node == nullptr) return UnknownNode();
  if (!node->is_directory()) {
    nodes_->Unpin(node);
    return absl::FailedPreconditionError("not a directory");
  }
  const Node* source_root = nullptr;
  std::string path = PathOf(node, &source_root);
  auto made = std::make_shared<Directory>(nodes_, node, source_root->source(), std::move(path));
  made->last_used_ns = absl::ToInt64Nanoseconds(Now());
  return directories_.Insert(std::move(made));
}

std::optional<absl::StatusOr<Attributes>> StoreTree::Known(Directory& directory,
                                                           absl::string_view name) {
  const Listing* const listing = directory.listing.get();
  if (listing == nullptr && directory.told == nullptr) return std::nullopt;
  if (Node* const node = listing == nullptr ? nullptr : listing->Find(name); node != nullptr) {
    nodes_->AddLookups(node, 1);
    return node->attributes();
  }
  if (listing != nullptr && listing->finished()) return NameNotFound();
  const auto early = directory.early.find(name);
  if (early == directory.early.end()) {
    Node* const told = directory.told == nullptr ? nullptr : directory.told->Find(name);
    if (told == nullptr) return std::nullopt;
    nodes_->AddLookups(told, 1);
    return told->attributes();
  }
  if (early->second == 0 || early->second == kToldUnknown) return std::nullopt;
  Node* const node = nodes_->Find(early->second);
  if (node == nullptr) return std::nullopt;
  nodes_->AddLookups(node, 1);
  const Attributes attributes = node->attributes();
  nodes_->Unpin(node);
  return attributes;
}

void StoreTree::Lookup(NodeId parent, absl::string_view name, LookupDone done) {
  if (HiddenByName(name) != Hidden::kNo) return std::move(done)(NameNotFound());
  std::optional<absl::StatusOr<Attributes>> answer;
  std::shared_ptr<Directory> directory;
  std::shared_ptr<ListJob> job;
  bool ask_stat = false;
  while (!answer.has_value()) {
    absl::StatusOr<std::shared_ptr<Directory>> used = Use(parent);
    if (!used.ok()) return std::move(done)(used.status());
    directory = *std::move(used);
    const base::MutexLock lock(&directory->mutex);
    if (directory->dropped) continue;
    answer = Known(*directory, name);
    if (answer.has_value()) break;
    if (absl::Status failed = EnsureListing(directory, &job); !failed.ok()) {
      answer = std::move(failed);
      break;
    }
    NameWait& wait = directory->waiting[name];
    wait.done.push_back(std::move(done));
    // Before the first page it may well be on that one; afterwards it can be far away.
    ask_stat = !wait.stat_asked && directory->listing->pages() > 0;
    wait.stat_asked |= ask_stat;
    break;
  }
  // NOLINTNEXTLINE(bugprone-use-after-move): moved away only where there is no answer.
  if (answer.has_value()) return std::move(done)(*std::move(answer));
  if (job != nullptr) Submit(std::move(job));
  if (ask_stat) AskStats(directory, {std::string(name)});
}

absl::StatusOr<Attributes> StoreTree::GetAttributes(NodeId node) {
  Attributes attributes;
  if (!nodes_->GetAttributes(node, &attributes)) return UnknownNode();
  return attributes;
}

FileRef StoreTree::RefOf(const Node* node) const {
  const Node* source_root = nullptr;
  FileRef ref{.id = node->id(), .version = node->version(), .size = node->size()};
  ref.path = PathOf(node, &source_root);
  ref.source = source_root->source();
  return ref;
}

absl::StatusOr<FileRef> StoreTree::File(NodeId id) {
  Node* const node = nodes_->Find(id);
  if (node == nullptr) return UnknownNode();
  absl::StatusOr<FileRef> ref = absl::FailedPreconditionError("is a directory");
  if (!node->is_directory()) {
    ref = RefOf(node);
    // An open is a use of the directory too: the kernel may need no lookup for it.
    const std::shared_ptr<Directory> parent = directories_.Find(node->parent()->id());
    if (parent != nullptr) Touch(parent);
  }
  nodes_->Unpin(node);
  return ref;
}

void StoreTree::Forget(NodeId node, uint64_t count) { nodes_->Forget(node, count); }

NodeId StoreTree::Parent(NodeId id) {
  Node* const node = nodes_->Find(id);
  if (node == nullptr) return kRootNode;
  const NodeId parent = node->parent() == nullptr ? kRootNode : node->parent()->id();
  nodes_->Unpin(node);
  return parent;
}

absl::StatusOr<std::shared_ptr<DirectoryHandle>> StoreTree::OpenDirectory(NodeId node) {
  absl::StatusOr<std::shared_ptr<Directory>> directory = Use(node);
  if (!directory.ok()) return directory.status();
  auto handle = std::make_shared<DirectoryHandle>(node);
  const base::MutexLock lock(&handle->mutex);
  handle->directory = *std::move(directory);
  return handle;
}

absl::Status StoreTree::Attach(DirectoryHandle& handle) {
  while (true) {
    absl::StatusOr<std::shared_ptr<Directory>> used = Use(handle.node);
    if (!used.ok()) return used.status();
    const std::shared_ptr<Directory> directory = *std::move(used);
    std::shared_ptr<ListJob> job;
    {
      const base::MutexLock lock(&directory->mutex);
      if (directory->dropped) continue;
      if (absl::Status failed = EnsureListing(directory, &job); !failed.ok()) return failed;
      handle.directory = directory;
      handle.listing = directory->listing;
    }
    nodes_->MarkListed(directory->node);
    if (job != nullptr) Submit(std::move(job));
    return absl::OkStatus();
  }
}

void StoreTree::ReadDirectory(const std::shared_ptr<DirectoryHandle>& handle, uint64_t offset,
                              bool plus, EntrySink sink, ReadDone done) {
  ReaderWait reader{.offset = offset, .plus = plus, .sink = std::move(sink)};
  reader.done = std::move(done);
  absl::Status attached;
  std::shared_ptr<Directory> directory;
  {
    const base::MutexLock lock(&handle->mutex);
    if (offset == 0 || handle->listing == nullptr) attached = Attach(*handle);
    directory = handle->directory;
    reader.listing = handle->listing;
  }
  if (!attached.ok()) return std::move(reader.done)(std::move(attached));
  Feed(directory, std::move(reader));
}

void StoreTree::Feed(const std::shared_ptr<Directory>& directory, ReaderWait reader) {
  constexpr size_t kBatch = 64;
  const std::shared_ptr<Listing> listing = reader.listing;  // Keeps the nodes of a batch alive.
  bool fed = false;
  while (true) {
    std::vector<Node*> batch;
    absl::Status status;
    {
      const base::MutexLock lock(&directory->mutex);
      const size_t first = std::min<uint64_t>(reader.offset, listing->size());
      const size_t end = std::min(first + kBatch, listing->size());
      for (size_t i = first; i < end; ++i) batch.push_back(listing->at(i));
      if (batch.empty() && !fed && !listing->finished()) {
        directory->readers.push_back(std::move(reader));
        return;
      }
      if (!fed) status = listing->status();
    }
    if (batch.empty()) return std::move(reader.done)(std::move(status));
    fed = true;
    for (Node* const node : batch) {
      const Attributes attributes = node->attributes();
      if (!reader.sink({.name = node->name(),
                        .attributes = &attributes,
                        .next_offset = reader.offset + 1})) {
        return std::move(reader.done)(absl::OkStatus());
      }
      if (reader.plus) nodes_->AddLookups(node, 1);
      ++reader.offset;
    }
  }
}

TreeStats StoreTree::Stats() const {
  return {.directories = directory_count_,
          .files = files_,
          .names_hidden = hidden_,
          .listings = listings_,
          .changes = changes_};
}

}  // namespace millrace::vfs
