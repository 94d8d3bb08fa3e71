#include "cache/tier/block_map.h"

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::tier {
namespace {

TEST(BlockMapTest, EmptyFileIsFull) {
  const BlockMap map(0);
  EXPECT_TRUE(map.full());
  EXPECT_FALSE(map.Has(0));
  EXPECT_EQ(map.NextPresent(0), 0u);
}

TEST(BlockMapTest, OneBlock) {
  BlockMap map(1);
  EXPECT_FALSE(map.full());
  EXPECT_TRUE(map.Claim(0));
  EXPECT_FALSE(map.Claim(0));
  EXPECT_FALSE(map.Has(0));
  map.Set(0, 77);
  EXPECT_TRUE(map.Has(0));
  EXPECT_TRUE(map.full());
  EXPECT_EQ(map.crc(0), 77u);
  EXPECT_FALSE(map.Claim(0));
  EXPECT_TRUE(map.Clear(0));
  EXPECT_FALSE(map.Clear(0));
  EXPECT_TRUE(map.Claim(0));
  map.Unclaim(0);
  EXPECT_TRUE(map.Claim(0));
}

TEST(BlockMapTest, HasNothingBeyondItsEnd) {
  BlockMap map(65);
  for (uint64_t i = 0; i < 65; ++i) map.Set(i, 0);
  EXPECT_TRUE(map.HasAll(0, 65));
  EXPECT_FALSE(map.HasAll(0, 66));
  EXPECT_FALSE(map.HasAll(64, 2));
  EXPECT_FALSE(map.HasAll(65, 1));
  EXPECT_FALSE(map.HasAll(~uint64_t{0}, 2));
  EXPECT_FALSE(map.Has(65));
}

TEST(BlockMapTest, AgreesWithAPlainVector) {
  std::mt19937 random(1);
  for (const uint64_t blocks : {2u, 63u, 64u, 65u, 1023u, 1024u, 1025u, 5000u}) {
    BlockMap map(blocks);
    std::vector<bool> truth(blocks);
    for (int i = 0; i < 2000; ++i) {
      const uint64_t index = random() % blocks;
      if (random() % 3 == 0) {
        EXPECT_EQ(map.Clear(index), truth[index]);
        truth[index] = false;
      } else if (map.Claim(index)) {
        EXPECT_FALSE(truth[index]);
        map.Set(index, static_cast<uint32_t>(index * 3));
        truth[index] = true;
      } else {
        EXPECT_TRUE(truth[index]);
      }
      const uint64_t first = random() % blocks;
      const uint64_t count = 1 + random() % std::min<uint64_t>(blocks - first, 100);
      EXPECT_EQ(map.HasAll(first, count),
                std::all_of(truth.begin() + static_cast<long>(first),
                            truth.begin() + static_cast<long>(first + count),
                            [](bool present) { return present; }));
      const auto next = std::find(truth.begin() + static_cast<long>(first), truth.end(), true);
      EXPECT_EQ(map.NextPresent(first), static_cast<uint64_t>(next - truth.begin()));
    }
    EXPECT_EQ(map.present(), static_cast<uint64_t>(std::count(truth.begin(), truth.end(), true)));
    for (uint64_t i = 0; i < blocks; ++i) {
      if (truth[i]) {
        EXPECT_EQ(map.crc(i), i * 3);
      }
    }
  }
}

TEST(BlockMapTest, KeepsUnverifiedBlocksApart) {
  BlockMap map(2000);
  map.SetUnverified(1500, 5);
  map.Set(3, 6);
  EXPECT_TRUE(map.any_unverified());
  EXPECT_TRUE(map.Unverified(1500));
  EXPECT_FALSE(map.Unverified(3));
  EXPECT_EQ(map.NextUnverified(0), 1500u);
  EXPECT_TRUE(map.MarkVerified(1500));
  EXPECT_FALSE(map.MarkVerified(1500));
  EXPECT_FALSE(map.any_unverified());
  EXPECT_TRUE(map.Has(1500));
  map.SetUnverified(9, 1);
  EXPECT_TRUE(map.Clear(9));
  EXPECT_FALSE(map.any_unverified());
}

TEST(BlockMapTest, OneOfManyThreadsGetsAClaim) {
  BlockMap map(3000);
  std::atomic<uint64_t> claims{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (uint64_t i = 0; i < 3000; ++i) {
        if (map.Claim(i)) {
          ++claims;
          map.Set(i, static_cast<uint32_t>(i));
        }
        if (map.Has(i)) {
          EXPECT_EQ(map.crc(i), i);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(claims, 3000u);
  EXPECT_TRUE(map.full());
}

}  // namespace
}  // namespace millrace::tier
