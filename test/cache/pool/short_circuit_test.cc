// Files of the worker on this node as if they were in the cache.
#include "cache/pool/short_circuit.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "cache/tier/no_cache.h"
#include "common/base/units.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"
#include "test/support/fake_pool.h"
#include "test/support/faulty_file_io.h"
#include "test/support/sim_clock.h"

namespace millrace::pool {
namespace {

using base::kMiB;
using testing::ContentOf;
using testing::FaultyFileIo;
using testing::KeyOf;
using testing::PutAll;
using testing::PutBlocks;
using testing::ReadAll;
using tier::CachedFile;
using tier::FileKey;

class ShortCircuitTest : public ::testing::Test {
 protected:
  void SetUp() override { Make(tier::NewNoCache()); }

  void Make(std::unique_ptr<tier::TieredCache> local) {
    cache_ = std::make_unique<ShortCircuitCache>(std::move(local), &pool_, 3, &file_io_, &clock_);
  }
  void MakeWithTier() {
    tier::CacheOptions options;
    options.tiers.push_back({tier::Medium::kSsd, directory_.path() + "/tier", 64 * kMiB});
    auto local = tier::TieredCache::Open(options, posix_.get());
    ASSERT_TRUE(local.ok()) << local.status();
    Make(*std::move(local));
  }
  void PutAtWorker(const FileKey& key) {
    pool_.Put(key, ContentOf(key.path, key.version, 0, key.size));
  }

  testing::TemporaryDirectory directory_;
  std::unique_ptr<io::FileIo> posix_ = io::NewPosixFileIo(2);
  FaultyFileIo file_io_{posix_.get()};
  test::SimClock clock_;
  test::FakePool pool_;
  std::unique_ptr<ShortCircuitCache> cache_;
};

TEST_F(ShortCircuitTest, WhatTheWorkerHasIsReadThroughItsFile) {
  const FileKey key = KeyOf("a", 3 * kMiB + 77);
  EXPECT_EQ(cache_->FindOrAdmit(key), nullptr);
  PutAtWorker(key);
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  ASSERT_NE(file, nullptr);
  EXPECT_TRUE(file->borrowed());
  EXPECT_TRUE(file->complete());
  EXPECT_FALSE(file->evicted());
  EXPECT_TRUE(file->Has(0, key.size));
  EXPECT_EQ(testing::Compare(*file), "");
  for (const uint64_t offset : {uint64_t{0}, kMiB - 5, key.size - 100}) {
    EXPECT_EQ(*ReadAll(*file, offset, std::min<uint64_t>(kMiB, key.size - offset)),
              ContentOf("a", "v1", offset, std::min<uint64_t>(kMiB, key.size - offset)));
    std::string now(100, '\0');
    const auto got = file->ReadNow(offset, absl::MakeSpan(now));
    ASSERT_TRUE(got.ok() && got->has_value());
    EXPECT_EQ(now, ContentOf("a", "v1", offset, 100));
  }
  std::string bytes(100, '\0');
  EXPECT_EQ(pread((*file->Open())->fd(), bytes.data(), 100, 5000), 100);
  EXPECT_EQ(bytes, ContentOf("a", "v1", 5000, 100));
}

TEST_F(ShortCircuitTest, TheWorkerKeepsAFileAsLongAsItIsBorrowed) {
  const FileKey key = KeyOf("a", 2 * kMiB);
  PutAtWorker(key);
  std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  std::shared_ptr<const tier::OpenData> data = *file->Open();
  EXPECT_FALSE(pool_.Evict(key));
  file.reset();
  EXPECT_FALSE(pool_.Evict(key));  // Somebody has it open still.
  data.reset();
  EXPECT_EQ(pool_.leases(), 0u);
  EXPECT_TRUE(pool_.Evict(key));
  EXPECT_EQ(cache_->Find(key), nullptr);
}

TEST_F(ShortCircuitTest, SmallFilesAreNotAskedFor) {
  const FileKey key = KeyOf("small", ShortCircuitCache::kBorrowedMin);
  PutAtWorker(key);
  EXPECT_EQ(cache_->FindOrAdmit(key), nullptr);
  EXPECT_EQ(pool_.asked(), 0u);
}

TEST_F(ShortCircuitTest, AVersionOfItsOwnForEachVersion) {
  PutAtWorker(KeyOf("a", 2 * kMiB, "v1"));
  EXPECT_EQ(cache_->Find(KeyOf("a", 2 * kMiB, "v2")), nullptr);
}

TEST_F(ShortCircuitTest, TheLocalCacheComesFirst) {
  MakeWithTier();
  const FileKey key = KeyOf("a", 2 * kMiB);
  {
    const std::shared_ptr<CachedFile> own = cache_->FindOrAdmit(key);
    ASSERT_NE(own, nullptr);
    EXPECT_FALSE(own->borrowed());
    ASSERT_TRUE(PutBlocks(*own, 0, 3).ok());
    // The worker has it all before this cache does.
    PutAtWorker(key);
    EXPECT_TRUE(cache_->Find(key)->borrowed());
    ASSERT_TRUE(PutAll(*own).ok());
    const size_t asked = pool_.asked();
    EXPECT_EQ(cache_->Find(key), own);
    EXPECT_EQ(cache_->FindOrAdmit(key), own);
    EXPECT_EQ(pool_.asked(), asked);
  }
  EXPECT_EQ(pool_.leases(), 0u);
  EXPECT_EQ(cache_->Stats().size(), 1u);
  EXPECT_GT(cache_->RoomBytes(), 0u);
  EXPECT_GE(cache_->Evict(key.source, "a"), 2 * kMiB);
  EXPECT_TRUE(cache_->Close().ok());
}

TEST_F(ShortCircuitTest, WithoutTheWorkerWhatIsOpenStaysReadableAndCountsAsEvicted) {
  const FileKey key = KeyOf("a", 2 * kMiB);
  PutAtWorker(key);
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  pool_.Disconnect();
  pool_.SetAway(true);
  EXPECT_TRUE(file->evicted());
  EXPECT_TRUE(file->complete());
  EXPECT_EQ(testing::Compare(*file), "");
  EXPECT_EQ(cache_->Find(key), nullptr);
  pool_.SetAway(false);
  const std::shared_ptr<CachedFile> again = cache_->Find(key);
  ASSERT_NE(again, nullptr);
  EXPECT_FALSE(again->evicted());
  EXPECT_EQ(pool_.leases(), 1u);
}

TEST_F(ShortCircuitTest, AFileThatTheWorkerDroppedAllTheSameCountsAsEvicted) {
  const FileKey key = KeyOf("a", 2 * kMiB);
  PutAtWorker(key);
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  EXPECT_FALSE(file->evicted());
  pool_.Unlink(key);
  EXPECT_TRUE(file->evicted());
  EXPECT_EQ(testing::Compare(*file), "");
}

TEST_F(ShortCircuitTest, BorrowsOnlySoMany) {
  std::vector<std::shared_ptr<CachedFile>> files;
  for (const char* name : {"a", "b", "c", "d"}) {
    PutAtWorker(KeyOf(name, 2 * kMiB));
    files.push_back(cache_->FindOrAdmit(KeyOf(name, 2 * kMiB)));
  }
  EXPECT_NE(files[2], nullptr);
  EXPECT_EQ(files[3], nullptr);
  files[0].reset();
  EXPECT_NE(cache_->FindOrAdmit(KeyOf("d", 2 * kMiB)), nullptr);
}

TEST_F(ShortCircuitTest, WhatCannotBeReadIsNotBorrowedAgainSoon) {
  const FileKey key = KeyOf("a", 2 * kMiB);
  PutAtWorker(key);
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  file_io_.Set({.read_fails_from = 0});
  EXPECT_FALSE(ReadAll(*file, 0, 4096).ok());
  file_io_.Heal();
  EXPECT_FALSE(file->complete());
  EXPECT_FALSE(file->Has(0, 4096));
  EXPECT_FALSE(file->HasBlock(0));
  EXPECT_TRUE(file->evicted());
  EXPECT_EQ(cache_->FindOrAdmit(key), nullptr);
  clock_.Advance(ShortCircuitCache::kFaultKept);
  EXPECT_NE(cache_->FindOrAdmit(key), nullptr);
}

TEST_F(ShortCircuitTest, AFileThatIsNotTheObjectIsRefused) {
  const FileKey key = KeyOf("a", 2 * kMiB);
  pool_.Put(key, ContentOf("a", "v1", 0, key.size - 1));
  EXPECT_EQ(cache_->FindOrAdmit(key), nullptr);
  EXPECT_EQ(pool_.leases(), 0u);
}

TEST_F(ShortCircuitTest, AFileThatShrinksIsAFaultNotAShortRead) {
  const FileKey key = KeyOf("a", 2 * kMiB);
  PutAtWorker(key);
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  const std::string path = absl::StrCat("/proc/self/fd/", (*file->Open())->fd());
  ASSERT_EQ(truncate(path.c_str(), kMiB), 0);
  std::string bytes(4096, '\0');
  EXPECT_EQ(file->ReadNow(kMiB - 100, absl::MakeSpan(bytes)).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_FALSE(file->complete());
}

}  // namespace
}  // namespace millrace::pool
