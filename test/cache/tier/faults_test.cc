// Full and failing disks: by-passed, counted, survived. And tiers that pass their water marks.
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/errno_status.h"
#include "common/base/units.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"
#include "test/support/faulty_file_io.h"
#include "test/support/manual_clock.h"

namespace millrace::tier {
namespace {

using ::millrace::testing::Compare;
using ::millrace::testing::FaultyFileIo;
using ::millrace::testing::KeyOf;
using ::millrace::testing::ManualClock;
using ::millrace::testing::PutAll;
using ::millrace::testing::PutBlocks;
using ::millrace::testing::ReadAll;
using ::millrace::testing::TemporaryDirectory;

constexpr char kSource[] = "s3://bucket/set";

class FaultsTest : public ::testing::Test {
 protected:
  FaultsTest() : posix_(io::NewPosixFileIo(2)), file_io_(posix_.get()) {
    options_.tiers = {{Medium::kSsd, directory_.path() + "/ssd", 64 * base::kMiB}};
    options_.sources_in_use = {kSource};
    options_.clock = &clock_;
  }
  void Open() {
    cache_.reset();
    absl::StatusOr<std::unique_ptr<TieredCache>> cache = TieredCache::Open(options_, &file_io_);
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
  }
  std::shared_ptr<CachedFile> Fill(const FileKey& key) {
    std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
    if (file == nullptr) return nullptr;
    EXPECT_TRUE(PutAll(*file).ok());
    return file;
  }
  TierStats Stats(size_t tier = 0) { return cache_->Stats()[tier]; }
  // Files come and go in the background: polls.
  template <typename Condition>
  void Await(Condition condition) {
    while (!condition()) std::this_thread::yield();
  }

  TemporaryDirectory directory_;
  ManualClock clock_;
  std::unique_ptr<io::FileIo> posix_;
  FaultyFileIo file_io_;
  CacheOptions options_;
  std::unique_ptr<TieredCache> cache_;
};

TEST_F(FaultsTest, AFullDiskIsByPassed) {
  Open();
  FaultyFileIo::Plan full;
  full.space_bytes = 3 * kBlockSize;
  file_io_.Set(full);
  const auto file = cache_->FindOrAdmit(KeyOf("f", 10 * kBlockSize));
  ASSERT_TRUE(PutBlocks(*file, 0, 2).ok());
  const absl::Status status = PutBlocks(*file, 2, 4);
  EXPECT_EQ(base::ErrnoOf(status), ENOSPC);
  EXPECT_EQ(Stats().used_bytes, 2 * kBlockSize);
  EXPECT_GE(Stats().faults_disk, 1u);
  EXPECT_FALSE(file->HasBlock(2));
  file_io_.Heal();
  ASSERT_TRUE(PutAll(*file).ok());
  EXPECT_TRUE(file->complete());
  EXPECT_EQ(Compare(*file), "");
}

TEST_F(FaultsTest, ASmallFileThatFailsLeavesNothing) {
  Open();
  FaultyFileIo::Plan full;
  full.space_bytes = 500;
  file_io_.Set(full);
  const auto file = cache_->FindOrAdmit(KeyOf("f", 1000));
  EXPECT_FALSE(PutAll(*file).ok());
  file_io_.Heal();
  EXPECT_EQ(Stats().used_bytes, 0u);
  EXPECT_EQ(Stats().files, 0u);
  EXPECT_TRUE(file->evicted());
  EXPECT_NE(Fill(KeyOf("f", 1000)), nullptr);
}

TEST_F(FaultsTest, ATierThatKeepsFailingIsSetAside) {
  options_.tiers.push_back({Medium::kHdd, directory_.path() + "/hdd", 64 * base::kMiB});
  Open();
  const auto kept = Fill(KeyOf("kept", 1000));
  FaultyFileIo::Plan broken;
  broken.write_fails_from = 0;
  file_io_.Set(broken);
  for (int i = 0; i < 8; ++i) {
    const auto file = cache_->FindOrAdmit(KeyOf(absl::StrCat(i), 1000));
    EXPECT_FALSE(PutAll(*file).ok());
  }
  file_io_.Heal();
  // The next tier takes over; what the first has is still read.
  ASSERT_NE(Fill(KeyOf("next", 1000)), nullptr);
  EXPECT_EQ(Stats(1).files, 1u);
  EXPECT_EQ(Compare(*kept), "");
  EXPECT_EQ(Stats(0).files, 1u);
  clock_.Advance(absl::Seconds(61));
  ASSERT_NE(Fill(KeyOf("later", 1000)), nullptr);
  EXPECT_EQ(Stats(0).files, 2u);
}

TEST_F(FaultsTest, FaultsFarApartDoNotSetATierAside) {
  Open();
  FaultyFileIo::Plan broken;
  broken.write_fails_from = 0;
  for (int i = 0; i < 20; ++i) {
    file_io_.Set(broken);
    const auto file = cache_->FindOrAdmit(KeyOf(absl::StrCat(i), 1000));
    ASSERT_NE(file, nullptr);
    EXPECT_FALSE(PutAll(*file).ok());
    file_io_.Heal();
    clock_.Advance(absl::Seconds(5));
  }
  EXPECT_NE(Fill(KeyOf("f", 1000)), nullptr);
}

TEST_F(FaultsTest, AFailedReadDropsItsBlocks) {
  Open();
  auto file = Fill(KeyOf("f", 6 * kBlockSize));
  ASSERT_TRUE(file->complete());
  FaultyFileIo::Plan bad_sector;
  bad_sector.read_fails_from = 0;
  bad_sector.read_fails_count = 1;
  file_io_.Set(bad_sector);
  std::string buffer(100, 'x');
  const auto got = file->ReadNow(2 * kBlockSize + 5, absl::MakeSpan(buffer.data(), buffer.size()));
  EXPECT_EQ(base::ErrnoOf(got.status()), EIO);
  EXPECT_FALSE(file->HasBlock(2));
  EXPECT_TRUE(file->HasBlock(1));
  EXPECT_FALSE(file->complete());
  EXPECT_EQ(Stats().used_bytes, 5 * kBlockSize);
  EXPECT_EQ(Stats().faults_disk, 1u);
  EXPECT_EQ(Stats().files_complete, 0u);
  // It is written anew, and complete again.
  ASSERT_TRUE(PutBlocks(*file, 2, 1).ok());
  EXPECT_TRUE(file->complete());
  EXPECT_EQ(Compare(*file), "");
  EXPECT_TRUE(file->Open().ok());
  // Nothing of it is remembered wrongly.
  file.reset();
  Open();
  EXPECT_EQ(Stats().files_complete + (6 - Stats().used_bytes / kBlockSize), 1u);
}

TEST_F(FaultsTest, AFailedReadInTheBackgroundIsAMiss) {
  Open();
  const auto file = Fill(KeyOf("f", 3 * kBlockSize));
  FaultyFileIo::Plan bad;
  bad.read_fails_from = 0;
  bad.read_fails_count = 1;
  file_io_.Set(bad);
  EXPECT_FALSE(ReadAll(*file, 0, 10).ok());
  EXPECT_FALSE(file->HasBlock(0));
  EXPECT_TRUE(file->HasBlock(1));
}

TEST_F(FaultsTest, AnotherBootSeesADiskThatLies) {
  options_.boot_id = "boot 1";
  Open();
  Fill(KeyOf("f", 3 * kBlockSize));
  options_.boot_id = "boot 2";
  Open();
  FaultyFileIo::Plan liar;
  liar.read_corrupts_from = 0;
  file_io_.Set(liar);
  const auto file = cache_->Find(KeyOf("f", 3 * kBlockSize));
  EXPECT_FALSE(ReadAll(*file, 0, 10).ok());
  EXPECT_FALSE(file->HasBlock(0));
  EXPECT_GE(Stats().faults_damaged, 1u);
}

TEST_F(FaultsTest, ARealFullDisk) {
  const std::string path = directory_.path() + "/tmpfs";
  ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
  if (mount("none", path.c_str(), "tmpfs", 0, "size=4m") != 0) {
    GTEST_SKIP() << "mounting a tmpfs needs a privilege";
  }
  options_.tiers[0] = {Medium::kMem, path, 4 * base::kMiB};
  Open();
  int failed = 0;
  for (int i = 0; i < 50; ++i) {
    const auto file = cache_->FindOrAdmit(KeyOf(absl::StrCat(i), 100'000));
    if (file == nullptr || !PutAll(*file).ok()) ++failed;
    clock_.Advance(absl::Seconds(20));
  }
  EXPECT_GT(failed, 0);
  EXPECT_GT(Stats().files_complete, 30u);
  for (int i = 0; i < 50; ++i) {
    const auto file = cache_->Find(KeyOf(absl::StrCat(i), 100'000));
    if (file != nullptr) {
      EXPECT_EQ(Compare(*file), "");
    }
  }
  cache_->Evict(kSource, "");
  EXPECT_NE(Fill(KeyOf("again", 100'000)), nullptr);
  cache_.reset();
  EXPECT_EQ(umount(path.c_str()), 0);
}

TEST_F(FaultsTest, AFullTierDemotesDownwards) {
  options_.policy = EvictionPolicy::kSieve;
  options_.tiers = {{Medium::kMem, directory_.path() + "/mem", 10 * kBlockSize, 0.9, 0.5},
                    {Medium::kSsd, directory_.path() + "/ssd", 100 * kBlockSize}};
  Open();
  for (int i = 0; i < 10; ++i) {
    ASSERT_NE(Fill(KeyOf(absl::StrCat(i), i % 2 == 0 ? kBlockSize : kBlockSize - 3)), nullptr);
  }
  Await([&] { return Stats(0).used_bytes <= 5 * kBlockSize; });
  EXPECT_GE(Stats(0).demotions, 5u);
  EXPECT_EQ(Stats(0).evictions_quota, 0u);
  Await([&] { return Stats(0).files_complete + Stats(1).files_complete == 10; });
  for (int i = 0; i < 10; ++i) {
    const auto file =
        cache_->Find(KeyOf(absl::StrCat(i), i % 2 == 0 ? kBlockSize : kBlockSize - 3));
    ASSERT_NE(file, nullptr);
    EXPECT_TRUE(file->complete());
    EXPECT_EQ(Compare(*file), "");
  }
  Open();
  EXPECT_EQ(Stats(0).files_complete + Stats(1).files_complete, 10u);
  EXPECT_EQ(Stats(0).faults_damaged + Stats(1).faults_damaged, 0u);
}

TEST_F(FaultsTest, EpochDemotesIdleSourcesOnly) {
  options_.tiers = {{Medium::kMem, directory_.path() + "/mem", 10 * kBlockSize, 0.9, 0.5},
                    {Medium::kSsd, directory_.path() + "/ssd", 100 * kBlockSize}};
  Open();
  for (int i = 0; i < 4; ++i) Fill(KeyOf(absl::StrCat("idle", i), kBlockSize, "v", "s3://idle"));
  for (int i = 0; i < 20; ++i) ASSERT_NE(Fill(KeyOf(absl::StrCat(i), kBlockSize)), nullptr);
  Await([&] { return Stats(0).demotions == 4; });
  for (int i = 0; i < 4; ++i) {
    const auto file = cache_->Find(KeyOf(absl::StrCat("idle", i), kBlockSize, "v", "s3://idle"));
    ASSERT_NE(file, nullptr);
    EXPECT_EQ(Compare(*file), "");
  }
  EXPECT_EQ(Stats(0).files_complete + Stats(1).files_complete, 24u);
}

TEST_F(FaultsTest, ADamagedBlockIsNotDemoted) {
  options_.policy = EvictionPolicy::kSieve;
  options_.tiers = {{Medium::kMem, directory_.path() + "/mem", 10 * kBlockSize, 0.9, 0.5},
                    {Medium::kSsd, directory_.path() + "/ssd", 100 * kBlockSize}};
  Open();
  for (int i = 0; i < 9; ++i) Fill(KeyOf(absl::StrCat(i), kBlockSize));
  FaultyFileIo::Plan liar;
  liar.read_corrupts_from = 0;
  file_io_.Set(liar);
  Fill(KeyOf("9", kBlockSize));
  Await([&] { return Stats(0).used_bytes <= 5 * kBlockSize; });
  EXPECT_EQ(Stats(1).used_bytes, 0u);
  Await([&] { return Stats(0).faults_damaged >= 5; });
}

TEST_F(FaultsTest, SieveKeepsTheLastTierBelowItsMark) {
  options_.policy = EvictionPolicy::kSieve;
  options_.tiers[0].quota_bytes = 20 * kBlockSize;
  Open();
  for (int i = 0; i < 100; ++i) ASSERT_NE(Fill(KeyOf(absl::StrCat(i), kBlockSize)), nullptr);
  Await([&] { return Stats().used_bytes <= 19 * kBlockSize; });
  EXPECT_GT(Stats().evictions_quota, 80u);
}

}  // namespace
}  // namespace millrace::tier
