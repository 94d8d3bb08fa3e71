// Unit tests of what a keeper hands on: the session's state and the recipe.
#include "fuse/keeper/session_state.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "fuse/keeper/recipe.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::keeper {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

base::UniqueFd Copy(int fd) { return base::UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 0)); }

TEST(SessionMemoryTest, BothSidesSeeTheSame) {
  absl::StatusOr<SessionMemory> keeper = SessionMemory::Create();
  ASSERT_TRUE(keeper.ok()) << keeper.status();
  absl::StatusOr<SessionMemory> daemon = SessionMemory::Open(Copy(keeper->fd()));
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  EXPECT_EQ(keeper->SavedInit(), "");
  const std::string init(104, '\7');
  ASSERT_TRUE(daemon->SaveInit(init).ok());
  EXPECT_EQ(keeper->SavedInit(), init);

  keeper->CountTakeover(Cause::kOom, absl::Milliseconds(30));
  keeper->CountTakeover(Cause::kUpgrade, absl::Minutes(10));
  EXPECT_EQ(daemon->TakeoverCount(), 2u);
  const metrics::Histogram::Snapshot pauses = daemon->Pauses();
  EXPECT_EQ(pauses.count, 2u);
  EXPECT_EQ(pauses.buckets.back(), 1u);
  EXPECT_NEAR(pauses.sum_seconds, 600.03, 0.001);
  const control::KeeperStatus status = StatusOfKeeper(*daemon, true);
  EXPECT_EQ(status.takeovers.at("oom"), 1u);
  EXPECT_EQ(status.takeovers.at("signal"), 0u);
  EXPECT_EQ(status.last_pause_seconds, 600);
}

TEST(SessionMemoryTest, NobodyCanMakeTheOthersTrap) {
  const absl::StatusOr<SessionMemory> memory = SessionMemory::Create();
  ASSERT_TRUE(memory.ok());
  EXPECT_NE(ftruncate(memory->fd(), 0), 0);
}

TEST(SessionMemoryTest, RefusesWhatItDoesNotKnow) {
  absl::StatusOr<SessionMemory> memory = SessionMemory::Create();
  ASSERT_TRUE(memory.ok());
  EXPECT_FALSE(memory->SaveInit(std::string(kInitMax + 1, 'x')).ok());
  // A daemon gone mad: what it says is bounded.
  (*memory)->init_bytes = 1u << 31;
  EXPECT_EQ(memory->SavedInit().size(), kInitMax);
  (*memory)->layout = 2;
  const absl::Status other = SessionMemory::Open(Copy(memory->fd())).status();
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(other.message()), HasSubstr("layout 2"));
  (*memory)->magic = 0;
  EXPECT_FALSE(SessionMemory::Open(Copy(memory->fd())).ok());
  EXPECT_FALSE(SessionMemory::Open(base::UniqueFd(memfd_create("empty", MFD_CLOEXEC))).ok());

  const absl::StatusOr<SessionMemory> sealed = SessionMemory::Create();
  ASSERT_TRUE(sealed.ok());
  std::string bytes(sizeof(SessionState), '\0');
  ASSERT_EQ(pread(sealed->fd(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  base::UniqueFd copy(memfd_create("copy", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(write(copy.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  EXPECT_THAT(std::string(SessionMemory::Open(std::move(copy)).status().message()),
              HasSubstr("not sealed"));
}

TEST(RecipeTest, ComesBackAsItWas) {
  const Recipe recipe = {{"--tier=ssd:/a b:1", "", "--", "s3://b", "/m\n"}, {"A=1", "B=", "C=x=y"}};
  const absl::StatusOr<base::UniqueFd> memfd = WriteRecipe(recipe);
  ASSERT_TRUE(memfd.ok()) << memfd.status();
  const absl::StatusOr<Recipe> read = ReadRecipe(memfd->get());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->arguments, recipe.arguments);
  EXPECT_EQ(read->environment, recipe.environment);
  EXPECT_NE(ftruncate(memfd->get(), 1), 0);
  EXPECT_NE(write(memfd->get(), "x", 1), 1);
}

TEST(RecipeTest, RefusesAnythingElse) {
  for (const std::string& text :
       {std::string(), std::string("nonsense"), std::string("millrace-recipe 2\0000\0", 20),
        std::string("millrace-recipe 1\0009\0a\0", 22),
        std::string("millrace-recipe 1\0001\0a", 21),
        std::string("millrace-recipe 1\000-1\0a\0", 23)}) {
    const base::UniqueFd memfd(memfd_create("recipe", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    ASSERT_EQ(write(memfd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    ASSERT_EQ(fcntl(memfd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);
    EXPECT_THAT(std::string(ReadRecipe(memfd.get()).status().message()),
                HasSubstr("no recipe of this version"))
        << text;
  }
}

// What a daemon that was taken over by a stranger might hand to its next keeper.
TEST(RecipeTest, RefusesWhatAnotherWrote) {
  const Recipe recipe = {{"--user=root", "--", "s3://b", "/m"}, {"LD_PRELOAD=/tmp/evil.so"}};
  const absl::StatusOr<base::UniqueFd> ours = WriteRecipe(recipe);
  ASSERT_TRUE(ours.ok()) << ours.status();
  std::string bytes(4096, '\0');
  bytes.resize(static_cast<size_t>(pread(ours->get(), bytes.data(), bytes.size(), 0)));

  const base::UniqueFd unsealed(memfd_create("recipe", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(write(unsealed.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  EXPECT_THAT(std::string(ReadRecipe(unsealed.get()).status().message()),
              HasSubstr("no keeper of this user wrote"));
  if (geteuid() != 0) GTEST_SKIP() << "the rest needs root";
  ASSERT_EQ(fchown(ours->get(), 65534, 65534), 0);
  EXPECT_THAT(std::string(ReadRecipe(ours->get()).status().message()),
              HasSubstr("no keeper of this user wrote"));
}

}  // namespace
}  // namespace millrace::keeper
