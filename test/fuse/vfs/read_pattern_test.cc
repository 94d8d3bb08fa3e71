#include "fuse/vfs/read_pattern.h"

#include <random>

#include "gtest/gtest.h"

namespace millrace::vfs {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kFile = 2048 * kMiB;

uint64_t Sum(const absl::InlinedVector<Range, 4>& ranges) {
  uint64_t sum = 0;
  for (const Range& range : ranges) sum += range.size;
  return sum;
}

TEST(ReadPatternTest, SequentialWindowGrowsToItsLimitAndNeverAsksTwice) {
  ReadPattern pattern;
  uint64_t asked_to = kMiB;
  uint64_t ahead_max = 0;
  for (uint64_t offset = 0; offset < 512 * kMiB; offset += kMiB) {
    for (const Range& range : pattern.OnRead(offset, kMiB, kFile, ReadPattern::kWindowMax)) {
      EXPECT_GE(range.offset, asked_to);
      EXPECT_FALSE(pattern.random());
      asked_to = range.offset + range.size;
    }
    EXPECT_GE(asked_to, offset + kMiB);
    ahead_max = std::max(ahead_max, asked_to - (offset + kMiB));
  }
  EXPECT_EQ(ahead_max, ReadPattern::kWindowMax);
}

TEST(ReadPatternTest, EndOfFileIsAskedForAndNothingBeyond) {
  ReadPattern pattern;
  const uint64_t size = 5 * kMiB + 123;
  uint64_t asked_to = kMiB;
  for (uint64_t offset = 0; offset < size; offset += kMiB) {
    for (const Range& range : pattern.OnRead(offset, kMiB, size, ReadPattern::kWindowMax)) {
      asked_to = range.offset + range.size;
    }
  }
  EXPECT_EQ(asked_to, size);
}

TEST(ReadPatternTest, KernelReorderingKeepsTheStream) {
  ReadPattern pattern;
  pattern.OnRead(0, kMiB, kFile, ReadPattern::kWindowMax);
  pattern.OnRead(2 * kMiB, kMiB, kFile, ReadPattern::kWindowMax);
  pattern.OnRead(1 * kMiB, kMiB, kFile, ReadPattern::kWindowMax);
  EXPECT_GT(Sum(pattern.OnRead(20 * kMiB, kMiB, kFile, ReadPattern::kWindowMax)) +
                Sum(pattern.OnRead(3 * kMiB, kMiB, kFile, ReadPattern::kWindowMax)),
            0u);
}

TEST(ReadPatternTest, RandomReadsFetchNothingAhead) {
  std::mt19937_64 random(1);
  ReadPattern pattern;
  uint64_t ahead = 0;
  int random_reads = 0;
  for (int i = 0; i < 2000; ++i) {
    const uint64_t offset = 4096 * (1 + random() % (kFile / 4096 - 1));
    ahead += Sum(pattern.OnRead(offset, 4096, kFile, ReadPattern::kWindowMax));
    random_reads += pattern.random() ? 1 : 0;
  }
  EXPECT_GT(random_reads, 1990);
  // By chance a read falls right behind an earlier one (4 streams x 128 KiB in 2 GiB): a few.
  EXPECT_LE(ahead, 4 * 4 * kMiB);
}

TEST(ReadPatternTest, TwoInterleavedStreamsAreToldApart) {
  ReadPattern pattern;
  uint64_t first = 0;
  uint64_t second = 0;
  for (uint64_t i = 0; i < 16; ++i) {
    first += Sum(pattern.OnRead(i * kMiB, kMiB, kFile, ReadPattern::kWindowMax));
    second += Sum(pattern.OnRead((1000 + i) * kMiB, kMiB, kFile, ReadPattern::kWindowMax));
  }
  EXPECT_GE(first, 16 * kMiB);
  EXPECT_GE(second, 16 * kMiB);
}

TEST(ReadPatternTest, StridesArePredicted) {
  ReadPattern pattern;
  absl::InlinedVector<Range, 4> ahead;
  for (uint64_t i = 1; i <= 4; ++i) {
    ahead = pattern.OnRead(i * 100 * kMiB, 65536, kFile, ReadPattern::kWindowMax);
  }
  EXPECT_FALSE(pattern.random());
  ASSERT_EQ(ahead.size(), 4u);
  EXPECT_EQ(ahead[0].offset, 500 * kMiB);
  EXPECT_EQ(ahead[0].size, 65536u);
}

TEST(ReadPatternTest, StrideBackwardsStopsAtTheStart) {
  ReadPattern pattern;
  absl::InlinedVector<Range, 4> ahead;
  for (uint64_t i = 5; i >= 2; --i) {
    ahead = pattern.OnRead(i * 100 * kMiB, 65536, kFile, ReadPattern::kWindowMax);
  }
  ASSERT_EQ(ahead.size(), 2u);  // 100 MiB, 0, and nothing before.
  EXPECT_EQ(ahead[1].offset, 0u);
}

TEST(ReadPatternTest, SmallMemoryBoundsTheWindow) {
  ReadPattern pattern;
  uint64_t asked_to = 0;
  for (uint64_t offset = 0; offset < 64 * kMiB; offset += kMiB) {
    for (const Range& range : pattern.OnRead(offset, kMiB, kFile, 8 * kMiB)) {
      asked_to = range.offset + range.size;
      EXPECT_LE(asked_to, offset + kMiB + 8 * kMiB);
    }
  }
}

}  // namespace
}  // namespace millrace::vfs
