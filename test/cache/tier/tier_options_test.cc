#include <string>

#include "cache/tier/tiered_cache.h"
#include "common/base/units.h"
#include "gtest/gtest.h"

namespace millrace::tier {
namespace {

TEST(ParseTierTest, ReadsEveryPart) {
  const auto plain = ParseTier("ssd:/var/cache:4Gi");
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->medium, Medium::kSsd);
  EXPECT_EQ(plain->path, "/var/cache");
  EXPECT_EQ(plain->quota_bytes, 4 * base::kGiB);
  EXPECT_EQ(plain->high_water, 0.95);
  EXPECT_EQ(plain->low_water, 0.70);
  const auto full = ParseTier("mem:/dev/shm/a:b:100M,high=0.8,low=0.5");
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(full->medium, Medium::kMem);
  EXPECT_EQ(full->path, "/dev/shm/a:b");
  EXPECT_EQ(full->high_water, 0.8);
  EXPECT_EQ(full->low_water, 0.5);
}

TEST(ParseTierTest, NamesWhatIsWrong) {
  for (const char* bad :
       {"", "ssd", "ssd:/x", "floppy:/x:1Gi", "ssd:relative:1Gi", "ssd::1Gi", "ssd:/x:", "ssd:/x:0",
        "ssd:/x:much", "ssd:/x:1Gi,high", "ssd:/x:1Gi,high=2", "ssd:/x:1Gi,high=0",
        "ssd:/x:1Gi,high=nan", "ssd:/x:1Gi,low=0.99", "ssd:/x:1Gi,middle=1"}) {
    EXPECT_EQ(ParseTier(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace millrace::tier
