// What only a directory has: symbolic links, special files, many entries.
#include "cache/store/file_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "cache/store/registry.h"
#include "test/support/child_process.h"

namespace millrace::store {
namespace {

class FileStoreTest : public ::testing::Test {
 protected:
  FileStoreTest() {
    test::WriteFile(dir_.path() + "/outside", "secret");
    test::WriteFile(root_ + "/dir/a", "inside");
    store_ = *NewFileStore(root_);
  }

  std::set<std::string> Names(const std::string& path) {
    std::set<std::string> names;
    const absl::StatusOr<ListPage> page = store_->List(path, "", 1000, CallOptions());
    if (!page.ok()) return {};
    for (const Entry& entry : page->entries) names.insert(entry.name);
    return names;
  }

  absl::Status Get(const std::string& path) {
    GetRequest request;
    request.path = path;
    request.length = 6;
    return store_->Get(
        request, [](absl::string_view) { return true; }, CallOptions());
  }

  test::TempDir dir_;
  const std::string root_ = dir_.path() + "/root";
  std::shared_ptr<Store> store_;
};

TEST_F(FileStoreTest, LinksInsideTheRootAreFollowed) {
  ASSERT_EQ(symlink("dir/a", (root_ + "/link").c_str()), 0);
  ASSERT_EQ(symlink("dir", (root_ + "/dirlink").c_str()), 0);
  ASSERT_EQ(symlink("../dir/a", (root_ + "/dir/back").c_str()), 0);
  EXPECT_EQ(Names(""), (std::set<std::string>{"dir", "link", "dirlink"}));
  EXPECT_TRUE(Get("link").ok());
  EXPECT_TRUE(Get("dirlink/a").ok());
  EXPECT_TRUE(Get("dir/back").ok());
  EXPECT_EQ(store_->Stat("dirlink", CallOptions())->kind, EntryKind::kDirectory);
}

TEST_F(FileStoreTest, LinksOutOfTheRootDoNotExist) {
  ASSERT_EQ(symlink("../outside", (root_ + "/up").c_str()), 0);
  ASSERT_EQ(symlink((dir_.path() + "/outside").c_str(), (root_ + "/absolute").c_str()), 0);
  ASSERT_EQ(symlink("..", (root_ + "/parent").c_str()), 0);
  ASSERT_EQ(symlink("loop", (root_ + "/loop").c_str()), 0);
  ASSERT_EQ(symlink("/proc/self/root", (root_ + "/magic").c_str()), 0);
  EXPECT_EQ(Names(""), (std::set<std::string>{"dir"}));
  for (const char* const path : {"up", "absolute", "parent/outside", "loop", "magic/etc/passwd"}) {
    EXPECT_EQ(Get(path).code(), absl::StatusCode::kNotFound) << path;
    EXPECT_FALSE(store_->Stat(path, CallOptions()).ok()) << path;
  }
}

TEST_F(FileStoreTest, SpecialFilesDoNotExist) {
  ASSERT_EQ(mkfifo((root_ + "/pipe").c_str(), 0600), 0);
  EXPECT_EQ(Names(""), (std::set<std::string>{"dir"}));
  EXPECT_EQ(Get("pipe").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->Stat("pipe", CallOptions()).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(FileStoreTest, AFileChangedDuringAReadIsNoticed) {
  const std::string path = root_ + "/big";
  test::WriteFile(path, std::string(3 << 20, 'a'));
  GetRequest request;
  request.path = "big";
  request.length = 3 << 20;
  uint64_t seen = 0;
  const absl::Status status = store_->Get(
      request,
      [&](absl::string_view piece) {
        if (seen == 0) {
          EXPECT_EQ(truncate(path.c_str(), 2 << 20), 0);
        }
        seen += piece.size();
        return true;
      },
      CallOptions());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_EQ(seen, 1u << 20);
}

TEST_F(FileStoreTest, AForeignTokenIsRefused) {
  EXPECT_EQ(store_->List("", "abc", 10, CallOptions()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(FileStoreTest, ASourceThatWasTakenOverMayComeLater) {
  const std::string late = dir_.path() + "/late";
  const absl::StatusOr<OpenedSource> source = ReopenSource(absl::StrCat("late=file://", late));
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->source.name, "late");
  EXPECT_EQ(source->store->kind(), "file");
  EXPECT_EQ(source->store->Stat("a", CallOptions()).status().code(),
            absl::StatusCode::kUnavailable);
  test::WriteFile(late + "/a", "here");
  EXPECT_EQ(source->store->Stat("a", CallOptions())->size, 4);
  // Where it is there, it is the store itself.
  EXPECT_TRUE(ReopenSource(absl::StrCat("file://", root_))->store->Stat("dir/a", {}).ok());
  EXPECT_EQ(ReopenSource("nonsense://x").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace millrace::store
