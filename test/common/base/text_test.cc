// Unit tests of what common/base reads from outside: JSON, paths, the mount table, small files.
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "common/base/errno_status.h"
#include "common/base/file_text.h"
#include "common/base/json.h"
#include "common/base/mount_table.h"
#include "common/base/paths.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::base {
namespace {

using ::testing::HasSubstr;

std::string TemporaryDirectory() {
  std::string name = ::testing::TempDir() + "text_test.XXXXXX";
  EXPECT_NE(mkdtemp(name.data()), nullptr);
  return name;
}

TEST(JsonTest, SaysWhereTheTextStopsBeingJson) {
  EXPECT_EQ(JsonUnsigned(*ParseJson(R"({"a": 7})"), "a"), 7u);
  const absl::Status status = ParseJson(R"({"a": 7,})").status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(status.message(), HasSubstr("not valid JSON at byte 9"));
  EXPECT_FALSE(ParseJson("").ok());
  EXPECT_FALSE(ParseJson("{} {}").ok());
  EXPECT_FALSE(ParseJson("\xff").ok());
}

TEST(JsonTest, RefusesDeepNesting) {
  const std::string deep = std::string(1000000, '[');
  EXPECT_THAT(ParseJson(deep).status().message(), HasSubstr("nested deeper"));
  EXPECT_TRUE(ParseJson(std::string(64, '[') + std::string(64, ']')).ok());
}

TEST(JsonTest, WritesInvalidTextWithoutThrowing) {
  EXPECT_EQ(JsonLine({{"name", "a\xff"}}), "{\"name\":\"a\xef\xbf\xbd\"}");
  EXPECT_EQ(JsonLine({{"name", "a\nb"}}), R"({"name":"a\nb"})");
}

TEST(JsonTest, TakesAbsentAndWrongFieldsForNothing) {
  const Json json = *ParseJson(R"({"text": "x", "n": -3, "d": 1.5})");
  EXPECT_EQ(JsonString(json, "n"), "");
  EXPECT_EQ(JsonUnsigned(json, "n"), 0u);
  EXPECT_EQ(JsonUnsigned(json, "d"), 0u);
  EXPECT_EQ(JsonDouble(json, "d"), 1.5);
  EXPECT_EQ(JsonString(Json::array(), "text"), "");
}

TEST(PathsTest, NormalizesByText) {
  EXPECT_EQ(NormalizePath("/a//b/./c/../d/", "/x"), "/a/b/d");
  EXPECT_EQ(NormalizePath("b", "/x/y"), "/x/y/b");
  EXPECT_EQ(NormalizePath("../../..", "/x"), "/");
  EXPECT_EQ(NormalizePath("", "/x"), "/x");
}

TEST(PathsTest, ResolvesLinksAsFarAsThePathExists) {
  const std::string top = ResolvePath(TemporaryDirectory());
  ASSERT_EQ(mkdir((top + "/real").c_str(), 0700), 0);
  ASSERT_EQ(symlink((top + "/real").c_str(), (top + "/link").c_str()), 0);
  EXPECT_EQ(ResolvePath(top + "/link"), top + "/real");
  EXPECT_EQ(ResolvePath(top + "/link/a/b"), top + "/real/a/b");
  EXPECT_EQ(ResolvePath(top + "/real/"), top + "/real");
}

TEST(PathsTest, KnowsWhatIsBelow) {
  EXPECT_TRUE(IsAtOrBelow("/a/b", "/a"));
  EXPECT_TRUE(IsAtOrBelow("/a", "/a"));
  EXPECT_TRUE(IsAtOrBelow("/a", "/"));
  EXPECT_FALSE(IsAtOrBelow("/ab", "/a"));
  EXPECT_FALSE(IsAtOrBelow("/", "/a"));
}

constexpr char kMountInfo[] =
    "22 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n"
    "36 35 98:0 /mnt1 /mnt\\0402\\011x rw,noatime master:1 propagate_from:2 - ext3 /dev/root "
    "rw,errors=continue\n"
    "40 28 0:50 / /data ro,relatime - fuse.millrace s3://b\\134x ro,user_id=0\n"
    "41 28 0:51 / /data rw - tmpfs tmpfs rw\n"
    "this is no line of the table\n"
    "42 28 0:52 / /short -\n"
    "43 28 x:y / /bad rw - tmpfs tmpfs rw\n";

TEST(MountTableTest, UndoesEscapesAndPassesOverNonsense) {
  const std::vector<MountEntry> table = ParseMountInfo(kMountInfo);
  ASSERT_EQ(table.size(), 4u);
  EXPECT_EQ(table[1].mountpoint, "/mnt 2\tx");
  EXPECT_EQ(table[1].fs_type, "ext3");
  EXPECT_EQ(table[1].source, "/dev/root");
  EXPECT_EQ(table[1].options, "rw,noatime,rw,errors=continue");
  EXPECT_EQ(table[1].device_major, 98u);
  EXPECT_EQ(table[2].source, "s3://b\\x");
}

TEST(MountTableTest, FindsTheMountOnTop) {
  const std::vector<MountEntry> table = ParseMountInfo(kMountInfo);
  EXPECT_EQ(FindMount(table, "/data")->fs_type, "tmpfs");
  EXPECT_FALSE(FindMount(table, "/dat").has_value());
}

TEST(MountTableTest, ReadsTheMachinesTable) {
  const auto table = ReadMountTable();
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_FALSE(table->empty());
}

TEST(FileTextTest, ReplacesAndReads) {
  const std::string path = TemporaryDirectory() + "/file";
  EXPECT_EQ(ErrnoOf(ReadTextFile(path, 10).status()), ENOENT);
  ASSERT_TRUE(WriteTextFile(path, "one", 0600).ok());
  ASSERT_TRUE(WriteTextFile(path, "second", 0600).ok());
  EXPECT_EQ(*ReadTextFile(path, 10), "second");
  EXPECT_TRUE(absl::IsInvalidArgument(ReadTextFile(path, 5).status()));
}

}  // namespace
}  // namespace millrace::base
