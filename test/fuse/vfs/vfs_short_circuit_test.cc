// A mount without a cache of its own, beside a worker that has one.
#include <array>

#include "gtest/gtest.h"
#include "test/support/vfs_fixture.h"

namespace millrace::vfs {
namespace {

using base::kMiB;

constexpr char kAttributeCached[] = "user.millrace.cached";

class Recorder final : public ReadObserver {
 public:
  void OnRead(size_t, fetch::Origin origin, uint64_t bytes, absl::Duration) override {
    base::MutexLock lock(&mutex_);
    read_[static_cast<size_t>(origin)] += bytes;
  }
  void OnPassthroughOpen(size_t, fetch::Origin origin, uint64_t file_size) override {
    base::MutexLock lock(&mutex_);
    opened_[static_cast<size_t>(origin)] += file_size;
  }
  uint64_t read(fetch::Origin origin) {
    base::MutexLock lock(&mutex_);
    return read_[static_cast<size_t>(origin)];
  }
  uint64_t opened(fetch::Origin origin) {
    base::MutexLock lock(&mutex_);
    return opened_[static_cast<size_t>(origin)];
  }

 private:
  base::Mutex mutex_;
  std::array<uint64_t, fetch::kOrigins> read_ ABSL_GUARDED_BY(mutex_) = {};
  std::array<uint64_t, fetch::kOrigins> opened_ ABSL_GUARDED_BY(mutex_) = {};
};

class VfsShortCircuitTest : public test::VfsFixture {
 protected:
  VfsShortCircuitTest() { observer_ = &recorder_; }

  const std::string bytes_ = std::string(2 * kMiB, 'x') + "end";
  Recorder recorder_;
};

TEST_F(VfsShortCircuitTest, AFileIsReadThroughItsSocketUntilTheWorkerHasAllOfIt) {
  store_->Put("a", bytes_);
  StartWithWorker(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  const auto first = Open(node);
  EXPECT_NE(first->mode, OpenMode::kPassthrough);
  EXPECT_EQ(*Read(node, first->handle, 2 * kMiB, 100), "end");
  EXPECT_GT(recorder_.read(fetch::Origin::kStore), 0u);
  EXPECT_NE(*vfs_->GetXattr(node, kAttributeCached), "complete");
  vfs_->Release(node, first->handle);

  PutAtWorker("a", bytes_);
  clock_.Advance(fetch::Object::kLookAgain);
  const auto second = Open(node);
  EXPECT_EQ(second->mode, OpenMode::kPassthrough);
  EXPECT_EQ(recorder_.opened(fetch::Origin::kShortCircuit), bytes_.size());
  EXPECT_EQ(recorder_.opened(fetch::Origin::kLocal), 0u);
  EXPECT_EQ(*vfs_->GetXattr(node, kAttributeCached), "complete");
  // What reaches the process all the same has the worker's file answer it.
  EXPECT_EQ(*Read(node, second->handle, 2 * kMiB, 100), "end");
  EXPECT_EQ(recorder_.read(fetch::Origin::kShortCircuit), 3u);
  const auto hit = vfs_->FindHit(node, kMiB, kMiB);
  ASSERT_TRUE(hit.has_value());
  vfs_->CountHit(*hit, absl::ZeroDuration());
  EXPECT_EQ(recorder_.read(fetch::Origin::kShortCircuit), 3u + kMiB);
  vfs_->Release(node, second->handle);
}

TEST_F(VfsShortCircuitTest, WithoutOpenTheFirstReadLooksForTheWorkersFile) {
  store_->Put("a", bytes_);
  StartWithWorker(Profile::kSmallFiles);
  const NodeId node = Lookup(kRootNode, "a");
  EXPECT_EQ(Read(node, 0, 0, 100)->size(), 100u);
  PutAtWorker("a", bytes_);
  clock_.Advance(fetch::Object::kLookAgain);
  EXPECT_EQ(Read(node, 0, kMiB, 100)->size(), 100u);
  EXPECT_EQ(recorder_.read(fetch::Origin::kShortCircuit), 0u);
  EXPECT_EQ(Read(node, 0, 0, 100)->size(), 100u);
  EXPECT_EQ(recorder_.read(fetch::Origin::kShortCircuit), 100u);
}

TEST_F(VfsShortCircuitTest, LeasesEndWithTheFilesThatHoldThem) {
  store_->Put("a", bytes_);
  StartWithWorker(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  const tier::FileKey key = PutAtWorker("a", bytes_);
  const auto opened = Open(node);
  ASSERT_EQ(opened->mode, OpenMode::kPassthrough);
  vfs_->DropEvicted();
  ASSERT_TRUE(vfs_->Evict("a").ok());
  EXPECT_FALSE(worker_.Evict(key));  // It is open.
  vfs_->Release(node, opened->handle);
  EXPECT_FALSE(worker_.Evict(key));  // Kept for the next open.
  ASSERT_TRUE(vfs_->Evict("a").ok());
  EXPECT_TRUE(worker_.Evict(key));
  EXPECT_EQ(backing_.open(), 0u);
}

TEST_F(VfsShortCircuitTest, AFileWhoseWorkerDiedIsReadOnAndBorrowedAgainWhenItIsNeeded) {
  store_->Put("a", bytes_);
  StartWithWorker(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  PutAtWorker("a", bytes_);
  const auto before = Open(node);
  ASSERT_EQ(before->mode, OpenMode::kPassthrough);
  worker_.Disconnect();
  worker_.SetAway(true);
  vfs_->DropEvicted();
  EXPECT_EQ(*Read(node, before->handle, 2 * kMiB, 100), "end");
  EXPECT_EQ(recorder_.read(fetch::Origin::kShortCircuit), 3u);
  // One more open of what is open: it goes on as it is.
  const auto during = Open(node);
  EXPECT_EQ(during->backing_id, before->backing_id);
  vfs_->Release(node, during->handle);
  vfs_->Release(node, before->handle);
  // The space of a file that the worker may have dropped is given back once nobody has it open.
  vfs_->DropEvicted();
  EXPECT_EQ(backing_.open(), 0u);
  const auto without = Open(node);
  EXPECT_NE(without->mode, OpenMode::kPassthrough);
  vfs_->Release(node, without->handle);
  worker_.SetAway(false);
  clock_.Advance(fetch::Object::kLookAgain);
  const auto after = Open(node);
  EXPECT_EQ(after->mode, OpenMode::kPassthrough);
  EXPECT_EQ(worker_.leases(), 1u);
  vfs_->Release(node, after->handle);
}

TEST_F(VfsShortCircuitTest, ASuccessorKeepsTheBackingIdAndTakesTheLeaseAgain) {
  store_->Put("a", bytes_);
  ledger_ = file_.Open();
  StartWithWorker(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  const tier::FileKey key = PutAtWorker("a", bytes_);
  const auto before = Open(node, {.unique = 2});
  ASSERT_EQ(before->mode, OpenMode::kPassthrough);
  worker_.Disconnect();  // The process's end is its connection's.
  Die(Profile::kLargeFiles);
  EXPECT_FALSE(worker_.Evict(key));
  EXPECT_EQ(worker_.leases(), 1u);
  const auto during = Open(node, {.unique = 4});
  EXPECT_EQ(during->mode, OpenMode::kPassthrough);
  EXPECT_EQ(during->backing_id, before->backing_id);
  EXPECT_EQ(backing_.open(), 1u);

  // The same while the worker is away: the kernel reads what it has open, and a file that nobody
  // has open is given back.
  worker_.Disconnect();
  worker_.SetAway(true);
  Die(Profile::kLargeFiles);
  EXPECT_EQ(Open(node, {.unique = 6})->backing_id, before->backing_id);
  vfs_->Release(node, before->handle);
  vfs_->Release(node, during->handle);
  EXPECT_EQ(backing_.open(), 1u);
  Die(Profile::kLargeFiles);
  EXPECT_EQ(backing_.open(), 1u);
}

// The page cache would cost the first reader two copies, and is all that keeps the file for others.
TEST_F(VfsShortCircuitTest, ALargeFileIsReadDirectlyAtFirstAndThroughThePageCacheFromThenOn) {
  store_->Put("large", std::string(16 * kMiB, 'x'));
  store_->Put("small", std::string(2 * kMiB, 'x'));
  StartWithWorker(Profile::kLargeFiles);
  const NodeId large = Lookup(kRootNode, "large");
  const NodeId small = Lookup(kRootNode, "small");
  const auto first = Open(large);
  const auto second = Open(large);
  EXPECT_EQ(first->mode, OpenMode::kDirect);
  EXPECT_EQ(second->mode, OpenMode::kCached);
  EXPECT_EQ(Open(small)->mode, OpenMode::kCached);
  vfs_->Release(large, first->handle);
  vfs_->Release(large, second->handle);
  PutAtWorker("large", std::string(16 * kMiB, 'x'));
  clock_.Advance(fetch::Object::kLookAgain);
  EXPECT_EQ(Open(large)->mode, OpenMode::kPassthrough);
}

// Of 128 KiB a reader of 4 KiB here and there would not want the rest.
TEST_F(VfsShortCircuitTest, RandomReadsLeaveNothingInMemory) {
  store_->Put("a", std::string(16 * kMiB, 'x'));
  StartWithWorker(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  const auto opened = Open(node);
  for (const uint64_t block : {100, 7, 50, 3, 90}) {
    EXPECT_EQ(Read(node, opened->handle, block * fetch::kBlockSize + 8192, 4096)->size(), 4096u);
  }
  queue_->Stop();
  EXPECT_EQ(pool_->used_blocks(), 0u);
  vfs_->Release(node, opened->handle);
}

}  // namespace
}  // namespace millrace::vfs
