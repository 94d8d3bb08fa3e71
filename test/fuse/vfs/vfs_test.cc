// The file system without FUSE: how files are opened, read ahead, warmed and evicted.
#include "fuse/vfs/vfs.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/units.h"
#include "gtest/gtest.h"
#include "test/support/vfs_fixture.h"

namespace millrace::vfs {
namespace {

using base::kMiB;

class VfsTest : public test::VfsFixture {};

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
  test::Once<absl::StatusOr<Vfs::OpenReply>> promise;
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
  EXPECT_EQ(backing_.open(), 1u);
  vfs_->Release(node, second->handle);
}

// The kernel answers EIO when one inode is opened both ways.
// Two Files of one node would have one backing id, and the end of the first would take it from the
// second: every open of it failed with EIO from then on.
TEST_F(VfsTest, AnOpenWhileTheBackingIdIsGivenBackGetsAnIdThatLives) {
  store_->Put("a", std::string(300'000, 'a'));
  store_->Put("b", "b");
  Start(Profile::kLargeFiles);
  Warm("");
  const NodeId node = Lookup(kRootNode, "a");
  const auto first = Open(node);
  ASSERT_EQ(first->mode, OpenMode::kPassthrough);
  vfs_->Release(node, first->handle);
  test::Once<absl::StatusOr<Vfs::OpenReply>> second;
  std::thread opener;
  backing_.OnClose([&] {
    opener = std::thread([&] { second.Set(Open(node)); });
    // It has to wait for this Close, or gets the id that is about to go.
    EXPECT_FALSE(second.WaitFor(absl::Milliseconds(100)));
  });
  // Of another file: all that nobody has open let go of their ids.
  ASSERT_TRUE(vfs_->Evict("b").ok());
  const auto opened = second.Get();
  opener.join();
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->mode, OpenMode::kPassthrough);
  EXPECT_TRUE(backing_.IsOpen(node, opened->backing_id));
  vfs_->Release(node, opened->handle);
}

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

TEST_F(VfsTest, FileThatFillsInMemoryIsReadDirectly) {
  store_->Put("a", std::string(2 * kMiB, 'x'));
  store_->Put("small", std::string(1000, 'x'));
  Start(Profile::kLargeFiles, tier::Medium::kMem);
  const NodeId node = Lookup(kRootNode, "a");
  const auto before = Open(node);
  EXPECT_EQ(before->mode, OpenMode::kDirect);
  EXPECT_EQ(Open(Lookup(kRootNode, "small"))->mode, OpenMode::kCached);
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

TEST_F(VfsTest, FileOnADiskIsReadThroughThePageCache) {
  store_->Put("a", std::string(2 * kMiB, 'x'));
  Start(Profile::kLargeFiles, tier::Medium::kSsd);
  EXPECT_EQ(Open(Lookup(kRootNode, "a"))->mode, OpenMode::kCached);
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

TEST_F(VfsTest, OnlyCompleteFilesHaveTheirDataFileAnswer) {
  store_->Put("whole", std::string(100'000, 'x'));
  store_->Put("part", std::string(3 * kMiB, 'x'));
  Start(Profile::kSmallFiles);
  const NodeId whole = Lookup(kRootNode, "whole");
  const NodeId part = Lookup(kRootNode, "part");
  EXPECT_FALSE(vfs_->FindHit(whole, 0, 128 * 1024).has_value());
  Warm("whole");
  EXPECT_TRUE(Read(part, 0, 0, 4096).ok());
  queue_->Stop();
  const absl::optional<Vfs::Hit> hit = vfs_->FindHit(whole, 4096, 128 * 1024);
  ASSERT_TRUE(hit.has_value());
  EXPECT_EQ(hit->size, 100'000u - 4096);
  std::string bytes(hit->size, '\0');
  EXPECT_EQ(pread(hit->data->fd(), &bytes[0], bytes.size(), 4096), 100'000 - 4096);
  EXPECT_EQ(bytes, std::string(100'000 - 4096, 'x'));
  EXPECT_FALSE(vfs_->FindHit(whole, 100'000, 1).has_value());  // Nothing is there to answer.
  EXPECT_FALSE(vfs_->FindHit(part, 0, 4096).has_value());
  EXPECT_FALSE(vfs_->FindHit(whole + 100, 0, 4096).has_value());
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

// A store with workers in front that load what they are asked to, up to a number of bytes in all.
class PooledStore : public store::MemoryStore {
 public:
  absl::StatusOr<uint64_t> Warm(const store::GetRequest& request,
                                const store::CallOptions& call) override {
    base::MutexLock lock(&mutex_);
    ++running_;
    at_once_ = std::max(at_once_, running_);
    changed_.NotifyAll();
    while (held_ && !call.cancelled->load()) {
      changed_.WaitFor(&mutex_, absl::Milliseconds(10));
    }
    --running_;
    if (request.path == "bad") return absl::NotFoundError("the worker has no such source");
    if (call.cancelled->load()) return absl::CancelledError("cancelled");
    const uint64_t kept = std::min(request.length, room_);
    room_ -= kept;
    ranges_[request.path] += request.length;
    EXPECT_EQ(request.version, "v");
    EXPECT_LE(request.offset + request.length, request.file_size);
    return kept;
  }
  absl::Status Get(const store::GetRequest& request, store::BodySink sink,
                   const store::CallOptions& call) override {
    gets_.fetch_add(1);
    return MemoryStore::Get(request, sink, call);
  }

  void Hold(bool held) {
    base::MutexLock lock(&mutex_);
    held_ = held;
    changed_.NotifyAll();
  }
  void AwaitAtOnce(size_t count) {
    base::MutexLock lock(&mutex_);
    while (at_once_ < count) changed_.Wait(&mutex_);
  }
  size_t at_once() {
    base::MutexLock lock(&mutex_);
    return at_once_;
  }
  void SetRoom(uint64_t bytes) {
    base::MutexLock lock(&mutex_);
    room_ = bytes;
  }
  uint64_t Warmed(const std::string& path) {
    base::MutexLock lock(&mutex_);
    return ranges_[path];
  }
  size_t get_calls() const { return gets_.load(); }

 private:
  base::Mutex mutex_;
  base::CondVar changed_;
  std::atomic<size_t> gets_{0};
  size_t running_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t at_once_ ABSL_GUARDED_BY(mutex_) = 0;
  bool held_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t room_ ABSL_GUARDED_BY(mutex_) = UINT64_MAX;
  std::map<std::string, uint64_t> ranges_ ABSL_GUARDED_BY(mutex_);
};

// What the cache of the fixture refuses: larger than its tier.
constexpr uint64_t kTooLarge = 200 * kMiB;

TEST_F(VfsTest, WarmLetsWorkersLoadWhatIsNotKeptHere) {
  const auto store = std::make_shared<PooledStore>();
  store_ = store;
  store->PutClaimed("a", kTooLarge, "v");
  store->PutClaimed("b", kTooLarge + 1, "v");
  store->Put("small", std::string(kMiB, 'x'), "v");
  Start(Profile::kLargeFiles);
  store->Hold(true);
  std::thread worker([&] {
    store->AwaitAtOnce(8);  // Steps of both files on their way at once.
    store->Hold(false);
  });
  const Vfs::WarmProgress progress = Warm("");
  worker.join();
  EXPECT_EQ(progress.files_done, 3);
  EXPECT_EQ(progress.bytes_done, 2 * kTooLarge + 1 + kMiB);
  EXPECT_EQ(progress.bytes_refused, 0);
  EXPECT_EQ(store->Warmed("a"), kTooLarge);
  EXPECT_EQ(store->Warmed("b"), kTooLarge + 1);
  // What fits is kept here, as without workers; nothing else came here.
  EXPECT_EQ(store->Warmed("small"), 0);
  EXPECT_EQ(cache_->Stats()[0].files, 1u);
  EXPECT_EQ(store->get_calls(), 1u);
}

TEST_F(VfsTest, WarmTellsWhatWorkersRefusedAndWhatFailed) {
  const auto store = std::make_shared<PooledStore>();
  store_ = store;
  store->PutClaimed("a", kTooLarge, "v");
  store->PutClaimed("bad", kTooLarge, "v");
  store->SetRoom(kTooLarge / 2);
  Start(Profile::kLargeFiles);
  const Vfs::WarmProgress progress = Warm("");
  EXPECT_EQ(progress.files_done, 1);
  EXPECT_EQ(progress.files_failed, 1);
  EXPECT_EQ(progress.bytes_refused, kTooLarge / 2);
  EXPECT_EQ(progress.last_error, "bad: the worker has no such source");
}

TEST_F(VfsTest, WarmOfWorkersStopsWhenItIsToldTo) {
  const auto store = std::make_shared<PooledStore>();
  store_ = store;
  store->PutClaimed("a", 10'000 * kMiB, "v");
  Start(Profile::kLargeFiles);
  store->Hold(true);
  const auto progress =
      vfs_->Warm({""}, [&](const Vfs::WarmProgress&) { return store->at_once() < 2; });
  EXPECT_TRUE(absl::IsCancelled(progress.status())) << progress.status();
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
