#include "cache/index/index_file.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
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

absl::StatusOr<std::shared_ptr<const Index>> OpenBytes(absl::string_view bytes) {
  base::UniqueFd file = NewUnnamedFile("").value();
  EXPECT_EQ(pwrite(file.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return Index::Open(std::move(file));
}

Contents Small() {
  return {{"", {Directory("a"), Object("top", 3), Object("a", 9)}},
          {"a", {Object("z"), Object("b", 5, "v"), Directory("empty")}},
          {"a/empty", {}},
          {"a-b", {Object("x")}}};
}

std::vector<std::string> NamesOf(const Index::Page& page) {
  std::vector<std::string> names;
  for (const EntryView& entry : page.entries) names.emplace_back(entry.name);
  return names;
}

TEST(IndexTest, HasWhatItWasMadeOfInOrder) {
  const std::string etag = "00112233445566778899aabbccddeeff";
  EXPECT_EQ(Lines(*MakeIndex(Small())),
            (std::vector<std::string>{
                "/", "/a 0 9 1700000000123 " + etag, "/a 1 0 0 ", "/top 0 3 1700000000123 " + etag,
                "a/", "a/b 0 5 1700000000123 v", "a/empty 1 0 0 ", "a/z 0 1 1700000000123 " + etag,
                "a-b/", "a-b/x 0 1 1700000000123 " + etag, "a/empty/"}));
}

TEST(IndexTest, FindsEveryEntryByItsPathAndNothingElse) {
  Contents contents;
  for (int d = 0; d < 30; ++d) {
    const std::string name = absl::StrCat("dir", d);
    contents[""].push_back(Directory(name));
    for (int f = 0; f < 100; ++f) contents[name].push_back(Object(absl::StrCat("f", f), d * f));
  }
  const auto index = MakeIndex(contents);
  for (const auto& [path, entries] : contents) {
    for (const store::Entry& entry : entries) {
      const std::string full = path.empty() ? entry.name : absl::StrCat(path, "/", entry.name);
      const auto found = index->Find(full).value();
      ASSERT_TRUE(found.has_value()) << full;
      EXPECT_EQ(found->name, entry.name);
      EXPECT_EQ(found->size, entry.size);
    }
    EXPECT_FALSE(index->Find(path + "/f100").value().has_value());
  }
  for (const char* const path :
       {"dir30/f1", "dir1/", "/", "/dir1", "dir1//f1", "f1", "dir1/f1/x"}) {
    EXPECT_FALSE(index->Find(path).value().has_value()) << path;
  }
}

TEST(IndexTest, TheRootIsADirectoryAndAFileHidesADirectoryOfItsName) {
  const auto index = MakeIndex(Small());
  EXPECT_EQ(index->Find("").value()->kind, store::EntryKind::kDirectory);
  EXPECT_EQ(index->Find("a").value()->kind, store::EntryKind::kObject);
}

TEST(IndexTest, ListsPageByPage) {
  Contents contents;
  std::vector<std::string> expected;
  for (int i = 0; i < 100; ++i) expected.push_back(absl::StrCat("f", 100 + i));
  for (const std::string& name : expected) contents["d"].push_back(Object(name));
  // An object and a directory of one name, on both sides of a page's end.
  contents["d"].push_back(Directory("f109"));
  expected.insert(expected.begin() + 10, "f109");
  const auto index = MakeIndex(contents);
  for (const size_t max : {1, 7, 10, 101, 1000}) {
    std::vector<std::string> names;
    std::optional<Index::Position> after;
    for (bool last = false; !last;) {
      const Index::Page page = index->List("d", after, max).value().value();
      ASSERT_LE(page.entries.size(), max);
      for (const std::string& name : NamesOf(page)) names.push_back(name);
      last = page.last;
      if (!last) after = Index::Position{page.entries.back().name, page.entries.back().kind};
    }
    EXPECT_EQ(names, expected) << max;
  }
}

TEST(IndexTest, APageBehindAnEntryThatIsGoneGoesOnWhereItWould) {
  const auto index = MakeIndex({{"", {Object("a"), Object("c"), Object("e")}}});
  const auto after = [&](absl::string_view name) {
    return NamesOf(index->List("", Index::Position{name}, 10).value().value());
  };
  EXPECT_EQ(after("b"), (std::vector<std::string>{"c", "e"}));
  EXPECT_EQ(after("a"), (std::vector<std::string>{"c", "e"}));
  EXPECT_EQ(after("f"), std::vector<std::string>());
}

TEST(IndexTest, AnEmptyDirectoryIsThereAndAnUnknownOneIsNot) {
  const auto index = MakeIndex(Small());
  const auto page = index->List("a/empty", std::nullopt, 10).value();
  ASSERT_TRUE(page.has_value());
  EXPECT_TRUE(page->entries.empty());
  EXPECT_TRUE(page->last);
  EXPECT_FALSE(index->List("b", std::nullopt, 10).value().has_value());
  EXPECT_FALSE(index->List("top", std::nullopt, 10).value().has_value());
}

TEST(IndexTest, AnEmptySourceHasAnIndex) {
  const auto index = MakeIndex({{"", {}}});
  EXPECT_EQ(index->header().entries, 0u);
  EXPECT_TRUE(index->List("", std::nullopt, 10).value()->last);
  EXPECT_FALSE(index->Find("a").value().has_value());
  EXPECT_EQ(MakeIndex({})->header().directories, 0u);
}

TEST(IndexTest, TheSameEntriesGiveTheSameBytesInWhateverOrderTheyCome) {
  Contents contents;
  for (int i = 0; i < 2000; ++i) {
    contents[absl::StrCat("d", i % 50)].push_back(Object(absl::StrCat("f", i), i));
  }
  const std::string bytes = BytesOf(*MakeIndex(contents));
  std::vector<std::pair<std::string, store::Entry>> all;
  for (const auto& [path, entries] : contents) {
    for (const store::Entry& entry : entries) all.emplace_back(path, entry);
  }
  std::mt19937_64 random(1);
  for (const size_t memory_bytes : {64u << 20, 4096u, 1u << 15}) {
    std::shuffle(all.begin(), all.end(), random);
    EntrySorter sorter({.memory_bytes = memory_bytes});
    for (const auto& [path, entry] : all) ASSERT_TRUE(sorter.Add(path, {&entry, 1}).ok());
    IndexWriter writer(NewUnnamedFile("").value());
    ASSERT_TRUE(sorter.WriteTo(&writer.records()).ok());
    const auto index = writer.Finish({.version = 1, .seed = 5});
    ASSERT_TRUE(index.ok()) << index.status();
    EXPECT_TRUE(BytesOf(**index) == bytes) << memory_bytes;
  }
}

TEST(IndexTest, OfTwoEntriesOfOneNameAndKindTheFirstCounts) {
  for (const size_t memory_bytes : {64u << 20, 1u}) {
    EntrySorter sorter({.memory_bytes = memory_bytes});
    for (const uint64_t size : {1, 2, 3}) {
      const store::Entry entry = Object("f", size);
      ASSERT_TRUE(sorter.Add("", {&entry, 1}).ok());
    }
    IndexWriter writer(NewUnnamedFile("").value());
    ASSERT_TRUE(sorter.WriteTo(&writer.records()).ok());
    const auto index = writer.Finish({.version = 1, .seed = 5});
    ASSERT_TRUE(index.ok()) << index.status();
    EXPECT_EQ((*index)->header().entries, 1u);
    EXPECT_EQ((*index)->Find("f").value()->size, 1u);
  }
}

TEST(IndexTest, EveryCutAndEveryFlippedByteIsRefused) {
  const std::string bytes = BytesOf(*MakeIndex(Small()));
  ASSERT_TRUE(OpenBytes(bytes).ok());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_TRUE(absl::IsDataLoss(OpenBytes(bytes.substr(0, size)).status())) << size;
  }
  for (size_t at = 0; at < bytes.size(); ++at) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    EXPECT_TRUE(absl::IsDataLoss(OpenBytes(damaged).status())) << at;
  }
  EXPECT_TRUE(absl::IsDataLoss(OpenBytes(bytes + "x").status()));
}

TEST(IndexTest, AnOpenedMemoryFileCannotChange) {
  const auto index = MakeIndex(Small());
  EXPECT_NE(pwrite(index->fd(), "x", 1, 0), 1);
  EXPECT_NE(ftruncate(index->fd(), 0), 0);
}

TEST(IndexTest, EntriesOutOfOrderAreNotWritten) {
  IndexWriter writer(NewUnnamedFile("").value());
  writer.records().BeginDirectory("b");
  writer.records().BeginDirectory("a");
  EXPECT_TRUE(absl::IsDataLoss(writer.Finish({}).status()));
}

}  // namespace
}  // namespace millrace::index
