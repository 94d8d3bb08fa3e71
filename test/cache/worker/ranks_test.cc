// Unit tests of cache/worker/ranks: what a worker thinks it owns.
#include "cache/worker/ranks.h"

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace millrace::worker {
namespace {

constexpr uint64_t kExtent = 1 << 20;

Ranks Make(uint32_t replicas = 1) {
  return Ranks({.id = "b", .capacity_bytes = 100, .extent_size = kExtent, .replicas = replicas});
}

pool::MemberStatus Member(const std::string& id, bool reachable = true, bool draining = false) {
  pool::MemberStatus member;
  member.id = id;
  member.capacity_bytes = 100;
  member.reachable = reachable;
  member.draining = draining;
  return member;
}

size_t OwnedOf(const Ranks& ranks, size_t files) {
  size_t owned = 0;
  for (size_t i = 0; i < files; ++i) owned += ranks.Owns("s", absl::StrCat(i), 0) ? 1 : 0;
  return owned;
}

TEST(RanksTest, AloneItOwnsAll) {
  const Ranks ranks = Make();
  EXPECT_EQ(OwnedOf(ranks, 100), 100u);
  EXPECT_TRUE(ranks.OwnsAll({"s", "f", "v", 10 * kExtent}));
  EXPECT_TRUE(ranks.Leads("s", "f", 3));
}

TEST(RanksTest, SharesWithThoseThatHaveAnswered) {
  Ranks ranks = Make();
  EXPECT_FALSE(ranks.Update({Member(""), Member("b")}));  // Itself, and one never heard of.
  EXPECT_EQ(OwnedOf(ranks, 300), 300u);
  EXPECT_TRUE(ranks.Update({Member("a"), Member("b"), Member("c")}));
  EXPECT_FALSE(ranks.Update({Member("a"), Member("b"), Member("c")}));
  EXPECT_NEAR(static_cast<double>(OwnedOf(ranks, 300)), 100, 40);
  // One that is away still has its share; a draining one has none.
  EXPECT_FALSE(ranks.Update({Member("a", false), Member("b"), Member("c")}));
  EXPECT_TRUE(ranks.Update({Member("a", true, true), Member("b"), Member("c")}));
  EXPECT_NEAR(static_cast<double>(OwnedOf(ranks, 300)), 150, 50);
}

TEST(RanksTest, KnowsItsPartOfALargeFile) {
  Ranks ranks = Make();
  ranks.Update({Member("a"), Member("c")});
  const tier::FileKey file = {"s", "large", "v", 60 * kExtent + 5};
  EXPECT_EQ(ranks.ExtentCount(file.size), 61u);
  EXPECT_EQ(ranks.ExtentBytes(file.size, 60), 5u);
  uint64_t bytes = 0;
  for (uint64_t extent = 0; extent < 61; ++extent) {
    if (ranks.Owns(file.source, file.path, extent)) {
      bytes += ranks.ExtentBytes(file.size, extent);
      EXPECT_EQ(ranks.Ranking(file.source, file.path, extent).front(), "b");
    }
  }
  EXPECT_EQ(ranks.OwnedBytes(file), bytes);
  EXPECT_TRUE(ranks.OwnsAny(file));
  EXPECT_FALSE(ranks.OwnsAll(file));
}

TEST(RanksTest, LeadsWhenThoseBeforeItAreAway) {
  Ranks ranks = Make(/*replicas=*/2);
  ranks.Update({Member("a")});
  EXPECT_EQ(OwnedOf(ranks, 50), 50u);
  size_t led = 0;
  for (int i = 0; i < 50; ++i) led += ranks.Leads("s", absl::StrCat(i), 0) ? 1 : 0;
  EXPECT_GT(led, 0u);
  EXPECT_LT(led, 50u);
  ranks.Update({Member("a", false)});
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(ranks.Leads("s", absl::StrCat(i), 0)) << i;
}

TEST(RanksTest, OwnsNothingOnceItLeaves) {
  Ranks ranks = Make();
  ranks.Update({Member("a")});
  ranks.SetDraining();
  EXPECT_TRUE(ranks.draining());
  EXPECT_EQ(OwnedOf(ranks, 50), 0u);
  ranks.Update({Member("a"), Member("c")});
  EXPECT_TRUE(ranks.draining());
  EXPECT_EQ(ranks.Ranking("s", "f", 0).back(), "b");
}

}  // namespace
}  // namespace millrace::worker
