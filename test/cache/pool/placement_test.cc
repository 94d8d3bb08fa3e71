// Placement: everybody alike, in proportion to the weights, and no more moves than must.
#include "cache/pool/placement.h"

#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::pool {
namespace {

using ::testing::ElementsAre;

constexpr int kFiles = 20'000;

std::vector<PlacedMember> Members(size_t count) {
  std::vector<PlacedMember> members;
  for (size_t i = 0; i < count; ++i) members.push_back({absl::StrCat("worker-", i), 1 << 30});
  return members;
}

std::string OwnerOf(const std::vector<PlacedMember>& members, int file, uint64_t extent = 0) {
  return members[Rank(members, "s3://bucket", absl::StrCat("dir/file-", file), extent).front()].id;
}

std::map<std::string, int> Owned(const std::vector<PlacedMember>& members) {
  std::map<std::string, int> owned;
  for (int i = 0; i < kFiles; ++i) ++owned[OwnerOf(members, i)];
  return owned;
}

// Five standard deviations of a binomial distribution: a right placement fails once in a million.
double Tolerance(double share) { return 5 * std::sqrt(kFiles * share * (1 - share)); }

TEST(PlacementTest, NobodyIsThere) { EXPECT_TRUE(Rank({}, "s", "p", 0).empty()); }

// The numbers that a second implementation has to come to: changing one moves every cache.
TEST(PlacementTest, IsTheSameEverywhere) {
  const std::vector<PlacedMember> members = Members(4);
  EXPECT_THAT(Rank(members, "s3://bucket", "a/b", 0), ElementsAre(3, 2, 1, 0));
  EXPECT_THAT(Rank(members, "s3://bucket", "a/b", 1), ElementsAre(3, 1, 0, 2));
}

TEST(PlacementTest, DoesNotDependOnTheOrderOfMembers) {
  const std::vector<PlacedMember> members = Members(7);
  const std::vector<PlacedMember> reversed(members.rbegin(), members.rend());
  for (int i = 0; i < 200; ++i) EXPECT_EQ(OwnerOf(members, i), OwnerOf(reversed, i));
}

TEST(PlacementTest, IsBalanced) {
  for (const size_t count : {2, 3, 10, 50}) {
    const std::map<std::string, int> owned = Owned(Members(count));
    ASSERT_EQ(owned.size(), count);
    const double share = 1.0 / static_cast<double>(count);
    for (const auto& [id, files] : owned)
      EXPECT_NEAR(files, kFiles * share, Tolerance(share)) << id;
  }
}

TEST(PlacementTest, ExtentsOfAFileAreSpread) {
  const std::vector<PlacedMember> members = Members(4);
  std::map<std::string, int> owned;
  for (uint64_t extent = 0; extent < 1000; ++extent) ++owned[OwnerOf(members, 1, extent)];
  for (const auto& [id, extents] : owned) EXPECT_NEAR(extents, 250, 70) << id;
}

TEST(PlacementTest, FollowsTheWeights) {
  std::vector<PlacedMember> members = Members(3);
  members[1].weight *= 2;
  members[2].weight = 0;  // As good as nothing, but a member.
  const std::map<std::string, int> owned = Owned(members);
  EXPECT_NEAR(owned.at("worker-0"), kFiles / 3.0, Tolerance(1.0 / 3));
  EXPECT_NEAR(owned.at("worker-1"), kFiles * 2 / 3.0, Tolerance(2.0 / 3));
}

TEST(PlacementTest, AddingMovesOnlyTheShareOfTheNewOne) {
  const std::vector<PlacedMember> before = Members(5);
  const std::vector<PlacedMember> after = Members(6);
  int moved = 0;
  for (int i = 0; i < kFiles; ++i) {
    const std::string owner = OwnerOf(after, i);
    if (owner == OwnerOf(before, i)) continue;
    ++moved;
    EXPECT_EQ(owner, "worker-5");
    // And the old owner is next in rank: it is asked for what it has.
    const Ranking ranking = Rank(after, "s3://bucket", absl::StrCat("dir/file-", i), 0);
    EXPECT_EQ(after[ranking[1]].id, OwnerOf(before, i));
  }
  EXPECT_NEAR(moved, kFiles / 6.0, Tolerance(1.0 / 6));
}

TEST(PlacementTest, RemovingMovesOnlyWhatItHadToTheNextInRank) {
  const std::vector<PlacedMember> before = Members(6);
  std::vector<PlacedMember> after = before;
  after.erase(after.begin() + 2);
  for (int i = 0; i < kFiles; ++i) {
    const Ranking ranking = Rank(before, "s3://bucket", absl::StrCat("dir/file-", i), 0);
    const std::string owner = before[ranking[0]].id;
    EXPECT_EQ(OwnerOf(after, i), owner == "worker-2" ? before[ranking[1]].id : owner);
  }
}

TEST(PlacementTest, WhoDrainsOwnsNothingAndIsAskedLast) {
  std::vector<PlacedMember> members = Members(4);
  members[1].draining = true;
  for (int i = 0; i < 500; ++i) {
    const Ranking ranking = Rank(members, "s3://bucket", absl::StrCat("dir/file-", i), 0);
    EXPECT_EQ(ranking.back(), 1u);
  }
  // Two that drain keep their order.
  members[2].draining = true;
  const Ranking ranking = Rank(members, "s", "p", 0);
  std::vector<PlacedMember> only = {members[1], members[2]};
  EXPECT_EQ(members[ranking[2]].id, only[Rank(only, "s", "p", 0)[0]].id);
}

TEST(PlacementTest, Extents) {
  EXPECT_EQ(ExtentOf(0, 64), 0u);
  EXPECT_EQ(ExtentOf(63, 64), 0u);
  EXPECT_EQ(ExtentOf(64, 64), 1u);
  EXPECT_EQ(ExtentOf(~uint64_t{0}, 64), (~uint64_t{0}) / 64);
}

}  // namespace
}  // namespace millrace::pool
