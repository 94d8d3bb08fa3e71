// The cache as its users see it: finding, filling, evicting, and starting again.
#include "cache/tier/tiered_cache.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"

namespace millrace::tier {
namespace {

using ::millrace::testing::Compare;
using ::millrace::testing::ContentOf;
using ::millrace::testing::KeyOf;
using ::millrace::testing::PutAll;
using ::millrace::testing::PutBlocks;
using ::millrace::testing::ReadAll;
using ::millrace::testing::ReadFile;
using ::millrace::testing::TemporaryDirectory;
using ::millrace::testing::WriteFile;
using ::testing::HasSubstr;

constexpr char kSource[] = "s3://bucket/set";

class TieredCacheTest : public ::testing::Test {
 protected:
  TieredCacheTest() : file_io_(io::NewPosixFileIo(2)) {
    options_.tiers = {{Medium::kSsd, directory_.path() + "/ssd", 64 * base::kMiB}};
    options_.sources_in_use = {kSource};
  }

  void Open() {
    absl::StatusOr<std::unique_ptr<TieredCache>> cache =
        TieredCache::Open(options_, file_io_.get());
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
  }
  // Without Close: as after a kill, but for what was still pending.
  void Reopen() {
    cache_.reset();
    Open();
  }
  std::shared_ptr<CachedFile> Fill(const FileKey& key) {
    std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
    if (file == nullptr) return nullptr;
    EXPECT_TRUE(PutAll(*file).ok());
    return file;
  }
  TierStats Stats(size_t tier = 0) { return cache_->Stats()[tier]; }

  TemporaryDirectory directory_;
  std::unique_ptr<io::FileIo> file_io_;
  CacheOptions options_;
  std::unique_ptr<TieredCache> cache_;
};

TEST_F(TieredCacheTest, KeepsASmallFile) {
  Open();
  const FileKey key = KeyOf("a/b.jpg", 100'000);
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  ASSERT_NE(file, nullptr);
  EXPECT_FALSE(file->complete());
  EXPECT_FALSE(file->Has(0, 1));
  ASSERT_TRUE(PutAll(*file).ok());
  EXPECT_TRUE(file->complete());
  EXPECT_TRUE(file->Has(0, 100'000));
  EXPECT_EQ(cache_->Find(key), file);
  EXPECT_EQ(cache_->Find(KeyOf("a/b.jpg", 100'000, "v2")), nullptr);
  std::string buffer(200'000, 'x');
  const auto got = file->ReadNow(5, absl::MakeSpan(buffer.data(), buffer.size()));
  ASSERT_TRUE(got.ok()) << got.status();
  ASSERT_TRUE(got->has_value());
  EXPECT_EQ(buffer.substr(0, **got), ContentOf("a/b.jpg", "v1", 5, 99'995));
  EXPECT_EQ(Stats().used_bytes, 100'000u);
  EXPECT_EQ(Stats().files_complete, 1u);
  const auto open = file->Open();
  ASSERT_TRUE(open.ok());
  struct stat status;
  ASSERT_EQ(fstat((*open)->fd(), &status), 0);
  EXPECT_EQ(status.st_size, 100'000);
}

TEST_F(TieredCacheTest, DataFilesHaveNoAccessTimes) {
  int flags = 0;
  const base::UniqueFd directory(open(directory_.path().c_str(), O_RDONLY | O_DIRECTORY));
  const bool known = ioctl(directory.get(), FS_IOC_GETFLAGS, &flags) == 0 &&
                     (flags |= FS_NOATIME_FL, ioctl(directory.get(), FS_IOC_SETFLAGS, &flags) == 0);
  if (!known) GTEST_SKIP() << "this file system keeps access times of all files";
  flags &= ~FS_NOATIME_FL;
  ASSERT_EQ(ioctl(directory.get(), FS_IOC_SETFLAGS, &flags), 0);
  Open();
  for (const uint64_t size : {uint64_t{100'000}, 3 * kBlockSize}) {
    const std::shared_ptr<CachedFile> file = Fill(KeyOf(absl::StrCat(size), size));
    ASSERT_NE(file, nullptr);
    const auto data = file->Open();
    ASSERT_TRUE(data.ok()) << data.status();
    ASSERT_EQ(ioctl((*data)->fd(), FS_IOC_GETFLAGS, &flags), 0);
    EXPECT_NE(flags & FS_NOATIME_FL, 0) << size;
  }
}

TEST_F(TieredCacheTest, FillsALargeFileInAnyOrder) {
  Open();
  const FileKey key = KeyOf("big", 10 * kBlockSize + 17);
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  ASSERT_NE(file, nullptr);
  ASSERT_TRUE(PutBlocks(*file, 10, 1).ok());
  ASSERT_TRUE(PutBlocks(*file, 3, 4).ok());
  EXPECT_TRUE(file->Has(3 * kBlockSize + 5, 2 * kBlockSize));
  EXPECT_FALSE(file->Has(6 * kBlockSize, 2 * kBlockSize));
  EXPECT_TRUE(file->HasBlock(10));
  EXPECT_EQ(Stats().used_bytes, 4 * kBlockSize + 17);
  ASSERT_TRUE(PutBlocks(*file, 0, 11).ok());  // Present blocks are left alone.
  EXPECT_TRUE(file->complete());
  EXPECT_EQ(Stats().used_bytes, key.size);
  EXPECT_EQ(Compare(*file), "");
}

TEST_F(TieredCacheTest, RefusesBlocksThatAreNotWhole) {
  Open();
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(KeyOf("f", 3 * kBlockSize + 1));
  const std::string data(2 * kBlockSize, 'x');
  const auto put = [&](uint64_t offset, size_t size) {
    return file->Put(offset, absl::MakeConstSpan(data.data(), size)).code();
  };
  EXPECT_EQ(put(1, kBlockSize), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(put(0, kBlockSize - 1), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(put(3 * kBlockSize, 2), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(put(~uint64_t{0} - kBlockSize + 1, kBlockSize), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(put(3 * kBlockSize, 1), absl::StatusCode::kOk);
}

TEST_F(TieredCacheTest, KeepsBlocksThatLieApart) {
  Open();
  const FileKey key = KeyOf("f", 3 * kBlockSize + 1);
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  std::vector<std::string> parts;
  for (uint64_t i = 0; i < 4; ++i) {
    parts.push_back(ContentOf(key.path, key.version, i * kBlockSize,
                              std::min(kBlockSize, key.size - i * kBlockSize)));
  }
  const auto piece = [&](uint64_t i) {
    return absl::MakeConstSpan(parts[i].data(), parts[i].size());
  };
  // One too short, one too long, one behind the end.
  EXPECT_EQ(file->PutBlocks(2, {piece(2).subspan(1), piece(3)}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file->PutBlocks(3, {piece(2)}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file->PutBlocks(3, {piece(3), piece(0)}).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(file->PutBlocks(1, {piece(1)}).ok());
  EXPECT_FALSE(file->HasBlock(0));
  ASSERT_TRUE(file->PutBlocks(0, {piece(0), piece(1), piece(2), piece(3)}).ok());
  EXPECT_TRUE(file->complete());
  EXPECT_EQ(Stats().used_bytes, key.size);
  EXPECT_EQ(Compare(*file), "");
}

TEST_F(TieredCacheTest, ABlockFitsWhereSeveralDoNot) {
  options_.tiers[0].quota_bytes = 2 * kBlockSize;
  Open();
  const FileKey key = KeyOf("f", 2 * kBlockSize);
  const std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(key);
  const std::shared_ptr<CachedFile> other = cache_->FindOrAdmit(KeyOf("g", kBlockSize));
  ASSERT_NE(file, nullptr);
  ASSERT_NE(other, nullptr);
  ASSERT_TRUE(PutAll(*other).ok());
  const std::string data = ContentOf(key.path, key.version, 0, key.size);
  EXPECT_EQ(file->Put(0, absl::MakeConstSpan(data.data(), data.size())).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(file->HasBlock(0));
  EXPECT_FALSE(file->HasBlock(1));
}

TEST_F(TieredCacheTest, KeepsAnEmptyFile) {
  Open();
  std::shared_ptr<CachedFile> file = cache_->FindOrAdmit(KeyOf("empty", 0));
  ASSERT_NE(file, nullptr);
  EXPECT_TRUE(file->complete());
  EXPECT_TRUE(file->Open().ok());
  EXPECT_EQ(*ReadAll(*file, 0, 10), "");
  file.reset();  // No file outlives its cache.
  Reopen();
  const std::shared_ptr<CachedFile> again = cache_->Find(KeyOf("empty", 0));
  ASSERT_NE(again, nullptr);
  EXPECT_TRUE(again->complete());
}

TEST_F(TieredCacheTest, SurvivesAStart) {
  Open();
  Fill(KeyOf("small", 1000));
  Fill(KeyOf("large", 5 * kBlockSize));
  std::shared_ptr<CachedFile> part = cache_->FindOrAdmit(KeyOf("part", 5 * kBlockSize));
  ASSERT_TRUE(PutBlocks(*part, 2, 2).ok());
  const uint64_t used = Stats().used_bytes;
  part.reset();
  Reopen();
  EXPECT_EQ(Stats().used_bytes, used);
  EXPECT_EQ(Stats().files, 3u);
  EXPECT_EQ(Stats().files_complete, 2u);
  EXPECT_EQ(Stats().faults_damaged, 0u);
  for (const FileKey& key : {KeyOf("small", 1000), KeyOf("large", 5 * kBlockSize)}) {
    const std::shared_ptr<CachedFile> file = cache_->Find(key);
    ASSERT_NE(file, nullptr) << key.path;
    EXPECT_TRUE(file->complete());
    EXPECT_EQ(Compare(*file), "");
  }
  part = cache_->Find(KeyOf("part", 5 * kBlockSize));
  ASSERT_NE(part, nullptr);
  EXPECT_FALSE(part->HasBlock(1));
  EXPECT_TRUE(part->HasBlock(2));
  EXPECT_EQ(Compare(*part), "");
  ASSERT_TRUE(PutAll(*part).ok());
  EXPECT_TRUE(part->complete());
}

TEST_F(TieredCacheTest, EvictsTheOldVersion) {
  Open();
  const std::shared_ptr<CachedFile> old_file = Fill(KeyOf("f", 300'000, "v1"));
  const std::shared_ptr<CachedFile> new_file = Fill(KeyOf("f", 400'000, "v2"));
  ASSERT_NE(new_file, nullptr);
  EXPECT_TRUE(old_file->evicted());
  EXPECT_EQ(Stats().evictions_version, 1u);
  EXPECT_EQ(Stats().used_bytes, 400'000u);
  // Who holds the old file reads on.
  EXPECT_EQ(*ReadAll(*old_file, 0, 300'000), ContentOf("f", "v1", 0, 300'000));
  EXPECT_FALSE(PutBlocks(*old_file, 0, 1).ok());
  EXPECT_EQ(cache_->Find(KeyOf("f", 300'000, "v1")), nullptr);
}

TEST_F(TieredCacheTest, EvictsWhatTheUserNames) {
  Open();
  Fill(KeyOf("a/1", 1000));
  Fill(KeyOf("a/2", 1000));
  Fill(KeyOf("ab", 1000));
  EXPECT_EQ(cache_->Evict("s3://other", ""), 0u);
  EXPECT_EQ(cache_->Evict(kSource, "a"), 2000u);
  EXPECT_EQ(Stats().evictions_user, 2u);
  EXPECT_NE(cache_->Find(KeyOf("ab", 1000)), nullptr);
  EXPECT_EQ(cache_->Evict(kSource, ""), 1000u);
  EXPECT_EQ(Stats().files, 0u);
  EXPECT_EQ(Stats().used_bytes, 0u);
}

TEST_F(TieredCacheTest, FillsOnceAndRefusesUnderEpoch) {
  options_.tiers[0].quota_bytes = 10 * kBlockSize;
  Open();
  int kept = 0;
  for (int i = 0; i < 20; ++i) kept += Fill(KeyOf(absl::StrCat(i), kBlockSize)) != nullptr;
  EXPECT_EQ(kept, 10);
  EXPECT_EQ(Stats().refused, 10u);
  EXPECT_EQ(Stats().evictions_quota, 0u);
  EXPECT_EQ(cache_->RoomBytes(), 0u);
  EXPECT_EQ(cache_->FindOrAdmit(KeyOf("huge", 11 * kBlockSize)), nullptr);
}

TEST_F(TieredCacheTest, GivesUpIdleSourcesUnderEpoch) {
  options_.tiers[0].quota_bytes = 10 * kBlockSize;
  Open();
  for (int i = 0; i < 9; ++i) Fill(KeyOf(absl::StrCat(i), kBlockSize, "v", "s3://idle"));
  EXPECT_EQ(cache_->RoomBytes(), 10 * kBlockSize);
  for (int i = 0; i < 10; ++i) ASSERT_NE(Fill(KeyOf(absl::StrCat(i), kBlockSize)), nullptr);
  EXPECT_EQ(Stats().evictions_quota, 9u);
}

TEST_F(TieredCacheTest, PushesOutTheOldUnderSieve) {
  options_.tiers[0].quota_bytes = 10 * kBlockSize;
  options_.tiers[0].high_water = 1;
  options_.policy = EvictionPolicy::kSieve;
  Open();
  for (int i = 0; i < 10; ++i) Fill(KeyOf(absl::StrCat(i), kBlockSize));
  cache_->Find(KeyOf("0", kBlockSize));
  for (int i = 10; i < 15; ++i) ASSERT_NE(Fill(KeyOf(absl::StrCat(i), kBlockSize)), nullptr);
  EXPECT_NE(cache_->Find(KeyOf("0", kBlockSize)), nullptr);
  EXPECT_EQ(cache_->Find(KeyOf("1", kBlockSize)), nullptr);
  EXPECT_EQ(Stats().evictions_quota, 5u);
  EXPECT_LE(Stats().used_bytes, 10 * kBlockSize);
}

TEST_F(TieredCacheTest, OneProcessPerDirectory) {
  Open();
  const auto second = TieredCache::Open(options_, file_io_.get());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat("in use by process ", getpid())));
}

// The predecessor of a mount whose old files are still open reads on beside its successor.
TEST_F(TieredCacheTest, WhatIsHandedOverIsReadAndNotChanged) {
  std::unique_ptr<TieredCache> predecessor;  // Outlives its files.
  Open();
  const std::shared_ptr<CachedFile> open = Fill(KeyOf("open", 3 * kBlockSize));
  const std::shared_ptr<CachedFile> closed = Fill(KeyOf("closed", 3 * kBlockSize));
  const std::shared_ptr<CachedFile> partial = cache_->FindOrAdmit(KeyOf("partial", 4 * kBlockSize));
  ASSERT_TRUE(PutBlocks(*partial, 0, 2).ok());
  ASSERT_EQ(Compare(*open), "");  // Small files are written through a descriptor of the moment.
  ASSERT_TRUE(cache_->HandOver().ok());
  predecessor = std::move(cache_);
  Open();

  EXPECT_EQ(predecessor->FindOrAdmit(KeyOf("new", 5000)), nullptr);
  EXPECT_EQ(predecessor->FindOrAdmit(KeyOf("open", 3 * kBlockSize, "v2")), nullptr);
  EXPECT_EQ(predecessor->Evict(kSource, ""), 0u);
  EXPECT_EQ(predecessor->RoomBytes(), 0u);
  EXPECT_FALSE(PutBlocks(*partial, 2, 2).ok());

  // The successor evicts everything and makes files of the same names, with holes.
  EXPECT_EQ(Stats().files, 3u);
  EXPECT_GT(cache_->Evict(kSource, ""), 0u);
  std::vector<std::shared_ptr<CachedFile>> successors;
  for (const char* const name : {"open", "closed"}) {
    successors.push_back(cache_->FindOrAdmit(KeyOf(name, 3 * kBlockSize)));
    ASSERT_NE(successors.back(), nullptr);
    ASSERT_TRUE(PutBlocks(*successors.back(), 0, 1).ok());
  }
  EXPECT_EQ(Compare(*open), "");
  EXPECT_TRUE(open->complete());
  EXPECT_FALSE(ReadAll(*closed, 0, 3 * kBlockSize).ok());
  EXPECT_FALSE(closed->Has(0, 1));  // A miss from now on.
  EXPECT_FALSE(closed->complete());
  for (const auto& file : successors) EXPECT_EQ(Compare(*file), "");
  successors.clear();
  const TierStats before = Stats();
  EXPECT_EQ(before.files, 2u);
  Reopen();
  EXPECT_EQ(Stats().files, 2u);
  EXPECT_EQ(Stats().used_bytes, before.used_bytes);
}

TEST_F(TieredCacheTest, RefusesADirectoryThatIsNoCache) {
  const std::string path = directory_.path() + "/home";
  ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
  WriteFile(path + "/thesis.txt", "years of work");
  options_.tiers[0].path = path;
  const auto cache = TieredCache::Open(options_, file_io_.get());
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(cache.status().message()), HasSubstr("thesis.txt"));
  EXPECT_EQ(ReadFile(path + "/thesis.txt"), "years of work");
}

TEST_F(TieredCacheTest, RefusesAQuotaLargerThanTheDisk) {
  options_.tiers[0].quota_bytes = uint64_t{1} << 60;
  EXPECT_EQ(TieredCache::Open(options_, file_io_.get()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(TieredCacheTest, RefusesAFileAsDirectory) {
  WriteFile(directory_.path() + "/file", "");
  options_.tiers[0].path = directory_.path() + "/file";
  EXPECT_EQ(TieredCache::Open(options_, file_io_.get()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(TieredCacheTest, ReadsByManyThreadsWithFewDescriptors) {
  options_.open_files_max = 4;
  Open();
  for (int i = 0; i < 32; ++i) Fill(KeyOf(absl::StrCat(i), 2 * kBlockSize));
  std::vector<std::thread> readers;
  for (int t = 0; t < 4; ++t) {
    readers.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const auto file = cache_->Find(KeyOf(absl::StrCat((i * 7 + t) % 32), 2 * kBlockSize));
        ASSERT_NE(file, nullptr);
        EXPECT_EQ(Compare(*file), "");
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
}

}  // namespace
}  // namespace millrace::tier
