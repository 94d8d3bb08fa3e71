#include "fuse/keeper/tier_directories.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "cache/tier/format.h"
#include "common/base/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/child_process.h"

namespace millrace::keeper {
namespace {

using ::testing::HasSubstr;

constexpr Identity kNobodyIdentity = {.uid = 65534, .gid = 65534};

class TierDirectories : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
    path_ = directory_.path() + "/tier";
  }

  // A cache as tier::Tier leaves it, by the names of its format.
  void MakeCache() {
    test::WriteFile(Name(tier::kLockName), absl::StrCat(tier::kLockHeader, "123\n"));
    test::WriteFile(Name(tier::kJournalName), "MILLRACE");
    test::WriteFile(Name(tier::kJournalNewName), "MILLRACE");
    test::WriteFile(Source() + "/" + tier::kUrlName, "s3://b\n");
    test::WriteFile(Source() + "/" + tier::kCompleteName + "/aa", "a");
    test::WriteFile(Source() + "/" + tier::kPartialName + "/bb", "b");
  }
  std::string Name(const std::string& name) const { return path_ + "/" + name; }
  std::string Source() const { return Name(tier::kSourcesName) + "/0123456789abcdef"; }

  absl::Status Prepare(const Identity& identity = kNobodyIdentity) {
    return PrepareTierDirectories({path_}, identity);
  }
  static uint32_t OwnerOf(const std::string& path) {
    struct stat found = {};
    EXPECT_EQ(lstat(path.c_str(), &found), 0) << path;
    EXPECT_EQ(found.st_uid, found.st_gid) << path;
    return found.st_uid;
  }
  void ExpectAllOwnedBy(uint32_t uid) {
    for (const std::string& path :
         {path_, Name(tier::kLockName), Name(tier::kJournalName), Name(tier::kJournalNewName),
          Name(tier::kSourcesName), Source(), Source() + "/" + tier::kUrlName,
          Source() + "/" + tier::kCompleteName, Source() + "/" + tier::kCompleteName + "/aa",
          Source() + "/" + tier::kPartialName, Source() + "/" + tier::kPartialName + "/bb"}) {
      EXPECT_EQ(OwnerOf(path), uid) << path;
    }
  }

  test::TempDir directory_;
  std::string path_;
};

TEST_F(TierDirectories, AreMadeWithTheirParents) {
  path_ = directory_.path() + "/new/parent/tier";
  const mode_t before = umask(077);
  const absl::Status status = Prepare();
  umask(before);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(OwnerOf(path_), 65534u);
  EXPECT_EQ(OwnerOf(directory_.path() + "/new/parent"), 0u);
  struct stat found = {};
  ASSERT_EQ(stat(path_.c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 07777, 0700u);
  ASSERT_EQ(stat((directory_.path() + "/new").c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 07777, 0755u) << "the daemon must get through";
  EXPECT_TRUE(Prepare().ok()) << "again";
}

TEST_F(TierDirectories, AreHandedOverThereAndBack) {
  MakeCache();
  ASSERT_TRUE(Prepare().ok()) << Prepare();
  ExpectAllOwnedBy(65534);
  ASSERT_TRUE(Prepare({}).ok()) << Prepare({});
  ExpectAllOwnedBy(0);
}

TEST_F(TierDirectories, AreHandedOverWhenEmpty) {
  ASSERT_EQ(mkdir(path_.c_str(), 0750), 0);
  ASSERT_EQ(mkdir(Name("lost+found").c_str(), 0700), 0);
  ASSERT_TRUE(Prepare().ok()) << Prepare();
  EXPECT_EQ(OwnerOf(path_), 65534u);
  EXPECT_EQ(OwnerOf(Name("lost+found")), 0u);
}

TEST_F(TierDirectories, GoOnWhereTheyWereInterrupted) {
  MakeCache();
  // As far as a killed keeper came.
  ASSERT_EQ(chown((Source() + "/" + tier::kPartialName + "/bb").c_str(), 65534, 65534), 0);
  ASSERT_EQ(chown(Name(tier::kSourcesName).c_str(), 65534, 65534), 0);
  ASSERT_TRUE(Prepare().ok()) << Prepare();
  ExpectAllOwnedBy(65534);
}

TEST_F(TierDirectories, OfOthersAreRefused) {
  test::WriteFile(Name("precious"), "data");
  absl::Status status = Prepare();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"precious\") and is no millrace cache"));
  test::WriteFile(Name(tier::kLockName), "another program's");
  status = Prepare();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(OwnerOf(path_), 0u);
  EXPECT_EQ(OwnerOf(Name("precious")), 0u);
  EXPECT_EQ(OwnerOf(Name(tier::kLockName)), 0u);
}

TEST_F(TierDirectories, InUseAreLeftAlone) {
  MakeCache();
  const base::UniqueFd user(open(Name(tier::kLockName).c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(flock(user.get(), LOCK_EX | LOCK_NB), 0);
  const absl::Status status = Prepare();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("is in use by process 123;"));
  ExpectAllOwnedBy(0);
}

// What somebody with access to the cache may plant in it, to be given what is not his.
TEST_F(TierDirectories, GiveAwayNoLinkAndNoSecondName) {
  MakeCache();
  const std::string outside = directory_.path() + "/outside";
  test::WriteFile(outside + "/secret", "secret");
  const std::string complete = Source() + "/" + tier::kCompleteName;
  ASSERT_EQ(link((outside + "/secret").c_str(), (complete + "/hard").c_str()), 0);
  ASSERT_EQ(symlink((outside + "/secret").c_str(), (complete + "/soft").c_str()), 0);
  ASSERT_EQ(symlink(outside.c_str(), (Source() + "/linked").c_str()), 0);
  ASSERT_EQ(unlink(Name(tier::kJournalNewName).c_str()), 0);
  ASSERT_EQ(symlink((outside + "/secret").c_str(), Name(tier::kJournalNewName).c_str()), 0);
  ASSERT_EQ(mkfifo((complete + "/fifo").c_str(), 0600), 0);
  ASSERT_TRUE(Prepare().ok()) << Prepare();
  EXPECT_EQ(OwnerOf(outside), 0u);
  EXPECT_EQ(OwnerOf(outside + "/secret"), 0u);
  EXPECT_EQ(OwnerOf(complete + "/fifo"), 0u);
  EXPECT_EQ(OwnerOf(complete + "/aa"), 65534u);
  EXPECT_EQ(OwnerOf(path_), 65534u);
}

// As --tier mem:/dev/shm:2Gi: everybody's directory stays whose it is.
TEST_F(TierDirectories, GiveAwayOnlyTheCacheInAPublicOne) {
  MakeCache();
  ASSERT_EQ(chmod(path_.c_str(), 01777), 0);
  ASSERT_TRUE(Prepare().ok()) << Prepare();
  EXPECT_EQ(OwnerOf(path_), 0u);
  EXPECT_EQ(OwnerOf(Name(tier::kLockName)), 65534u);
  EXPECT_EQ(OwnerOf(Source() + "/" + tier::kCompleteName + "/aa"), 65534u);
}

}  // namespace
}  // namespace millrace::keeper
