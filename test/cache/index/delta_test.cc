#include "cache/index/delta.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache/index/delta_records.h"
#include "cache/index/index_writer.h"
#include "gtest/gtest.h"
#include "test/support/index_fixture.h"

namespace millrace::index {
namespace {

using ::millrace::test::BytesOf;
using ::millrace::test::Contents;
using ::millrace::test::Directory;
using ::millrace::test::Lines;
using ::millrace::test::MakeIndex;
using ::millrace::test::Object;

constexpr uint64_t kAnySize = 1 << 30;

absl::StatusOr<std::shared_ptr<const Index>> ApplyTo(const Index& from, absl::string_view delta) {
  return Apply(from, delta, NewUnnamedFile("").value());
}

std::shared_ptr<const Index> Version(const Contents& contents, uint64_t version) {
  return MakeIndex(contents, {.version = version, .seed = 5});
}

// "directory-change path: entry-change name".
std::vector<std::string> ChangesOf(absl::string_view delta) {
  std::vector<std::string> lines;
  DeltaCursor cursor = DeltaCursor::Open(delta).value();
  while (cursor.NextDirectory().value()) {
    const std::string directory =
        absl::StrCat(static_cast<int>(cursor.directory_change()), " ", cursor.directory(), ":");
    lines.push_back(directory);
    while (cursor.NextEntry().value()) {
      lines.push_back(absl::StrCat(directory, " ", static_cast<int>(cursor.entry_change()), " ",
                                   cursor.entry().name));
    }
  }
  return lines;
}

TEST(DeltaTest, HasWhatChangedAndNothingElse) {
  const Contents before = {{"", {Object("same"), Object("old"), Object("changed")}},
                           {"gone", {Object("x")}},
                           {"same", {Object("x")}}};
  const Contents after = {{"", {Object("same"), Object("new"), Object("changed", 2)}},
                          {"added", {Object("y")}},
                          {"added/empty", {}},
                          {"same", {Object("x")}}};
  const auto delta = Diff(*Version(before, 1), *Version(after, 2), kAnySize);
  ASSERT_TRUE(delta.ok()) << delta.status();
  EXPECT_EQ(ChangesOf(*delta),
            (std::vector<std::string>{"1 :", "1 : 2 changed", "1 : 1 new", "1 : 3 old",
                                      "2 added:", "2 added: 1 y", "2 added/empty:", "3 gone:"}));
  const auto applied = ApplyTo(*Version(before, 1), *delta);
  ASSERT_TRUE(applied.ok()) << applied.status();
  EXPECT_TRUE(BytesOf(**applied) == BytesOf(*Version(after, 2)));
}

TEST(DeltaTest, AFileThatBecomesADirectoryIsRemovedAndAdded) {
  const auto delta = Diff(*Version({{"", {Object("a")}}}, 1),
                          *Version({{"", {Directory("a")}}, {"a", {}}}, 2), kAnySize);
  EXPECT_EQ(ChangesOf(*delta), (std::vector<std::string>{"1 :", "1 : 3 a", "1 : 1 a", "2 a:"}));
}

TEST(DeltaTest, RandomChangesApplyAndComposeByteForByte) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    test::RandomContents random(seed);
    random.Change(300);
    std::vector<std::shared_ptr<const Index>> versions = {Version(random.contents(), 1)};
    std::string composed;
    for (uint64_t version = 2; version <= 12; ++version) {
      random.Change(version % 4 == 0 ? 300 : 10);
      versions.push_back(Version(random.contents(), version));
      const auto step = Diff(*versions[version - 2], *versions[version - 1], kAnySize);
      ASSERT_TRUE(step.ok()) << step.status();
      const std::string bytes = BytesOf(*versions.back());
      const auto applied = ApplyTo(*versions[version - 2], *step);
      ASSERT_TRUE(applied.ok()) << applied.status();
      ASSERT_TRUE(BytesOf(**applied) == bytes);
      if (version == 2) {
        composed = *step;
        continue;
      }
      const auto both = Compose(composed, *step, kAnySize);
      ASSERT_TRUE(both.ok()) << both.status();
      composed = *both;
      const auto far = ApplyTo(*versions[0], composed);
      ASSERT_TRUE(far.ok()) << far.status();
      ASSERT_TRUE(BytesOf(**far) == bytes);
    }
  }
}

TEST(DeltaTest, ADirectoryThatGoesAndComesBackIsReplaced) {
  const auto one = Version({{"", {}}, {"d", {Object("a"), Object("b")}}}, 1);
  const auto two = Version({{"", {}}}, 2);
  const auto three = Version({{"", {}}, {"d", {Object("b"), Object("c")}}}, 3);
  const auto four = Version({{"", {}}, {"d", {Object("c", 2)}}}, 4);
  const auto step = [](const Index& from, const Index& to) {
    return Diff(from, to, kAnySize).value();
  };
  const std::string replaced = Compose(step(*one, *two), step(*two, *three), kAnySize).value();
  EXPECT_EQ(ChangesOf(replaced), (std::vector<std::string>{"4 d:", "4 d: 1 b", "4 d: 1 c"}));
  EXPECT_TRUE(BytesOf(**ApplyTo(*one, replaced)) == BytesOf(*three));
  const std::string further = Compose(replaced, step(*three, *four), kAnySize).value();
  EXPECT_TRUE(BytesOf(**ApplyTo(*one, further)) == BytesOf(*four));
}

TEST(DeltaTest, NothingChangedIsADeltaToo) {
  const Contents contents = {{"", {Object("a")}}};
  const std::string delta = Diff(*Version(contents, 1), *Version(contents, 2), kAnySize).value();
  EXPECT_EQ(delta.size(), kHeaderSize);
  EXPECT_EQ(ApplyTo(*Version(contents, 1), delta).value()->header().version, 2u);
}

TEST(DeltaTest, OnePercentChangedIsLessThanThreePercentOfTheBytes) {
  Contents before;
  Contents after;
  for (int i = 0; i < 20'000; ++i) {
    // Few to a directory, and every change in another one: the dearest case.
    const std::string path = absl::StrCat("train/shard-", 10000 + i / 50);
    const std::string name = absl::StrCat("image-", 1000000 + i, ".jpg");
    before[path].push_back(Object(name, 100'000 + i));
    after[path].push_back(i % 100 == 0 ? Object(name, 5, "ffeeddccbbaa99887766554433221100")
                                       : Object(name, 100'000 + i));
  }
  const auto old_index = Version(before, 1);
  const std::string delta = Diff(*old_index, *Version(after, 2), kAnySize).value();
  EXPECT_LE(delta.size() * 100, old_index->header().file_bytes * 3);
}

TEST(DeltaTest, OfAnotherIndexItIsRefused) {
  const auto one = Version({{"", {Object("a")}}}, 1);
  const auto two = Version({{"", {Object("b")}}}, 2);
  const auto other = Version({{"", {Object("c")}}}, 1);
  const std::string delta = Diff(*one, *two, kAnySize).value();
  EXPECT_TRUE(absl::IsFailedPrecondition(ApplyTo(*other, delta).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(ApplyTo(*two, delta).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(Compose(delta, delta, kAnySize).status()));
  const auto reseeded = MakeIndex({{"", {}}}, {.version = 2, .seed = 6});
  EXPECT_TRUE(absl::IsFailedPrecondition(Diff(*one, *reseeded, kAnySize).status()));
}

TEST(DeltaTest, LongerThanAllowedIsNone) {
  const auto one = Version({{"", {Object("a")}}}, 1);
  const auto two = Version({{"", {Object("b")}}}, 2);
  EXPECT_TRUE(absl::IsResourceExhausted(Diff(*one, *two, kHeaderSize + 5).status()));
}

TEST(DeltaTest, EveryCutAndEveryFlippedByteIsRefused) {
  const auto one = Version({{"", {Object("a"), Object("c")}}, {"d", {Object("x")}}}, 1);
  const auto two = Version({{"", {Object("b"), Object("c", 2)}}, {"e", {Object("x")}}}, 2);
  const std::string delta = Diff(*one, *two, kAnySize).value();
  ASSERT_TRUE(ApplyTo(*one, delta).ok());
  for (size_t size = 0; size < delta.size(); ++size) {
    EXPECT_FALSE(ApplyTo(*one, delta.substr(0, size)).ok()) << size;
  }
  for (size_t at = 0; at < delta.size(); ++at) {
    std::string damaged = delta;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    EXPECT_FALSE(ApplyTo(*one, damaged).ok()) << at;
  }
}

TEST(DeltaTest, OneThatLeadsElsewhereThanItSaysIsRefused) {
  const auto one = Version({{"", {Object("a")}}}, 1);
  const auto two = Version({{"", {Object("b")}}}, 2);
  DeltaHeader header = DecodeDeltaHeader(Diff(*one, *two, kAnySize).value()).value();
  DeltaWriter writer(kAnySize);
  writer.BeginDirectory(DirectoryChange::kStays, "");
  EntryView removed;
  removed.name = "a";
  writer.Add(EntryChange::kRemoved, removed);
  EXPECT_TRUE(absl::IsDataLoss(ApplyTo(*one, writer.Finish(header).value()).status()));
  for (const auto change : {EntryChange::kRemoved, EntryChange::kChanged}) {
    DeltaWriter unknown(kAnySize);
    unknown.BeginDirectory(DirectoryChange::kStays, "");
    std::string record;
    ASSERT_TRUE(AppendEntry(Object("x"), &record));
    EntryView entry;
    ASSERT_TRUE(Decoder(record).ReadEntry(&entry));
    unknown.Add(change, entry);
    EXPECT_TRUE(absl::IsDataLoss(ApplyTo(*one, unknown.Finish(header).value()).status()));
  }
}

}  // namespace
}  // namespace millrace::index
