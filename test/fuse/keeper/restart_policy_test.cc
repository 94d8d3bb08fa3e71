// Unit tests of the decisions of a keeper: when to restart, when to give up, what hangs.
#include "fuse/keeper/restart_policy.h"

#include "fuse/keeper/hang_prober.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::keeper {
namespace {

using ::testing::Eq;
using ::testing::Optional;

constexpr absl::Duration kLong = absl::Minutes(5);
constexpr absl::Duration kNever = absl::ZeroDuration();

TEST(RestartPolicyTest, ADaemonThatHadServedIsRestartedAtOnce) {
  RestartPolicy policy({.crashes_max = 0});
  absl::Duration now;
  for (int i = 0; i < 100; ++i) {
    now += absl::Seconds(1);
    EXPECT_THAT(policy.OnCrash(now, absl::Seconds(1)), Optional(Eq(absl::ZeroDuration())));
  }
}

TEST(RestartPolicyTest, OneThatDiesAtOnceIsGivenEverMoreTime) {
  RestartPolicy policy(
      {.crashes_max = 0, .first_delay = absl::Milliseconds(100), .delay_max = absl::Seconds(1)});
  EXPECT_THAT(policy.OnCrash({}, kNever), Optional(Eq(absl::ZeroDuration())));
  for (const int ms : {100, 200, 400, 800, 1000, 1000}) {
    EXPECT_THAT(policy.OnCrash({}, kNever), Optional(Eq(absl::Milliseconds(ms))));
  }
  // It is well again: the next death is like a first.
  EXPECT_THAT(policy.OnCrash({}, kLong), Optional(Eq(absl::ZeroDuration())));
  EXPECT_THAT(policy.OnCrash({}, kNever), Optional(Eq(absl::ZeroDuration())));
  EXPECT_THAT(policy.OnCrash({}, kNever), Optional(Eq(absl::Milliseconds(100))));
}

TEST(RestartPolicyTest, SomeQuickKillsCostNoDelay) {
  const absl::Duration moment = absl::Milliseconds(50);
  RestartPolicy policy({.crashes_max = 0, .brief_max = 5, .first_delay = absl::Milliseconds(100)});
  absl::Duration now;
  const auto next = [&] {
    now += absl::Milliseconds(100);
    return policy.OnCrash(now, moment);
  };
  // One more for a first death that is no brief life.
  for (int i = 0; i < 6; ++i) EXPECT_THAT(next(), Optional(Eq(absl::ZeroDuration()))) << i;
  for (const int ms : {100, 200}) EXPECT_THAT(next(), Optional(Eq(absl::Milliseconds(ms))));
  // A minute in which it lived, too short or not, is a new beginning.
  now += absl::Seconds(61);
  EXPECT_THAT(next(), Optional(Eq(absl::ZeroDuration())));
}

TEST(RestartPolicyTest, QuickKillsAreACrashLoopToo) {
  RestartPolicy policy({.crashes_max = 5});
  for (int i = 0; i < 4; ++i) {
    EXPECT_THAT(policy.OnCrash(absl::Milliseconds(100 * i), absl::Milliseconds(50)),
                Optional(Eq(absl::ZeroDuration())));
  }
  EXPECT_FALSE(policy.OnCrash(absl::Seconds(1), absl::Milliseconds(50)).has_value());
}

TEST(RestartPolicyTest, TooManyInTheWindowAreACrashLoop) {
  RestartPolicy policy({.crashes_max = 5, .window = absl::Seconds(60)});
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(policy.OnCrash(absl::Seconds(10 * i), absl::Seconds(10)).has_value());
  }
  EXPECT_FALSE(policy.OnCrash(absl::Seconds(59), absl::Seconds(10)).has_value());
  policy.Reset();
  EXPECT_TRUE(policy.OnCrash(absl::Seconds(60), absl::Seconds(1)).has_value());
}

TEST(RestartPolicyTest, OldCrashesDoNotCount) {
  RestartPolicy policy({.crashes_max = 2, .window = absl::Seconds(60)});
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(policy.OnCrash(absl::Seconds(61 * i), kLong).has_value()) << i;
  }
}

TEST(RestartPolicyTest, OneCrashMayBeTooMany) {
  RestartPolicy policy({.crashes_max = 1});
  EXPECT_FALSE(policy.OnCrash({}, kLong).has_value());
}

// Times in seconds; a question without an answer since `asked`.
bool Hung(double now, double asked, double serving = 0, double awake = 0, double deadline = 5) {
  return IsHung(absl::Seconds(now), absl::Seconds(asked), absl::Seconds(serving),
                absl::Seconds(awake), absl::Seconds(deadline));
}

TEST(IsHungTest, LeavesTimeForTheSuccessorWithinTheDeadline) {
  // The hang began up to a second before the question; the keeper looks twice a second.
  EXPECT_FALSE(Hung(103, 100));
  EXPECT_TRUE(Hung(103.5, 100));
  EXPECT_LE(1 + 3.3 + 0.5, 5);
  EXPECT_FALSE(IsHung(absl::Seconds(1000), std::nullopt, {}, {}, absl::Seconds(5)));
}

TEST(IsHungTest, CountsFromWhenTheDaemonCouldAnswer) {
  EXPECT_FALSE(Hung(110, 100, /*serving=*/109));
  EXPECT_TRUE(Hung(113, 100, /*serving=*/109));
}

TEST(IsHungTest, AMachineThatSleptHasNoHungDaemon) {
  EXPECT_FALSE(Hung(4000, 100, 0, /*awake=*/3999));
}

TEST(IsHungTest, NoDeadlineIsNone) {
  EXPECT_FALSE(IsHung(absl::Hours(10), absl::Seconds(1), {}, {}, absl::InfiniteDuration()));
}

}  // namespace
}  // namespace millrace::keeper
