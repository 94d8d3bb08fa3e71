// What store.h promises, on every store.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache/store/store.h"
#include "test/contract/store_backend.h"

namespace millrace::test {
namespace {

using store::CallOptions;
using store::Entry;
using store::EntryKind;
using store::GetRequest;
using store::ListPage;
using ::testing::UnorderedElementsAre;

std::string Pattern(size_t bytes) {
  std::string text(bytes, '\0');
  uint32_t state = 1;
  for (char& c : text) {
    state = state * 1664525 + 1013904223;
    c = static_cast<char>(state >> 24);
  }
  return text;
}

class StoreContract : public ::testing::TestWithParam<BackendKind> {
 protected:
  void SetUp() override {
    std::string reason;
    backend_ = GetParam().make(&reason);
    if (backend_ == nullptr) GTEST_SKIP() << reason;
  }

  store::Store& store() { return backend_->store(); }

  // All entries of a directory by name; fails on a name that comes twice.
  std::map<std::string, Entry> ListAll(const std::string& path, size_t max_entries = 1000) {
    std::map<std::string, Entry> all;
    std::string token;
    do {
      const absl::StatusOr<ListPage> page = store().List(path, token, max_entries, call_);
      EXPECT_TRUE(page.ok()) << page.status();
      if (!page.ok()) return all;
      for (const Entry& entry : page->entries) {
        EXPECT_TRUE(all.emplace(entry.name, entry).second) << entry.name << " came twice";
      }
      token = page->next_token;
    } while (!token.empty());
    return all;
  }

  absl::StatusOr<std::string> Read(const std::string& path, uint64_t offset, uint64_t length,
                                   const std::string& version = "") {
    GetRequest request;
    request.path = path;
    request.offset = offset;
    request.length = length;
    request.version = version;
    std::string bytes;
    const absl::Status status = store().Get(
        request,
        [&bytes](absl::string_view piece) {
          bytes.append(piece.data(), piece.size());
          return true;
        },
        call_);
    if (!status.ok()) return status;
    return bytes;
  }

  std::unique_ptr<StoreBackend> backend_;
  CallOptions call_;
};

TEST_P(StoreContract, ListsOneLevelWithKindsSizesAndVersions) {
  backend_->Put("a.bin", "abc");
  backend_->Put("empty", "");
  backend_->Put("dir/b.bin", "12345");
  backend_->Put("dir/deeper/c.bin", "c");
  const std::map<std::string, Entry> root = ListAll("");
  ASSERT_EQ(root.size(), 3u);
  EXPECT_EQ(root.at("a.bin").kind, EntryKind::kObject);
  EXPECT_EQ(root.at("a.bin").size, 3u);
  EXPECT_FALSE(root.at("a.bin").version.empty());
  EXPECT_GT(root.at("a.bin").mtime, absl::UnixEpoch());
  EXPECT_EQ(root.at("empty").size, 0u);
  EXPECT_EQ(root.at("dir").kind, EntryKind::kDirectory);
  EXPECT_TRUE(root.at("dir").version.empty());
  const std::map<std::string, Entry> dir = ListAll("dir");
  ASSERT_EQ(dir.size(), 2u);
  EXPECT_EQ(dir.at("b.bin").size, 5u);
  EXPECT_EQ(dir.at("deeper").kind, EntryKind::kDirectory);
}

TEST_P(StoreContract, PagesOfAListingHoldEveryNameOnce) {
  for (int i = 0; i < 57; ++i) backend_->Put(absl::StrCat("d/file-", i), "x");
  for (int i = 0; i < 5; ++i) backend_->Put(absl::StrCat("d/sub-", i, "/x"), "x");
  EXPECT_EQ(ListAll("d", 10).size(), 62u);
  EXPECT_EQ(ListAll("d", 7).size(), 62u);
  EXPECT_EQ(ListAll("d", 100000).size(), 62u);
}

TEST_P(StoreContract, AMissingDirectoryIsNotFoundOrEmpty) {
  backend_->Put("a", "a");
  const absl::StatusOr<ListPage> page = store().List("missing/dir", "", 100, call_);
  if (page.ok()) {
    EXPECT_TRUE(page->entries.empty());
    EXPECT_EQ(page->next_token, "");
  } else {
    EXPECT_EQ(page.status().code(), absl::StatusCode::kNotFound) << page.status();
  }
}

TEST_P(StoreContract, StatAgreesWithList) {
  backend_->Put("dir/a.bin", Pattern(1000));
  const Entry listed = ListAll("dir").at("a.bin");
  const absl::StatusOr<Entry> entry = store().Stat("dir/a.bin", call_);
  ASSERT_TRUE(entry.ok()) << entry.status();
  EXPECT_EQ(entry->name, "a.bin");
  EXPECT_EQ(entry->kind, EntryKind::kObject);
  EXPECT_EQ(entry->size, 1000u);
  EXPECT_EQ(entry->version, listed.version);
  EXPECT_EQ(absl::ToUnixSeconds(entry->mtime), absl::ToUnixSeconds(listed.mtime));
}

TEST_P(StoreContract, StatTellsDirectoriesAndMissingNamesApart) {
  backend_->Put("dir/sub/a.bin", "a");
  for (const char* const path : {"", "dir", "dir/sub"}) {
    const absl::StatusOr<Entry> entry = store().Stat(path, call_);
    ASSERT_TRUE(entry.ok()) << path << ": " << entry.status();
    EXPECT_EQ(entry->kind, EntryKind::kDirectory) << path;
  }
  for (const char* const path : {"di", "dir/missing", "missing/a.bin", "dir/sub/a.bin/x"}) {
    EXPECT_EQ(store().Stat(path, call_).status().code(), absl::StatusCode::kNotFound) << path;
  }
}

TEST_P(StoreContract, GetsAnyRange) {
  const std::string bytes = Pattern(3'000'001);
  backend_->Put("big.bin", bytes);
  const std::pair<uint64_t, uint64_t> ranges[] = {
      {0, 3'000'001}, {0, 1}, {3'000'000, 1}, {1'000'000, 131'072}, {1, 3'000'000}};
  for (const auto& [offset, length] : ranges) {
    const absl::StatusOr<std::string> read = Read("big.bin", offset, length);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(*read == bytes.substr(offset, length)) << offset << "+" << length;
  }
}

TEST_P(StoreContract, GetOfAMissingObjectIsNotFound) {
  EXPECT_EQ(Read("missing", 0, 1).status().code(), absl::StatusCode::kNotFound);
}

TEST_P(StoreContract, GetBeyondTheEndIsFailedPrecondition) {
  backend_->Put("a", "abc");
  EXPECT_EQ(Read("a", 0, 4).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Read("a", 3, 1).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Read("a", 100, 5).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(StoreContract, GetOfAChangedObjectIsFailedPrecondition) {
  backend_->Put("a", "first");
  const absl::StatusOr<Entry> entry = store().Stat("a", call_);
  ASSERT_TRUE(entry.ok()) << entry.status();
  const absl::StatusOr<std::string> read = Read("a", 0, 5, entry->version);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, "first");
  backend_->Put("a", "the second");
  EXPECT_EQ(Read("a", 0, 5, entry->version).status().code(), absl::StatusCode::kFailedPrecondition);
  const absl::StatusOr<Entry> changed = store().Stat("a", call_);
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_NE(changed->version, entry->version);
}

TEST_P(StoreContract, ARemovedObjectIsNotFound) {
  backend_->Put("a", "abc");
  backend_->Put("b", "abc");
  backend_->Remove("a");
  EXPECT_EQ(Read("a", 0, 3).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ListAll("").size(), 1u);
}

TEST_P(StoreContract, TheSinkCanStop) {
  backend_->Put("a", Pattern(2'000'000));
  GetRequest request;
  request.path = "a";
  request.length = 2'000'000;
  int pieces = 0;
  const absl::Status status = store().Get(
      request, [&pieces](absl::string_view) { return ++pieces < 2; }, call_);
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
  EXPECT_EQ(pieces, 2);
  EXPECT_TRUE(Read("a", 0, 2'000'000).ok());
}

TEST_P(StoreContract, ACancelledGetEnds) {
  backend_->Put("a", Pattern(2'000'000));
  const std::atomic<bool> cancelled{true};
  call_.cancelled = &cancelled;
  EXPECT_EQ(Read("a", 0, 2'000'000).status().code(), absl::StatusCode::kCancelled);
}

TEST_P(StoreContract, NamesAreKeptAsTheyAre) {
  const std::vector<std::string> names = {"with space", "plus+sign",   "per%20cent", "hash#mark",
                                          "question?",  "amp&equals=", "quote\"'",   "ünïcode-名",
                                          "semi;colon", "tilde~",      "[brackets]", "a:b"};
  for (const std::string& name : names) backend_->Put("odd/" + name, name);
  const std::map<std::string, Entry> listed = ListAll("odd");
  EXPECT_EQ(listed.size(), names.size());
  for (const std::string& name : names) {
    EXPECT_EQ(listed.count(name), 1u) << name;
    const absl::StatusOr<std::string> read = Read("odd/" + name, 0, name.size());
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, name);
  }
}

TEST_P(StoreContract, NoNameLeadsOutOfTheRoot) {
  backend_->Put("dir/a", "a");
  for (const char* const path : {"..", "../..", "../scratch", "dir/../..", "dir/../../x",
                                 "/etc/passwd", "../../etc/passwd"}) {
    EXPECT_FALSE(store().Stat(path, call_).ok()) << path;
    EXPECT_FALSE(Read(path, 0, 1).ok()) << path;
    const absl::StatusOr<ListPage> page = store().List(path, "", 10, call_);
    EXPECT_TRUE(!page.ok() || page->entries.empty()) << path;
  }
  const std::string long_name(5000, 'x');
  EXPECT_FALSE(store().Stat(long_name, call_).ok());
  EXPECT_FALSE(store().Stat(std::string("dir\0/a", 6), call_).ok());
}

TEST_P(StoreContract, ASampleHasWholePaths) {
  backend_->Put("a/b/1", "x");
  backend_->Put("a/2", "xx");
  const absl::StatusOr<std::vector<Entry>> sample = store().Sample(100, call_);
  ASSERT_TRUE(sample.ok()) << sample.status();
  std::vector<std::string> names;
  for (const Entry& entry : *sample) names.push_back(entry.name);
  EXPECT_THAT(names, UnorderedElementsAre("a/b/1", "a/2"));
  const absl::StatusOr<std::vector<Entry>> one = store().Sample(1, call_);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(one->size(), 1u);
}

TEST_P(StoreContract, ManyThreadsReadAtOnce) {
  const std::string bytes = Pattern(500'000);
  backend_->Put("a", bytes);
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 10; ++i) {
        const uint64_t offset = (static_cast<uint64_t>(t) * 10 + i) * 5000;
        const absl::StatusOr<std::string> read = Read("a", offset, 5000);
        if (read.ok() && *read == bytes.substr(offset, 5000)) ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 80);
}

INSTANTIATE_TEST_SUITE_P(Every, StoreContract, ::testing::ValuesIn(AllBackends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace millrace::test
