// The file system without FUSE: how files are opened, read ahead, warmed and evicted.
#include "fuse/vfs/vfs.h"

#include <cerrno>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "cache/store/memory_store.h"
#include "common/base/errno_status.h"
#include "common/base/units.h"
#include "gtest/gtest.h"

namespace millrace::vfs {
namespace {

using base::kMiB;

// Waits for one callback from any thread.
template <typename T>
class Promise {
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

 private:
  base::Mutex mutex_;
  base::CondVar changed_;
  std::optional<T> value_;
};

class FakeBackingFiles : public BackingFiles {
 public:
  absl::StatusOr<int> Open(NodeId, int) override {
    base::MutexLock lock(&mutex_);
    ++open_;
    return ++last_id_;
  }
  void Close(NodeId, int) override {
    base::MutexLock lock(&mutex_);
    --open_;
  }
  int open() {
    base::MutexLock lock(&mutex_);
    return open_;
  }

 private:
  base::Mutex mutex_;
  int last_id_ = 0;
  int open_ = 0;
};

class VfsTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/vfs_test.XXXXXX";
    directory_ = mkdtemp(name);
    store_ = std::make_shared<store::MemoryStore>();
  }
  void TearDown() override {
    if (queue_ != nullptr) queue_->Stop();
    tree_.reset();
    vfs_.reset();
    EXPECT_EQ(backing_.open(), 0);
    memory_.reset();
    queue_.reset();
    if (cache_ != nullptr) {
      EXPECT_TRUE(cache_->Close().ok());
    }
    cache_.reset();
    file_io_.reset();
    std::filesystem::remove_all(directory_);
  }

  void Start(Profile profile) {
    file_io_ = io::NewPosixFileIo(2);
    tier::CacheOptions options;
    options.tiers.push_back({tier::Medium::kSsd, directory_ + "/tier", 64 * kMiB});
    options.sources_in_use = {"memory://"};
    auto cache = tier::TieredCache::Open(options, file_io_.get());
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
    pool_ = std::make_unique<fetch::BufferPool>(32 * kMiB);
    memory_ = std::make_unique<fetch::MemoryCache>(pool_.get());
    queue_ = std::make_unique<fetch::FetchQueue>(8, pool_.get(),
                                                 [this] { return memory_->DropOldest(); });
    shared_.cache = cache_.get();
    shared_.pool = pool_.get();
    shared_.queue = queue_.get();
    shared_.memory = memory_.get();
    const std::vector<store::OpenedSource> sources = {{{"", "memory://", "memory://"}, store_}};
    TreeOptions tree;
    tree.sources = sources;
    tree.refresh_thread = false;
    tree_ = Tree::Create(std::move(tree));
    VfsOptions vfs;
    vfs.profile = profile;
    vfs.backing = &backing_;
    vfs_ = std::make_unique<Vfs>(vfs, tree_.get(), sources, &shared_);
  }

  NodeId Lookup(NodeId parent, const std::string& name) {
    Promise<absl::StatusOr<Attributes>> promise;
    tree_->Lookup(parent, name,
                  [&](absl::StatusOr<Attributes> found) { promise.Set(std::move(found)); });
    const absl::StatusOr<Attributes> found = promise.Get();
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() ? found->id : 0;
  }
  absl::StatusOr<Vfs::OpenReply> Open(NodeId node) {
    Promise<absl::StatusOr<Vfs::OpenReply>> promise;
    vfs_->Open(node, {},
               [&](absl::StatusOr<Vfs::OpenReply> reply) { promise.Set(std::move(reply)); });
    return promise.Get();
  }
  absl::StatusOr<std::string> Read(NodeId node, uint64_t handle, uint64_t offset, uint64_t size) {
    Promise<absl::StatusOr<std::string>> promise;
    vfs_->Read(node, handle, offset, size, [&](absl::StatusOr<fetch::ReadResult> result) {
      if (!result.ok()) return promise.Set(result.status());
      std::string bytes;
      for (const auto piece : result->pieces) bytes.append(piece.data(), piece.size());
      promise.Set(bytes);
    });
    return promise.Get();
  }
  Vfs::WarmProgress Warm(const std::string& path) {
    const auto progress = vfs_->Warm({path}, [](const Vfs::WarmProgress&) { return true; });
    EXPECT_TRUE(progress.ok()) << progress.status();
    return progress.value_or(Vfs::WarmProgress());
  }

  std::string directory_;
  FakeBackingFiles backing_;
  std::shared_ptr<store::MemoryStore> store_;
  std::unique_ptr<io::FileIo> file_io_;
  std::unique_ptr<tier::TieredCache> cache_;
  std::unique_ptr<fetch::BufferPool> pool_;
  std::unique_ptr<fetch::MemoryCache> memory_;
  fetch::Shared shared_;
  std::unique_ptr<fetch::FetchQueue> queue_;
  std::unique_ptr<Tree> tree_;
  std::unique_ptr<Vfs> vfs_;
};

TEST(ProfileTest, SmallFilesMustBeManyAndHoldTheBytes) {
  std::vector<store::Entry> sample(100);
  for (store::Entry& entry : sample) entry.size = 100'000;
  EXPECT_EQ(ChooseProfile(sample), Profile::kSmallFiles);
  sample[0].size = 2ull << 30;  // One large file holds nearly all bytes.
  EXPECT_EQ(ChooseProfile(sample), Profile::kLargeFiles);
  for (store::Entry& entry : sample) entry.size = 100 * kMiB;
  EXPECT_EQ(ChooseProfile(sample), Profile::kLargeFiles);
  EXPECT_EQ(ChooseProfile({}), Profile::kLargeFiles);
}

TEST_F(VfsTest, SmallFilesMountAnswersNoOpen) {
  store_->Put("a", "hello");
  Start(Profile::kSmallFiles);
  const NodeId node = Lookup(kRootNode, "a");
  EXPECT_TRUE(Open(node)->without_open);
  EXPECT_EQ(*Read(node, 0, 0, 100), "hello");
}

TEST_F(VfsTest, OpensWaitForTheProfileToBeChosen) {
  store_->Put("a", "hello");
  Start(Profile::kAuto);
  const NodeId node = Lookup(kRootNode, "a");
  Promise<absl::StatusOr<Vfs::OpenReply>> promise;
  vfs_->Open(node, {},
             [&](absl::StatusOr<Vfs::OpenReply> reply) { promise.Set(std::move(reply)); });
  EXPECT_FALSE(promise.ready());
  vfs_->SetProfile(Profile::kSmallFiles);
  EXPECT_TRUE(promise.Get()->without_open);
}

TEST_F(VfsTest, CompleteFileOpensWithPassthroughAndKeepsItsBackingId) {
  store_->Put("a", std::string(3 * kMiB, 'x'));
  Start(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  EXPECT_EQ(Warm("").bytes_done, 3 * kMiB);
  queue_->Stop();  // Every block is in the cache now.
  const auto first = Open(node);
  EXPECT_EQ(first->mode, OpenMode::kPassthrough);
  vfs_->Release(node, first->handle);
  const auto second = Open(node);
  EXPECT_EQ(second->backing_id, first->backing_id);
  EXPECT_EQ(backing_.open(), 1);
  vfs_->Release(node, second->handle);
}

// The kernel answers EIO when one inode is opened both ways.
TEST_F(VfsTest, FileOpenInCachedModeIsNotOpenedWithPassthrough) {
  store_->Put("a", std::string(2 * kMiB, 'x'));
  Start(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  const auto before = Open(node);
  EXPECT_EQ(before->mode, OpenMode::kCached);
  Warm("a");
  queue_->Stop();
  const auto during = Open(node);
  EXPECT_EQ(during->mode, OpenMode::kCached);
  vfs_->Release(node, before->handle);
  vfs_->Release(node, during->handle);
  const auto after = Open(node);
  EXPECT_EQ(after->mode, OpenMode::kPassthrough);
  vfs_->Release(node, after->handle);
}

TEST_F(VfsTest, ReadingSomeFilesOfADirectoryFetchesTheOthersAhead) {
  for (int i = 0; i < 40; ++i) store_->Put(absl::StrCat("d/", i), std::string(100'000, 'x'));
  Start(Profile::kSmallFiles);
  const NodeId directory = Lookup(kRootNode, "d");
  for (int i = 0; i < 20; ++i) {
    const NodeId node = Lookup(directory, absl::StrCat(39 - i));
    EXPECT_EQ(Read(node, 0, 0, 128 * 1024)->size(), 100'000u);
  }
  queue_->Stop();
  uint64_t cached = 0;
  for (const tier::TierStats& stats : cache_->Stats()) cached += stats.files_complete;
  EXPECT_GT(cached, 20u);
}

TEST_F(VfsTest, AFewFilesOfADirectoryFetchNoOthers) {
  for (int i = 0; i < 40; ++i) store_->Put(absl::StrCat("d/", i), std::string(100'000, 'x'));
  Start(Profile::kSmallFiles);
  const NodeId directory = Lookup(kRootNode, "d");
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(Read(Lookup(directory, absl::StrCat(i)), 0, 0, 128 * 1024).ok());
  }
  queue_->Stop();
  EXPECT_EQ(cache_->Stats()[0].files_complete, 3u);
}

TEST_F(VfsTest, XattrsTellVersionSourceAndWhatIsCached) {
  store_->Put("a", std::string(3 * kMiB, 'x'), "etag-1");
  Start(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  EXPECT_EQ(*vfs_->GetXattr(node, "user.millrace.version"), "etag-1");
  EXPECT_EQ(*vfs_->GetXattr(node, "user.millrace.source"), "memory://");
  EXPECT_EQ(*vfs_->GetXattr(node, "user.millrace.cached"), "none");
  Warm("");
  queue_->Stop();
  EXPECT_EQ(*vfs_->GetXattr(node, "user.millrace.cached"), "complete");
  EXPECT_EQ(base::ErrnoOf(vfs_->GetXattr(node, "user.other").status()), ENODATA);
  EXPECT_EQ(vfs_->ListXattrs(kRootNode).size(), 0u);
}

TEST_F(VfsTest, EvictDropsWhatIsBelowAPathAndNothingElse) {
  store_->Put("a/1", std::string(200'000, 'x'));
  store_->Put("b/1", std::string(200'000, 'x'));
  Start(Profile::kLargeFiles);
  Warm("");
  queue_->Stop();
  EXPECT_GE(*vfs_->Evict("a"), 200'000u);
  EXPECT_EQ(cache_->Stats()[0].files, 1u);
  EXPECT_FALSE(vfs_->Evict("../a").ok());
}

TEST_F(VfsTest, WarmStopsWhenItIsToldTo) {
  for (int i = 0; i < 100; ++i) store_->Put(absl::StrCat("f", i), std::string(200'000, 'x'));
  Start(Profile::kLargeFiles);
  EXPECT_TRUE(
      absl::IsCancelled(vfs_->Warm({""}, [](const Vfs::WarmProgress&) { return false; }).status()));
}

TEST_F(VfsTest, UnknownNodesAreErrorsNotCrashes) {
  Start(Profile::kLargeFiles);
  EXPECT_FALSE(Open(123'456).ok());
  EXPECT_FALSE(Read(123'456, 0, 0, 10).ok());
  EXPECT_FALSE(vfs_->GetXattr(123'456, "user.millrace.version").ok());
  vfs_->Release(123'456, 1);
}

}  // namespace
}  // namespace millrace::vfs
