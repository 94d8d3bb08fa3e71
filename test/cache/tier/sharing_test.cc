// What a worker asks of the cache beyond what a mount does: blocks lent by their descriptor,
// leases, a bounded share for what is not in use, files of which only a part will come.
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/crc32c.h"
#include "common/base/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"
#include "test/support/manual_clock.h"

namespace millrace::tier {
namespace {

using ::millrace::testing::Compare;
using ::millrace::testing::ContentOf;
using ::millrace::testing::KeyOf;
using ::millrace::testing::ListFiles;
using ::millrace::testing::PutAll;
using ::millrace::testing::PutBlocks;
using ::millrace::testing::TemporaryDirectory;

constexpr char kSource[] = "s3://bucket/set";
constexpr char kGuest[] = "guest:s3://bucket/set";
constexpr uint64_t kFile = 4 * base::kMiB;

class SharingTest : public ::testing::Test {
 protected:
  SharingTest() : file_io_(io::NewPosixFileIo(2)) {
    options_.tiers = {{Medium::kSsd, directory_.path() + "/ssd", 32 * base::kMiB}};
    options_.sources_in_use = {kSource};
    options_.clock = &clock_;
  }

  void Open() {
    cache_.reset();
    absl::StatusOr<std::unique_ptr<TieredCache>> cache =
        TieredCache::Open(options_, file_io_.get());
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
  }
  std::shared_ptr<CachedFile> Fill(const FileKey& key) {
    std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
    if (file != nullptr) PutAll(*file).IgnoreError();
    return file;
  }
  bool Complete(const FileKey& key) {
    const std::shared_ptr<CachedFile> file = cache_->Find(key);
    return file != nullptr && file->complete();
  }
  static FileKey Guest(int i) { return KeyOf(absl::StrCat("g", i), kFile, "v1", kGuest); }
  static FileKey Own(int i) { return KeyOf(absl::StrCat("o", i), kFile); }

  TemporaryDirectory directory_;
  testing::ManualClock clock_;
  std::unique_ptr<io::FileIo> file_io_;
  CacheOptions options_;
  std::unique_ptr<TieredCache> cache_;
};

TEST_F(SharingTest, LendsTheBlocksOfAPartialFile) {
  Open();
  const FileKey key = KeyOf("a", 3 * kBlockSize + 10);
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  ASSERT_TRUE(PutBlocks(*file, 1, 1).ok());
  ASSERT_TRUE(PutBlocks(*file, 3, 1).ok());
  const auto data = file->OpenBlocks();
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_FALSE(file->BlockCrc(0).has_value());
  EXPECT_FALSE(file->BlockCrc(4).has_value());
  for (const uint64_t index : {uint64_t{1}, uint64_t{3}}) {
    const uint64_t size = index == 3 ? 10 : kBlockSize;
    std::string bytes(size, '\0');
    ASSERT_EQ(pread((*data)->fd(), bytes.data(), size, static_cast<off_t>(index * kBlockSize)),
              static_cast<ssize_t>(size));
    EXPECT_EQ(bytes, ContentOf("a", "v1", index * kBlockSize, size));
    EXPECT_EQ(file->BlockCrc(index), base::Crc32c(0, bytes));
  }
}

TEST_F(SharingTest, BlocksOfAnotherBootAreNotLentBeforeTheirCheck) {
  options_.boot_id = "one";
  Open();
  Fill(Own(1));
  options_.boot_id = "two";
  Open();
  // The background check starts when the file is found; this one is listed without.
  cache_->ForEach([](CachedFile& file) { EXPECT_FALSE(file.BlockCrc(0).has_value()); });
  const std::shared_ptr<CachedFile> file = cache_->Find(Own(1));
  ASSERT_EQ(testing::ReadAll(*file, 0, kFile).value(), ContentOf("o1", "v1", 0, kFile));
  EXPECT_TRUE(file->BlockCrc(0).has_value());
}

TEST_F(SharingTest, RecheckDropsABlockThatIsDamagedOnDisk) {
  Open();
  const FileKey key = KeyOf("a", 2 * kBlockSize + 10);
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  ASSERT_TRUE(PutBlocks(*file, 0, 2).ok());
  EXPECT_TRUE(file->Recheck(0));
  ASSERT_EQ(pwrite((*file->OpenBlocks())->fd(), "damage", 6, 100), 6);
  EXPECT_FALSE(file->Recheck(0));
  EXPECT_FALSE(file->HasBlock(0));
  EXPECT_TRUE(file->Recheck(1));
  EXPECT_FALSE(file->Recheck(2));
  EXPECT_EQ(cache_->Stats()[0].faults_damaged, 1u);
}

// Files that nobody holds leave first, so all are held here; the first is the next to leave.
class LeaseTest : public SharingTest {
 protected:
  bool FirstStays(absl::Duration lease_age, bool leased) {
    options_.policy = EvictionPolicy::kSieve;
    Open();
    std::shared_ptr<CachedFile> first = Fill(Own(0));
    std::shared_ptr<const void> lease;
    if (leased) lease = first->Lease();
    clock_.Advance(lease_age);
    std::vector<std::shared_ptr<CachedFile>> held;
    for (int i = 1; i <= 10; ++i) held.push_back(Fill(Own(i)));
    EXPECT_GE(cache_->Stats()[0].evictions_quota, 2u);
    EXPECT_EQ(Compare(*first), "");
    return !first->evicted();
  }
};

TEST_F(LeaseTest, ALeasedFileStays) { EXPECT_TRUE(FirstStays(absl::ZeroDuration(), true)); }

TEST_F(LeaseTest, AFileWithoutALeaseLeaves) {
  EXPECT_FALSE(FirstStays(absl::ZeroDuration(), false));
}

TEST_F(LeaseTest, AForgottenLeaseEndsByItself) {
  EXPECT_FALSE(FirstStays(kLeaseTime + absl::Seconds(1), true));
}

TEST_F(SharingTest, AUserEvictsALeasedFileAndItsHolderReadsOn) {
  Open();
  Fill(Own(0));
  const std::shared_ptr<CachedFile> file = cache_->Find(Own(0));
  const std::shared_ptr<const void> lease = file->Lease();
  EXPECT_EQ(cache_->Evict(kSource, ""), kFile);
  EXPECT_TRUE(file->evicted());
  EXPECT_EQ(Compare(*file), "");
  EXPECT_EQ(cache_->Find(Own(0)), nullptr);
}

TEST_F(SharingTest, WhatIsNotInUseHasABoundedShare) {
  options_.idle_share = 0.5;
  Open();
  for (int i = 0; i < 12; ++i) Fill(Guest(i));
  // Each new one pushed out another.
  EXPECT_LE(cache_->Stats()[0].used_bytes, 16 * base::kMiB);
  EXPECT_TRUE(Complete(Guest(11)));
  for (int i = 0; i < 8; ++i) Fill(Own(i));
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(Complete(Own(i))) << i;
  for (int i = 0; i < 12; ++i) EXPECT_FALSE(Complete(Guest(i))) << i;
}

TEST_F(SharingTest, AFileLargerThanTheShareKeepsWhatFits) {
  options_.idle_share = 0.5;
  Open();
  const FileKey key = KeyOf("big", 24 * base::kMiB, "v1", kGuest);
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  ASSERT_NE(file, nullptr);
  for (uint64_t block = 0; block < key.size / kBlockSize; ++block) {
    PutBlocks(*file, block, 1).IgnoreError();
  }
  EXPECT_FALSE(file->evicted());
  EXPECT_EQ(cache_->Stats()[0].used_bytes, 16 * base::kMiB);
  EXPECT_EQ(Compare(*file), "");
}

TEST_F(SharingTest, AFileLargerThanTheQuotaIsKeptInPart) {
  Open();
  const FileKey key = KeyOf("huge", uint64_t{3} << 30);
  EXPECT_EQ(cache_->FindOrAdmit(key), nullptr);
  options_.expected_bytes = [](const FileKey& file) { return file.size / 128; };
  Open();
  EXPECT_TRUE(cache_->HasRoomFor(key));
  std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  ASSERT_NE(file, nullptr);
  EXPECT_TRUE(PutBlocks(*file, 4096, 192).ok());
  file.reset();
  EXPECT_EQ(cache_->Stats()[0].used_bytes, 24 * base::kMiB);
  // What is expected of the next one does not fit beside it.
  EXPECT_FALSE(cache_->HasRoomFor(KeyOf("huge2", uint64_t{3} << 30)));
  Open();
  EXPECT_EQ(cache_->Stats()[0].used_bytes, 24 * base::kMiB);
  EXPECT_NE(cache_->Find(key), nullptr);
}

TEST_F(SharingTest, FilesThatMovedAwayLeaveFirst) {
  Open();
  for (int i = 0; i < 8; ++i) Fill(Own(i));
  EXPECT_EQ(Fill(Own(8)), nullptr);
  cache_->Reclassify([](const FileKey& key) { return key.path != "o3"; });
  EXPECT_TRUE(Complete(Own(3)));
  Fill(Own(8));
  EXPECT_TRUE(Complete(Own(8)));
  EXPECT_FALSE(Complete(Own(3)));
  // Back again before anybody wanted the room.
  cache_->Reclassify([](const FileKey& key) { return key.path != "o4"; });
  cache_->Reclassify([](const FileKey&) { return true; });
  EXPECT_EQ(Fill(Own(9)), nullptr);
  EXPECT_TRUE(Complete(Own(4)));
}

TEST_F(SharingTest, ForgetsWhatNeverCame) {
  Open();
  ASSERT_NE(cache_->FindOrAdmit(Own(0)), nullptr);
  Fill(Own(1));
  EXPECT_EQ(cache_->Stats()[0].files, 2u);
  cache_->ForgetEmpty(Own(0));
  cache_->ForgetEmpty(Own(1));
  EXPECT_EQ(cache_->Stats()[0].files, 1u);
  EXPECT_TRUE(Complete(Own(1)));
}

}  // namespace
}  // namespace millrace::tier
