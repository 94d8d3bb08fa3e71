// What tests of the tree share: a tree over scripted stores, blocking forms of its calls, and an
// Invalidator that remembers what it was told.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/mutex.h"
#include "fuse/vfs/store_tree.h"
#include "fuse/vfs/tree.h"
#include "test/support/scripted_store.h"
#include "test/support/sim_clock.h"

namespace millrace::test {

// A value from a callback, once. Copies share it.
template <typename T>
class Promise {
 public:
  void Set(T value) const {
    const base::MutexLock lock(&state_->mutex);
    state_->value.emplace(std::move(value));
    state_->changed.NotifyAll();
  }
  T Get() const {
    const base::MutexLock lock(&state_->mutex);
    while (!state_->value.has_value()) state_->changed.Wait(&state_->mutex);
    return *state_->value;
  }
  bool ready() const {
    const base::MutexLock lock(&state_->mutex);
    return state_->value.has_value();
  }

 private:
  struct State {
    base::Mutex mutex;
    base::CondVar changed;
    std::optional<T> value;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

// Remembers "parent/name" of changed entries, "parent?name" of expired ones, "parent/" of
// directories.
class RecordingInvalidator final : public vfs::Invalidator {
 public:
  void EntryChanged(vfs::NodeId parent, absl::string_view name) override {
    Record(absl::StrCat(parent, "/", name));
  }
  void EntryExpired(vfs::NodeId parent, absl::string_view name) override {
    Record(absl::StrCat(parent, "?", name));
  }
  void DirectoryChanged(vfs::NodeId directory) override { Record(absl::StrCat(directory, "/")); }

  // What came since the last call, sorted.
  std::vector<std::string> Take() {
    const base::MutexLock lock(&mutex_);
    std::vector<std::string> events = std::exchange(events_, {});
    std::sort(events.begin(), events.end());
    return events;
  }

 private:
  void Record(std::string event) {
    const base::MutexLock lock(&mutex_);
    events_.push_back(std::move(event));
  }
  base::Mutex mutex_;
  std::vector<std::string> events_ ABSL_GUARDED_BY(mutex_);
};

struct TreeFixture {
  explicit TreeFixture(size_t page_entries = 1000)
      : store(std::make_shared<ScriptedStore>(page_entries)) {
    options.sources = {{{"", "memory://a"}, store}};
    options.clock = &clock;
    options.refresh_thread = false;
  }

  // After the options are as wanted.
  void Start() {
    tree = std::make_unique<vfs::StoreTree>(options);
    tree->SetInvalidator(&invalidator);
  }

  Promise<absl::StatusOr<vfs::Attributes>> LookupLater(vfs::NodeId parent, absl::string_view name) {
    Promise<absl::StatusOr<vfs::Attributes>> promise;
    tree->Lookup(parent, name, [promise](absl::StatusOr<vfs::Attributes> found) {
      promise.Set(std::move(found));
    });
    return promise;
  }
  absl::StatusOr<vfs::Attributes> Lookup(vfs::NodeId parent, absl::string_view name) {
    return LookupLater(parent, name).Get();
  }

  struct Read {
    absl::Status status;
    std::vector<std::string> names;
    std::vector<vfs::Attributes> attributes;
    uint64_t offset = 0;
  };
  Promise<Read> ReadLater(const std::shared_ptr<vfs::DirectoryHandle>& handle, uint64_t offset,
                          size_t max, bool plus = false) {
    Promise<Read> promise;
    const auto read = std::make_shared<Read>();
    read->offset = offset;
    tree->ReadDirectory(
        handle, offset, plus,
        [read, max](const vfs::Tree::DirectoryEntry& entry) {
          if (read->names.size() == max) return false;
          read->names.emplace_back(entry.name);
          read->attributes.push_back(*entry.attributes);
          read->offset = entry.next_offset;
          return true;
        },
        [read, promise](absl::Status status) {
          read->status = std::move(status);
          promise.Set(std::move(*read));
        });
    return promise;
  }
  // All names of a directory; on an error what came before it, and the error's text.
  std::vector<std::string> List(vfs::NodeId directory, size_t buffer = 100) {
    const auto handle = tree->OpenDirectory(directory);
    if (!handle.ok()) return {handle.status().ToString()};
    std::vector<std::string> names;
    uint64_t offset = 0;
    while (true) {
      const Read read = ReadLater(*handle, offset, buffer).Get();
      names.insert(names.end(), read.names.begin(), read.names.end());
      if (!read.status.ok()) names.push_back(read.status.ToString());
      if (!read.status.ok() || read.names.empty()) return names;
      offset = read.offset;
    }
  }
  vfs::NodeId IdOf(vfs::NodeId parent, absl::string_view name) {
    const absl::StatusOr<vfs::Attributes> found = Lookup(parent, name);
    return found.ok() ? found->id : 0;
  }

  SimClock clock;
  RecordingInvalidator invalidator;
  std::shared_ptr<ScriptedStore> store;
  vfs::TreeOptions options;
  std::unique_ptr<vfs::StoreTree> tree;
};

}  // namespace millrace::test
