#include "fuse/vfs/name_rules.h"

#include <string>

#include "gtest/gtest.h"

namespace millrace::vfs {
namespace {

TEST(NameRulesTest, NamesThatAreNoFileNamesAreHidden) {
  EXPECT_EQ(HiddenByName(""), Hidden::kMarker);
  EXPECT_EQ(HiddenByName("a/"), Hidden::kMarker);
  EXPECT_EQ(HiddenByName("."), Hidden::kDots);
  EXPECT_EQ(HiddenByName(".."), Hidden::kDots);
  EXPECT_EQ(HiddenByName("a/b"), Hidden::kSlash);
  EXPECT_EQ(HiddenByName("../etc"), Hidden::kSlash);
  EXPECT_EQ(HiddenByName(std::string("a\0", 2)), Hidden::kNul);
  EXPECT_EQ(HiddenByName(std::string(256, 'a')), Hidden::kTooLong);
}

TEST(NameRulesTest, AllOtherBytesAreShownAsTheyAre) {
  for (const std::string& name : {std::string("..."), std::string(" "), std::string("\n\t\x01\x7f"),
                                  std::string("\xff\xfe\x80"), std::string("a\\b"),
                                  std::string(255, 'a'), std::string("-rf"), std::string("*")}) {
    EXPECT_EQ(HiddenByName(name), Hidden::kNo) << name;
  }
}

TEST(NameRulesTest, SizesAndVersionsHaveLimits) {
  store::Entry entry{.name = "a", .size = (uint64_t{1} << 63) - 1, .version = "v"};
  EXPECT_EQ(HiddenByRule(entry), Hidden::kNo);
  ++entry.size;
  EXPECT_EQ(HiddenByRule(entry), Hidden::kTooLarge);
  entry.kind = store::EntryKind::kDirectory;
  EXPECT_EQ(HiddenByRule(entry), Hidden::kNo);
  entry = {.name = "a", .version = std::string(65536, 'v')};
  EXPECT_EQ(HiddenByRule(entry), Hidden::kVersionTooLong);
}

TEST(NameRulesTest, CountsByReasonWithAnExample) {
  HiddenCounts counts;
  counts.Count(Hidden::kNo, "shown");
  EXPECT_EQ(counts.total(), 0u);
  counts.Count(Hidden::kTooLong, std::string(1000, 'n'));
  counts.Count(Hidden::kDots, "..");
  counts.Count(Hidden::kDots, ".");
  EXPECT_EQ(counts.total(), 3u);
  EXPECT_EQ(counts.of(Hidden::kDots), 2u);
  EXPECT_EQ(counts.example(), std::string(300, 'n'));
  EXPECT_EQ(counts.ToString(), "dot or dot-dot: 2, name too long: 1");
}

}  // namespace
}  // namespace millrace::vfs
