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
    const base::UniqueFd memfd(memfd_create("recipe", MFD_CLOEXEC));
    ASSERT_EQ(write(memfd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    EXPECT_FALSE(ReadRecipe(memfd.get()).ok()) << text;
  }
}

}  // namespace
}  // namespace millrace::keeper
