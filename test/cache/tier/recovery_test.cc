// What a start makes of a directory: another boot, damage, truncation, foreign files, other
// formats. Whatever happened to it, no wrong byte comes out.
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/units.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"

namespace millrace::tier {
namespace {

namespace fs = std::filesystem;
using ::millrace::testing::Compare;
using ::millrace::testing::ContentOf;
using ::millrace::testing::KeyOf;
using ::millrace::testing::ListFiles;
using ::millrace::testing::PutAll;
using ::millrace::testing::PutBlocks;
using ::millrace::testing::ReadAll;
using ::millrace::testing::ReadFile;
using ::millrace::testing::TemporaryDirectory;
using ::millrace::testing::WriteFile;

constexpr char kSource[] = "s3://bucket/set";
constexpr uint64_t kLarge = 5 * kBlockSize + 100;

class RecoveryTest : public ::testing::Test {
 protected:
  RecoveryTest() : file_io_(io::NewPosixFileIo(2)) {
    options_.tiers = {{Medium::kSsd, directory_.path() + "/ssd", 64 * base::kMiB}};
    options_.sources_in_use = {kSource};
    options_.boot_id = "boot 1";
  }

  void Open() {
    cache_.reset();
    absl::StatusOr<std::unique_ptr<TieredCache>> cache =
        TieredCache::Open(options_, file_io_.get());
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
  }
  void OpenInBoot(const std::string& boot_id) {
    options_.boot_id = boot_id;
    Open();
  }
  void FillSome() {
    for (const FileKey& key : Keys()) {
      const auto file = cache_->FindOrAdmit(key);
      ASSERT_NE(file, nullptr);
      ASSERT_TRUE(PutAll(*file).ok());
    }
  }
  static std::vector<FileKey> Keys() {
    return {KeyOf("a", 1000), KeyOf("b", kBlockSize), KeyOf("c", kLarge)};
  }
  std::string Tier() const { return options_.tiers[0].path; }
  std::string DataFile(const FileKey& key) const {
    const std::string content = ContentOf(key.path, key.version, 0, key.size);
    for (const std::string& path : ListFiles(Tier())) {
      if (fs::file_size(path) == key.size && ReadFile(path) == content) return path;
    }
    ADD_FAILURE() << "no data file of " << key.path;
    return "";
  }
  static void Flip(const std::string& path, size_t at) {
    std::string bytes = ReadFile(path);
    bytes[at] ^= 1;
    WriteFile(path, bytes);
  }
  TierStats Stats() { return cache_->Stats()[0]; }
  // Nothing wrong comes out, whatever is still there.
  void CompareAll() {
    for (const FileKey& key : Keys()) {
      const auto file = cache_->Find(key);
      if (file != nullptr) {
        EXPECT_EQ(Compare(*file), "");
      }
    }
  }
  void AwaitComplete(CachedFile& file) {
    while (!file.complete()) std::this_thread::yield();
  }

  TemporaryDirectory directory_;
  std::unique_ptr<io::FileIo> file_io_;
  CacheOptions options_;
  std::unique_ptr<TieredCache> cache_;
};

TEST_F(RecoveryTest, AnotherBootIsVerifiedBeforeUse) {
  Open();
  FillSome();
  OpenInBoot("boot 2");
  EXPECT_EQ(Stats().files, 3u);
  EXPECT_EQ(Stats().files_complete, 0u);
  for (const FileKey& key : Keys()) {
    const auto file = cache_->Find(key);  // Asks for a check in the background, too.
    ASSERT_NE(file, nullptr);
    EXPECT_EQ(*ReadAll(*file, 0, key.size), ContentOf(key.path, key.version, 0, key.size));
    AwaitComplete(*file);
    char byte;
    EXPECT_TRUE(file->ReadNow(0, absl::MakeSpan(&byte, 1))->has_value());
  }
  EXPECT_EQ(Stats().files_complete, 3u);
  // What was verified is trusted by later starts of this boot.
  OpenInBoot("boot 2");
  EXPECT_EQ(Stats().files_complete, 3u);
}

TEST_F(RecoveryTest, UnverifiedBlocksAreNotReadAtOnce) {
  Open();
  FillSome();
  const std::string path = DataFile(KeyOf("c", kLarge));
  OpenInBoot("boot 2");
  Flip(path, 3 * kBlockSize + 5);
  const auto file = cache_->Find(KeyOf("c", kLarge));
  ASSERT_NE(file, nullptr);
  // A block is either not verified yet, or verified and right; the bad one never comes out.
  EXPECT_EQ(Compare(*file), "");
  EXPECT_FALSE(file->HasBlock(3));
  EXPECT_TRUE(file->HasBlock(4));
  EXPECT_FALSE(file->complete());
  EXPECT_EQ(Stats().faults_damaged, 1u);
  EXPECT_EQ(Stats().used_bytes, 1000 + kBlockSize + kLarge - kBlockSize);
  ASSERT_TRUE(PutBlocks(*file, 3, 1).ok());
  while (!file->complete()) {
    EXPECT_EQ(Compare(*file), "");  // Verifies the rest.
  }
}

// Its holder once read it for ever: a block of an evicted file never became verified.
TEST_F(RecoveryTest, AnEvictedUnverifiedFileIsReadOn) {
  Open();
  FillSome();
  OpenInBoot("boot 2");
  const auto file = cache_->Find(KeyOf("c", kLarge));
  ASSERT_EQ(cache_->Evict(kSource, "c"), kLarge);
  EXPECT_EQ(*ReadAll(*file, 0, kLarge), ContentOf("c", "v1", 0, kLarge));
}

// The old file's records once vouched for the holes of the new one after a SIGKILL.
TEST_F(RecoveryTest, AFileEvictedAndAdmittedAgainStartsEmpty) {
  Open();
  FillSome();
  cache_->Evict(kSource, "c");
  const auto file = cache_->FindOrAdmit(KeyOf("c", kLarge));
  ASSERT_NE(file, nullptr);
  ASSERT_TRUE(PutBlocks(*file, 1, 1).ok());
  // What is on disk at this instant, in a directory of its own: a kill.
  const std::string copy = directory_.path() + "/copy";
  fs::copy(Tier(), copy, fs::copy_options::recursive);
  CacheOptions options = options_;
  options.tiers[0].path = copy;
  auto cache = TieredCache::Open(options, file_io_.get());
  ASSERT_TRUE(cache.ok()) << cache.status();
  const auto found = (*cache)->Find(KeyOf("c", kLarge));
  if (found != nullptr) {
    EXPECT_EQ(Compare(*found), "");
  }
}

TEST_F(RecoveryTest, UnverifiedStaysSoOverStarts) {
  Open();
  FillSome();
  const std::string path = DataFile(KeyOf("b", kBlockSize));
  OpenInBoot("boot 2");
  ASSERT_TRUE(cache_->Close().ok());  // A clean mark vouches only for what was written or checked.
  Flip(path, 77);
  OpenInBoot("boot 3");
  EXPECT_EQ(Stats().files_complete, 0u);
  CompareAll();
  EXPECT_EQ(Stats().faults_damaged, 1u);
}

TEST_F(RecoveryTest, ACleanMarkIsTrustedAfterAnotherBoot) {
  Open();
  FillSome();
  ASSERT_TRUE(cache_->Close().ok());
  OpenInBoot("boot 2");
  EXPECT_EQ(Stats().files_complete, 3u);
  CompareAll();
}

TEST_F(RecoveryTest, WorkAfterACleanMarkIsNot) {
  Open();
  FillSome();
  ASSERT_TRUE(cache_->Close().ok());
  Open();  // The same boot: goes on in the same journal.
  ASSERT_TRUE(PutAll(*cache_->FindOrAdmit(KeyOf("d", 5000))).ok());
  OpenInBoot("boot 2");
  EXPECT_EQ(Stats().files, 4u);
  EXPECT_EQ(Stats().files_complete, 3u);
}

TEST_F(RecoveryTest, TruncatedAndMissingFilesAreDropped) {
  Open();
  FillSome();
  fs::resize_file(DataFile(KeyOf("c", kLarge)), 5);
  fs::remove(DataFile(KeyOf("a", 1000)));
  Open();
  EXPECT_EQ(Stats().files, 2u);
  EXPECT_EQ(Stats().faults_damaged, 1u);
  EXPECT_EQ(Stats().used_bytes, kBlockSize + kLarge);
  // Its size is looked at before it is used, in whatever way.
  const auto truncated = cache_->Find(KeyOf("c", kLarge));
  ASSERT_NE(truncated, nullptr);
  EXPECT_FALSE(truncated->Open().ok());
  EXPECT_EQ(Stats().files, 1u);
  EXPECT_EQ(Stats().faults_damaged, 2u);
  EXPECT_EQ(Stats().used_bytes, kBlockSize);
  EXPECT_EQ(cache_->Find(KeyOf("c", kLarge)), nullptr);
  ASSERT_TRUE(PutAll(*cache_->FindOrAdmit(KeyOf("c", kLarge))).ok());
  CompareAll();
}

TEST_F(RecoveryTest, SizesOfFilesThatNobodyUsesAreLookedAtSoon) {
  Open();
  FillSome();
  fs::resize_file(DataFile(KeyOf("b", kBlockSize)), 3 * kBlockSize);
  fs::resize_file(DataFile(KeyOf("c", kLarge)), 5);
  Open();
  while (Stats().faults_damaged < 2) std::this_thread::yield();
  EXPECT_EQ(Stats().faults_damaged, 2u);
  EXPECT_EQ(Stats().used_bytes, 1000u);
  EXPECT_EQ(ListFiles(Tier() + "/sources").size(), 2u);  // One data file, and the URL.
  CompareAll();
  Open();
  EXPECT_EQ(Stats().files, 1u);
  EXPECT_EQ(Stats().faults_damaged, 0u);
}

TEST_F(RecoveryTest, ATruncatedFileThatIsWrittenFirstIsDamaged) {
  Open();
  const FileKey key = KeyOf("partial", 4 * kBlockSize);
  ASSERT_TRUE(PutBlocks(*cache_->FindOrAdmit(key), 0, 2).ok());
  for (const std::string& path : ListFiles(Tier())) {
    if (fs::file_size(path) == key.size) fs::resize_file(path, 3 * kBlockSize);
  }
  Open();
  const auto file = cache_->Find(key);
  ASSERT_NE(file, nullptr);
  EXPECT_FALSE(PutBlocks(*file, 2, 2).ok());
  EXPECT_EQ(Stats().faults_damaged, 1u);
  EXPECT_EQ(Stats().faults_disk, 0u);
  EXPECT_EQ(Stats().used_bytes, 0u);
  EXPECT_EQ(cache_->Find(key), nullptr);
  ASSERT_TRUE(PutAll(*cache_->FindOrAdmit(key)).ok());
  EXPECT_EQ(Compare(*cache_->Find(key)), "");
}

TEST_F(RecoveryTest, FilesTruncatedInUseAreMisses) {
  Open();
  FillSome();
  const auto file = cache_->Find(KeyOf("c", kLarge));
  fs::resize_file(DataFile(KeyOf("c", kLarge)), kBlockSize + 10);
  EXPECT_EQ(ReadAll(*file, 0, kLarge).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(file->Has(0, kLarge));
  EXPECT_FALSE(file->complete());
  std::string buffer(1000, 'x');
  const auto small = cache_->Find(KeyOf("a", 1000));
  fs::resize_file(DataFile(KeyOf("a", 1000)), 0);
  EXPECT_EQ(small->ReadNow(0, absl::MakeSpan(buffer.data(), buffer.size())).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(cache_->Find(KeyOf("a", 1000)), nullptr);
  EXPECT_EQ(Stats().faults_damaged, 2u);
}

TEST_F(RecoveryTest, ForeignFilesAreRemoved) {
  Open();
  FillSome();
  const std::string complete = fs::path(DataFile(KeyOf("a", 1000))).parent_path();
  const std::string outside = directory_.path() + "/outside";
  WriteFile(outside, "not ours");
  WriteFile(complete + "/0123456789abcdef0123456789abcdef", "foreign");
  WriteFile(complete + "/readme.txt", "foreign");
  ASSERT_EQ(symlink(outside.c_str(), (complete + "/link").c_str()), 0);
  const std::string other = Tier() + "/sources/00000000000000aa";
  fs::create_directories(other + "/complete");
  WriteFile(other + "/complete/x", "foreign");
  Open();
  EXPECT_EQ(Stats().faults_damaged, 4u);
  EXPECT_EQ(Stats().files, 3u);
  EXPECT_EQ(ListFiles(complete).size(), 3u);
  EXPECT_FALSE(fs::exists(other));
  EXPECT_EQ(ReadFile(outside), "not ours");
  CompareAll();
}

TEST_F(RecoveryTest, ADataFileReplacedByALinkIsForeign) {
  Open();
  FillSome();
  const std::string path = DataFile(KeyOf("a", 1000));
  const std::string outside = directory_.path() + "/outside";
  WriteFile(outside, std::string(1000, 's'));
  fs::remove(path);
  fs::create_symlink(outside, path);
  Open();
  EXPECT_EQ(cache_->Find(KeyOf("a", 1000)), nullptr);
  EXPECT_TRUE(fs::exists(outside));
}

TEST_F(RecoveryTest, AnotherFormatIsDropped) {
  Open();
  FillSome();
  cache_.reset();
  Flip(Tier() + "/journal", 8);
  Open();
  EXPECT_EQ(Stats().files, 0u);
  EXPECT_EQ(Stats().used_bytes, 0u);
  for (const std::string& path : ListFiles(Tier() + "/sources")) {
    EXPECT_TRUE(absl::EndsWith(path, "/url")) << path;
  }
  FillSome();
  CompareAll();
}

TEST_F(RecoveryTest, ALostJournalCostsTheCacheOnly) {
  Open();
  FillSome();
  cache_.reset();
  fs::remove(Tier() + "/journal");
  Open();
  EXPECT_EQ(Stats().files, 0u);
  FillSome();
  CompareAll();
}

TEST_F(RecoveryTest, ASmallerQuotaIsMet) {
  Open();
  FillSome();
  options_.tiers[0].quota_bytes = 2 * kBlockSize;
  Open();
  EXPECT_LE(Stats().used_bytes, 2 * kBlockSize);
  CompareAll();
}

TEST_F(RecoveryTest, ACopyInTwoTiersIsOne) {
  // As after a demotion that was killed between its two steps.
  options_.tiers.push_back({Medium::kHdd, directory_.path() + "/hdd", 64 * base::kMiB});
  Open();
  FillSome();
  cache_.reset();
  fs::remove_all(directory_.path() + "/hdd");
  fs::copy(Tier(), directory_.path() + "/hdd", fs::copy_options::recursive);
  Open();
  EXPECT_EQ(cache_->Stats()[0].files, 3u);
  EXPECT_EQ(cache_->Stats()[1].files, 0u);
  EXPECT_EQ(cache_->Stats()[1].used_bytes, 0u);
  CompareAll();
}

TEST_F(RecoveryTest, ADamagedJournalNeverLies) {
  for (int seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    std::mt19937 random(static_cast<unsigned>(seed));
    cache_.reset();
    fs::remove_all(Tier());
    OpenInBoot("boot 1");
    FillSome();
    ASSERT_EQ(cache_->Evict(kSource, "b"), kBlockSize);
    cache_.reset();
    const std::string journal = Tier() + "/journal";
    std::string bytes = ReadFile(journal);
    if (seed % 3 == 0) {
      bytes.resize(random() % bytes.size());
    } else {
      for (unsigned i = 0, n = 1 + random() % 4; i < n; ++i) {
        bytes[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
      }
    }
    WriteFile(journal, bytes);
    if (seed % 2 == 0) options_.boot_id = "boot 2";
    Open();
    CompareAll();
    FillSome();
    CompareAll();
  }
}

TEST_F(RecoveryTest, DamagedDataOfAnotherBootNeverComesOut) {
  for (int seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    std::mt19937 random(static_cast<unsigned>(seed));
    cache_.reset();
    fs::remove_all(Tier());
    OpenInBoot("boot 1");
    FillSome();
    const FileKey key = Keys()[random() % 3];
    const std::string path = DataFile(key);
    cache_.reset();
    Flip(path, random() % key.size);
    OpenInBoot("boot 2");
    CompareAll();
    EXPECT_EQ(Stats().faults_damaged, 1u);
  }
}

}  // namespace
}  // namespace millrace::tier
