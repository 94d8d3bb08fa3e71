#include "cache/pool/breaker.h"

#include "gtest/gtest.h"

namespace millrace::pool {
namespace {

TEST(BreakerTest, NobodyIsUsedBeforeItAnswered) {
  Breaker breaker(1);
  EXPECT_FALSE(breaker.closed());
  EXPECT_LE(breaker.next_probe(), absl::ZeroDuration());
  breaker.Success();
  EXPECT_TRUE(breaker.closed());
  EXPECT_EQ(breaker.next_probe(), absl::InfiniteDuration());
}

TEST(BreakerTest, DelaysGrowWithJitterAndStartAnew) {
  Breaker breaker(1);
  breaker.Success();
  absl::Duration now = absl::Seconds(100);
  absl::Duration delay = Breaker::kDelayFirst;
  for (int i = 0; i < 12; ++i) {
    breaker.Failure(now);
    EXPECT_FALSE(breaker.closed());
    EXPECT_GE(breaker.next_probe() - now, delay / 2);
    EXPECT_LE(breaker.next_probe() - now, delay);
    now = breaker.next_probe();
    delay = std::min(delay * 2, Breaker::kDelayMax);
  }
  breaker.Success();
  breaker.Failure(now);
  EXPECT_LE(breaker.next_probe() - now, Breaker::kDelayFirst);
}

TEST(BreakerTest, SeedsDiffer) {
  Breaker one(1);
  Breaker other(2);
  one.Failure(absl::ZeroDuration());
  other.Failure(absl::ZeroDuration());
  EXPECT_NE(one.next_probe(), other.next_probe());
}

}  // namespace
}  // namespace millrace::pool
