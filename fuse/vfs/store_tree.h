// The Tree over stores. Its methods live in files by what they are about: tree.cc (nodes, lookups,
// directory streams), tree_listing.cc (listings and Stats), tree_refresh.cc (refresh, dropping of
// directories, notifications), tree_restore.cc (what a predecessor left), tree_walk.cc (Walk,
// Siblings).
//
// Threads. Calls to stores run on `calls_`; notifications on a thread of their own, since the
// kernel may let one wait for a lookup that this tree has yet to answer; `refresher_` only looks at
// the clock. Lock order: a handle's mutex, a Directory's, a table shard's. None is held over a
// store call, a callback, or a notification.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fuse/vfs/call_queue.h"
#include "fuse/vfs/directory.h"
#include "fuse/vfs/listing.h"
#include "fuse/vfs/node_table.h"
#include "fuse/vfs/tree.h"

namespace millrace::vfs {

class StoreTree final : public Tree {
 public:
  explicit StoreTree(TreeOptions options);
  ~StoreTree() override;

  void SetInvalidator(Invalidator* invalidator) override;
  void Lookup(NodeId parent, absl::string_view name, LookupDone done) override;
  absl::StatusOr<Attributes> GetAttributes(NodeId node) override;
  absl::StatusOr<FileRef> File(NodeId node) override;
  void Forget(NodeId node, uint64_t count) override;
  NodeId Parent(NodeId node) override;
  absl::StatusOr<std::vector<SourcePath>> Resolve(absl::string_view path) override;
  absl::StatusOr<std::shared_ptr<DirectoryHandle>> OpenDirectory(NodeId node) override;
  void ReadDirectory(const std::shared_ptr<DirectoryHandle>& handle, uint64_t offset, bool plus,
                     EntrySink sink, ReadDone done) override;
  std::vector<FileRef> Siblings(NodeId node, size_t* cursor, size_t max) override;
  absl::Status Walk(absl::string_view path, absl::FunctionRef<bool(const FileRef&)> visit) override;
  absl::Status Refresh(NodeId directory) override;
  absl::StatusOr<uint64_t> RefreshAll() override;
  TreeStats Stats() const override;

  // What the background thread does at a tick, for tests that move the clock by hand: refreshes
  // every directory that is due, and returns when the notifications were delivered.
  void RefreshDue();

  // Nodes alive, for tests of what is given back.
  size_t nodes() const { return nodes_->size(); }

 private:
  enum Work : size_t { kListing, kStat, kRefresh };

  // One thing to tell the Invalidator.
  struct Event {
    enum class Kind { kEntryChanged, kEntryExpired, kDirectoryChanged };
    Kind kind = Kind::kEntryChanged;
    NodeId directory = 0;
    std::string name;  // Empty for kDirectoryChanged.
  };
  static Event EntryChanged(NodeId directory, absl::string_view name) {
    return {Event::Kind::kEntryChanged, directory, std::string(name)};
  }
  static Event EntryExpired(NodeId directory, absl::string_view name) {
    return {Event::Kind::kEntryExpired, directory, std::string(name)};
  }
  static Event DirectoryChanged(NodeId directory) {
    return {Event::Kind::kDirectoryChanged, directory, ""};
  }

  // Callbacks collected under a lock, run without it.
  struct Answers {
    std::vector<std::pair<LookupDone, absl::StatusOr<Attributes>>> lookups;
    std::vector<ReaderWait> readers;
  };

  // A listing on its way: the first one of a directory, or a refresh.
  struct ListJob {
    std::shared_ptr<Directory> directory;
    std::shared_ptr<Listing> target;
    std::shared_ptr<Listing> old;  // What a refresh compares with; null for a first listing.
    std::string token;
    size_t empty_pages = 0;  // In a row.
    absl::Duration started;
    absl::Duration age_max;  // CallOptions::age_max: how old an index may be that answers.
    absl::Duration age;      // Of the oldest page.
    bool counted = false;    // In restoring_: begun by ListRestored.
    std::vector<Event> events;
    Answers answers;  // By the last page: given with the listing complete.
  };

  struct PageNodes {
    std::vector<Node*> nodes;  // Pinned.
    std::vector<std::pair<Hidden, const store::Entry*>> hidden;
  };

  // tree.cc
  void MakeRoot();
  absl::Duration Now() { return options_.clock->Monotonic(); }
  // Marks a directory as used; one that was idle is refreshed.
  void Touch(const std::shared_ptr<Directory>& directory);
  // The Directory of a node, marked as used.
  absl::StatusOr<std::shared_ptr<Directory>> Use(NodeId id);
  absl::StatusOr<std::shared_ptr<Directory>> MakeDirectory(NodeId id);
  // What is known of a name, with a lookup counted; nullopt when the store must be asked.
  std::optional<absl::StatusOr<Attributes>> Known(Directory& directory, absl::string_view name)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(directory.mutex);
  absl::Status Attach(DirectoryHandle& handle) ABSL_EXCLUSIVE_LOCKS_REQUIRED(handle.mutex);
  void Feed(const std::shared_ptr<Directory>& directory, ReaderWait reader);
  FileRef RefOf(const Node* node) const;

  // tree_listing.cc
  // Makes sure that a listing serves or is on its way. On success `*job` is a job to submit once
  // the lock is released, or null.
  absl::Status EnsureListing(const std::shared_ptr<Directory>& directory,
                             std::shared_ptr<ListJob>* job)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(directory->mutex);
  void Submit(std::shared_ptr<ListJob> job);
  void ListPage(const std::shared_ptr<ListJob>& job);
  absl::Status CheckPage(ListJob& job, const store::ListPage& page);
  NodeSpec SpecOf(const Directory& directory, const store::Entry& entry) const;
  NodeId IdOf(const Directory& directory, const NodeSpec& spec) const;
  PageNodes MakeNodes(ListJob& job, const std::vector<store::Entry>& entries);
  void Deliver(const std::shared_ptr<ListJob>& job, const PageNodes& page, bool last);
  void FinishFirst(ListJob& job, const absl::Status& status);
  // Returns what a predecessor had told, to be given back without the lock.
  std::unique_ptr<Listing> ContradictEarly(Directory& directory, const Listing& now,
                                           std::vector<Event>* events)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(directory.mutex);
  void AskStats(const std::shared_ptr<Directory>& directory, std::vector<std::string> names);
  void RunStat(const std::shared_ptr<Directory>& directory, const std::string& name);
  void Run(const std::shared_ptr<Directory>& directory, Answers answers);
  void LogHidden(const Directory& directory, const Listing& listing);
  std::string Describe(const Directory& directory) const;
  store::CallOptions Call(absl::Duration age_max) const;
  // How old the names may be that nobody asked for anew.
  absl::Duration AgeMax() const;

  // tree_restore.cc
  // The nodes of a predecessor, and the directories the kernel knows of it. In the constructor.
  void Restore();
  std::vector<Node*> RestoreNodes();
  // Lists restored directories, a few at a time, until none is left.
  void ListRestored();
  // One of these listings ended, and its events are delivered. `again`: it failed.
  void EndRestored(const std::shared_ptr<Directory>& directory, bool again);

  // tree_refresh.cc
  void StartRefresh(const std::shared_ptr<Directory>& directory, RefreshDone done);
  void FinishRefresh(ListJob& job, const absl::Status& status);
  void Compare(ListJob& job);
  absl::Duration DueAfter(const ListJob& job);
  // Delivers events, then runs `after`.
  void Post(std::vector<Event> events, absl::AnyInvocable<void() &&> after);
  void RefreshLoop();
  size_t StartDue();
  void ExpireIdle();
  // Asks the kernel to ask again about what it holds of `listing`.
  void Expire(const Directory& directory, const Listing& listing);
  void CountListing(const Listing& listing, bool serves);
  void DropUnused();
  bool Drop(const std::shared_ptr<Directory>& directory);

  // Constant after construction.
  const TreeOptions options_;
  int64_t idle_ns_ = 0;  // Unused for longer: no refresh until the next use.
  const std::shared_ptr<NodeTable> nodes_;
  Node* root_ = nullptr;

  DirectoryTable directories_;  // Provides its own synchronisation.
  std::atomic<Invalidator*> invalidator_ = nullptr;
  std::atomic<bool> stopping_ = false;
  std::atomic<uint64_t> entries_ = 0;  // In listings that serve, and kDirectoryWeight for each.
  std::atomic<uint64_t> directory_count_ = 0;
  std::atomic<uint64_t> files_ = 0;
  std::atomic<uint64_t> hidden_ = 0;
  std::atomic<uint64_t> listings_ = 0;
  std::atomic<uint64_t> changes_ = 0;
  std::atomic<bool> dropping_ = false;

  base::Mutex refresh_mutex_;
  base::CondVar refresh_changed_;
  size_t refreshes_ ABSL_GUARDED_BY(refresh_mutex_) = 0;  // Until their events are delivered.
  bool refresh_stop_ ABSL_GUARDED_BY(refresh_mutex_) = false;
  bool refresh_wanted_ ABSL_GUARDED_BY(refresh_mutex_) = false;
  // Restored directories that are not listed yet, and how many of them are being listed.
  std::deque<std::shared_ptr<Directory>> unlisted_ ABSL_GUARDED_BY(refresh_mutex_);
  size_t restoring_ ABSL_GUARDED_BY(refresh_mutex_) = 0;

  CallQueue calls_;
  CallQueue notifier_;
  std::thread refresher_;
};

}  // namespace millrace::vfs
