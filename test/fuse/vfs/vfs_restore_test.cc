// Open files that go on where the process that opened them died.
#include <cerrno>

#include "gtest/gtest.h"
#include "test/support/vfs_fixture.h"

namespace millrace::vfs {
namespace {

using base::kMiB;

class VfsRestoreTest : public test::VfsFixture {};

// The kernel answers EIO when one inode is opened both ways, or with another backing id.
TEST_F(VfsRestoreTest, AFileOpenWithPassthroughKeepsItsBackingId) {
  store_->Put("a", std::string(2 * kMiB, 'x'));
  StartKept(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  Warm("");
  queue_->Stop();
  const auto before = Open(node, {.unique = 2});
  ASSERT_EQ(before->mode, OpenMode::kPassthrough);
  Die(Profile::kLargeFiles);
  const auto during = Open(node, {.unique = 4});
  EXPECT_EQ(during->mode, OpenMode::kPassthrough);
  EXPECT_EQ(during->backing_id, before->backing_id);
  EXPECT_NE(during->handle, before->handle);
  EXPECT_EQ(backing_.open(), 1u);
  vfs_->Release(node, before->handle);
  vfs_->Release(node, during->handle);
  EXPECT_EQ(ledger_->stats().slots, 1u);  // The id, for the next open.
}

// Also when the cache has lost the file meanwhile: the kernel still reads it.
TEST_F(VfsRestoreTest, AFileOpenWithPassthroughStaysSoWithoutTheCache) {
  store_->Put("a", std::string(2 * kMiB, 'x'));
  StartKept(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  Warm("");
  queue_->Stop();
  const auto before = Open(node, {.unique = 2});
  ASSERT_TRUE(vfs_->Evict("a").ok());
  Die(Profile::kLargeFiles);
  const auto during = Open(node, {.unique = 4});
  EXPECT_EQ(during->backing_id, before->backing_id);
  vfs_->DropEvicted();
  EXPECT_EQ(backing_.open(), 1u);
  vfs_->Release(node, before->handle);
  EXPECT_EQ(backing_.open(), 1u);
  vfs_->Release(node, during->handle);
  EXPECT_EQ(backing_.open(), 0u);
}

TEST_F(VfsRestoreTest, AFileOpenInCachedModeStaysSo) {
  store_->Put("a", std::string(2 * kMiB, 'x'));
  StartKept(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  const auto before = Open(node, {.unique = 2});
  ASSERT_EQ(before->mode, OpenMode::kCached);
  Warm("");
  queue_->Stop();
  Die(Profile::kLargeFiles);
  const auto during = Open(node, {.unique = 4});
  EXPECT_EQ(during->mode, OpenMode::kCached);
  EXPECT_EQ(Read(node, before->handle, 0, 100)->size(), 100u);
  vfs_->Release(node, before->handle);
  EXPECT_EQ(Open(node, {.unique = 6})->mode, OpenMode::kCached);
  vfs_->Release(node, during->handle);
  Die(Profile::kLargeFiles);
  EXPECT_EQ(Open(node, {.unique = 8})->mode, OpenMode::kCached);  // One was never closed.
}

TEST_F(VfsRestoreTest, AnOpenThatIsSentAgainIsOneOpen) {
  store_->Put("a", std::string(2 * kMiB, 'x'));
  StartKept(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  Warm("");
  queue_->Stop();
  const auto first = Open(node, {.unique = 2});
  Die(Profile::kLargeFiles);
  const auto again = Open(node, {.unique = 2, .resent = true});
  EXPECT_EQ(again->handle, first->handle);
  EXPECT_EQ(again->mode, first->mode);
  EXPECT_EQ(again->backing_id, first->backing_id);
  Die(Profile::kLargeFiles);
  EXPECT_EQ(Open(node, {.unique = 2, .resent = true})->handle, first->handle);
  vfs_->Release(node, first->handle);
  // Nothing is open any more: the cached file may be let go of.
  ASSERT_TRUE(vfs_->Evict("a").ok());
  EXPECT_EQ(backing_.open(), 0u);
  EXPECT_EQ(ledger_->stats().slots, 0u);
}

TEST_F(VfsRestoreTest, AReleaseThatIsSentAgainClosesNoOther) {
  store_->Put("a", std::string(2 * kMiB, 'x'));
  StartKept(Profile::kLargeFiles);
  const NodeId node = Lookup(kRootNode, "a");
  const auto first = Open(node, {.unique = 2});
  vfs_->Release(node, first->handle);
  const auto second = Open(node, {.unique = 4});
  Die(Profile::kLargeFiles);
  vfs_->Release(node, first->handle);
  Warm("");
  queue_->Stop();
  EXPECT_EQ(Open(node, {.unique = 6})->mode, OpenMode::kCached);  // The second is still open.
  vfs_->Release(node, second->handle);
  vfs_->Release(node, 12'345);
  vfs_->Release(77, second->handle);
}

// Registered for a later open, and evicted while nobody served the mount.
TEST_F(VfsRestoreTest, BackingIdsOfWhatIsNoLongerThereAreGivenBack) {
  store_->Put("a", std::string(2 * kMiB, 'x'));
  store_->Put("b", std::string(2 * kMiB, 'x'));
  StartKept(Profile::kLargeFiles);
  const NodeId a = Lookup(kRootNode, "a");
  const NodeId b = Lookup(kRootNode, "b");
  Warm("");
  queue_->Stop();
  vfs_->Release(a, Open(a, {.unique = 2})->handle);
  vfs_->Release(b, Open(b, {.unique = 4})->handle);
  EXPECT_EQ(backing_.open(), 2u);
  shared_.cache->Evict("memory://", "a");
  Die(Profile::kLargeFiles);
  EXPECT_EQ(backing_.open(), 1u);
  // And of a node that the kernel has forgotten.
  vfs_->Forget(b, 1);
  Die(Profile::kLargeFiles);
  EXPECT_EQ(backing_.open(), 0u);
  EXPECT_EQ(ledger_->stats().slots, 0u);
}

// The kernel remembers that OPEN was refused, for the life of the mount.
TEST_F(VfsRestoreTest, TheProfileIsNotChosenAgain) {
  store_->Put("a", "hello");
  StartKept(Profile::kAuto);
  const NodeId node = Lookup(kRootNode, "a");
  Die(Profile::kAuto);
  EXPECT_EQ(vfs_->profile(), Profile::kAuto);  // It died before.
  vfs_->SetProfile(Profile::kSmallFiles);
  Die(Profile::kAuto);
  EXPECT_EQ(vfs_->profile(), Profile::kSmallFiles);
  EXPECT_TRUE(Open(node)->without_open);
  EXPECT_EQ(*Read(node, 0, 0, 100), "hello");
  Die(Profile::kLargeFiles);
  EXPECT_EQ(vfs_->profile(), Profile::kSmallFiles);
}

TEST_F(VfsRestoreTest, DirectoryStreamsOfAPredecessorGoOn) {
  for (int i = 0; i < 10; ++i) store_->Put(absl::StrCat("f", i), "x");
  StartKept(Profile::kLargeFiles);
  const auto read = [&](uint64_t handle, uint64_t offset, size_t max) {
    test::Once<absl::Status> promise;
    auto names = std::make_shared<std::vector<std::string>>();
    vfs_->ReadDirectory(
        kRootNode, handle, offset, false,
        [names, max](const Tree::DirectoryEntry& entry) {
          if (names->size() == max) return false;
          names->emplace_back(entry.name);
          return true;
        },
        [&](absl::Status status) { promise.Set(std::move(status)); });
    EXPECT_TRUE(promise.Get().ok());
    return *names;
  };
  const uint64_t one = *vfs_->OpenDirectory(kRootNode);
  EXPECT_EQ(read(one, 0, 4).size(), 4u);
  Die(Profile::kLargeFiles);
  const uint64_t two = *vfs_->OpenDirectory(kRootNode);
  EXPECT_NE(one, two);
  EXPECT_EQ(read(one, 4, 100), (std::vector<std::string>{"f4", "f5", "f6", "f7", "f8", "f9"}));
  EXPECT_EQ(read(two, 0, 100).size(), 10u);
  vfs_->ReleaseDirectory(one);
  vfs_->ReleaseDirectory(two);
  vfs_->ReleaseDirectory(99);
  EXPECT_TRUE(absl::IsNotFound(vfs_->OpenDirectory(99).status()));
}

}  // namespace
}  // namespace millrace::vfs
