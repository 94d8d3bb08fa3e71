// What tests of the Vfs share.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cache/pool/short_circuit.h"
#include "cache/store/memory_store.h"
#include "cache/tier/no_cache.h"
#include "common/base/mutex.h"
#include "common/base/units.h"
#include "fuse/vfs/vfs.h"
#include "gtest/gtest.h"
#include "test/support/fake_pool.h"
#include "test/support/ledger_file.h"
#include "test/support/sim_clock.h"

namespace millrace::test {

// Waits for one callback from any thread.
template <typename T>
class Once {
 public:
  void Set(T value) {
    base::MutexLock lock(&mutex_);
    value_ = std::move(value);
    changed_.NotifyAll();
  }
  T Get() {
    base::MutexLock lock(&mutex_);
    while (!value_.has_value()) changed_.Wait(&mutex_);
    return *value_;
  }
  bool ready() {
    base::MutexLock lock(&mutex_);
    return value_.has_value();
  }
  // False when it did not come in time.
  bool WaitFor(absl::Duration timeout) {
    base::MutexLock lock(&mutex_);
    return value_.has_value() || changed_.WaitFor(&mutex_, timeout) || value_.has_value();
  }

 private:
  base::Mutex mutex_;
  base::CondVar changed_;
  std::optional<T> value_;
};

// The kernel's backing ids by node, which outlive the process that registered them.
class FakeBackingFiles : public vfs::BackingFiles {
 public:
  absl::StatusOr<int> Open(vfs::NodeId node, int) override {
    base::MutexLock lock(&mutex_);
    const auto [found, added] = ids_.try_emplace(node, last_id_ + 1);
    if (added) ++last_id_;
    return found->second;
  }
  void Close(vfs::NodeId node, int backing_id) override {
    if (const std::function<void()> hook = std::exchange(on_close_, nullptr)) hook();
    base::MutexLock lock(&mutex_);
    const auto found = ids_.find(node);
    ASSERT_TRUE(found != ids_.end() && found->second == backing_id);
    ids_.erase(found);
  }
  size_t open() {
    base::MutexLock lock(&mutex_);
    return ids_.size();
  }
  bool IsOpen(vfs::NodeId node, int backing_id) {
    base::MutexLock lock(&mutex_);
    const auto found = ids_.find(node);
    return found != ids_.end() && found->second == backing_id;
  }
  // Runs once, in the next Close, before the id is gone.
  void OnClose(std::function<void()> hook) { on_close_ = std::move(hook); }

 private:
  std::function<void()> on_close_;
  base::Mutex mutex_;
  int last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<vfs::NodeId, int> ids_ ABSL_GUARDED_BY(mutex_);
};

// A vfs::Vfs over a store in memory, with a cache on disk, whose process may die.
class VfsFixture : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/vfs_test.XXXXXX";
    directory_ = mkdtemp(name);
    store_ = std::make_shared<store::MemoryStore>();
  }
  void TearDown() override {
    if (queue_ != nullptr) queue_->Stop();
    vfs_.reset();
    tree_.reset();
    ledger_.reset();
    EXPECT_EQ(backing_.open(), 0u);
    memory_.reset();
    queue_.reset();
    if (cache_ != nullptr) {
      EXPECT_TRUE(cache_->Close().ok());
    }
    cache_.reset();
    file_io_.reset();
    std::filesystem::remove_all(directory_);
  }

  void Start(vfs::Profile profile, tier::Medium medium = tier::Medium::kSsd) {
    file_io_ = io::NewPosixFileIo(2);
    tier::CacheOptions options;
    options.tiers.push_back({medium, directory_ + "/tier", 64 * base::kMiB});
    options.sources_in_use = {"memory://"};
    auto cache = tier::TieredCache::Open(options, file_io_.get());
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
    Fetch();
    Serve(profile);
  }
  // Without a cache, beside a worker.
  void StartWithWorker(vfs::Profile profile) {
    file_io_ = io::NewPosixFileIo(2);
    cache_ = std::make_unique<pool::ShortCircuitCache>(tier::NewNoCache(), &worker_, 100,
                                                       file_io_.get(), &clock_);
    shared_.keeps_read = false;
    shared_.clock = &clock_;
    Fetch();
    Serve(profile);
  }
  void Fetch() {
    pool_ = std::make_unique<fetch::BufferPool>(32 * base::kMiB);
    memory_ = std::make_unique<fetch::MemoryCache>(pool_.get());
    queue_ = std::make_unique<fetch::FetchQueue>(8, pool_.get(),
                                                 [this] { return memory_->DropOldest(); });
    shared_.cache = cache_.get();
    shared_.pool = pool_.get();
    shared_.queue = queue_.get();
    shared_.memory = memory_.get();
  }
  // What is the process's own; with a ledger, if one was opened.
  void Serve(vfs::Profile profile) {
    const std::vector<store::OpenedSource> sources = {{{"", "memory://", "memory://"}, store_}};
    vfs::TreeOptions tree;
    tree.sources = sources;
    tree.refresh_thread = false;
    tree.ledger = ledger_.get();
    tree_ = vfs::Tree::Create(std::move(tree));
    vfs::VfsOptions vfs;
    vfs.profile = profile;
    vfs.backing = with_backing_ ? &backing_ : nullptr;
    vfs.ledger = ledger_.get();
    vfs.direct = true;
    vfs.observer = observer_;
    vfs_ = std::make_unique<vfs::Vfs>(vfs, tree_.get(), sources, &shared_);
  }
  // The worker has all of the file.
  tier::FileKey PutAtWorker(const std::string& path, const std::string& bytes) {
    const auto entry = store_->Stat(path, {});
    EXPECT_TRUE(entry.ok()) << entry.status();
    tier::FileKey key{"memory://", path, entry->version, entry->size};
    worker_.Put(key, bytes);
    return key;
  }
  void StartKept(vfs::Profile profile) {
    ledger_ = file_.Open();
    Start(profile);
  }
  // The process ends at this instruction, and another one takes over.
  void Die(vfs::Profile profile) {
    LedgerFile left = file_.Copy();
    vfs_->Detach();
    vfs_.reset();
    tree_.reset();
    file_ = std::move(left);
    ledger_ = file_.Open();
    Serve(profile);
  }

  vfs::NodeId Lookup(vfs::NodeId parent, const std::string& name) {
    Once<absl::StatusOr<vfs::Attributes>> promise;
    tree_->Lookup(parent, name,
                  [&](absl::StatusOr<vfs::Attributes> found) { promise.Set(std::move(found)); });
    const absl::StatusOr<vfs::Attributes> found = promise.Get();
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() ? found->id : 0;
  }
  absl::StatusOr<vfs::Vfs::OpenReply> Open(vfs::NodeId node, vfs::Vfs::OpenRequest request = {}) {
    Once<absl::StatusOr<vfs::Vfs::OpenReply>> promise;
    vfs_->Open(node, request,
               [&](absl::StatusOr<vfs::Vfs::OpenReply> reply) { promise.Set(std::move(reply)); });
    return promise.Get();
  }
  absl::StatusOr<std::string> Read(vfs::NodeId node, uint64_t handle, uint64_t offset,
                                   uint64_t size) {
    Once<absl::StatusOr<std::string>> promise;
    vfs_->Read(node, handle, offset, size, [&](absl::StatusOr<fetch::ReadResult> result) {
      if (!result.ok()) return promise.Set(result.status());
      std::string bytes;
      for (const auto piece : result->pieces) bytes.append(piece.data(), piece.size());
      promise.Set(bytes);
    });
    return promise.Get();
  }
  vfs::Vfs::WarmProgress Warm(const std::string& path) {
    const auto progress = vfs_->Warm({path}, [](const vfs::Vfs::WarmProgress&) { return true; });
    EXPECT_TRUE(progress.ok()) << progress.status();
    return progress.value_or(vfs::Vfs::WarmProgress());
  }

  std::string directory_;
  FakeBackingFiles backing_;
  bool with_backing_ = true;
  FakePool worker_;
  SimClock clock_;  // Of fetches, beside a worker.
  vfs::ReadObserver* observer_ = nullptr;
  LedgerFile file_;
  std::shared_ptr<store::MemoryStore> store_;
  std::unique_ptr<io::FileIo> file_io_;
  std::unique_ptr<tier::TieredCache> cache_;
  std::unique_ptr<fetch::BufferPool> pool_;
  std::unique_ptr<fetch::MemoryCache> memory_;
  fetch::Shared shared_;
  std::unique_ptr<fetch::FetchQueue> queue_;
  std::unique_ptr<vfs::Ledger> ledger_;
  std::unique_ptr<vfs::Tree> tree_;
  std::unique_ptr<vfs::Vfs> vfs_;
};

}  // namespace millrace::test
