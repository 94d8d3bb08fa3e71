// Everything at once, for the thread sanitizer: lookups, forgets, streams, refreshes and changes of
// the store, in a tree so small that directories are dropped all the time.
#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "test/support/tree_fixture.h"

namespace millrace::vfs {
namespace {

constexpr int kDirectories = 6;
constexpr int kFiles = 60;
constexpr int kSteps = 400;

class TreeConcurrencyTest : public ::testing::Test, protected test::TreeFixture {
 protected:
  TreeConcurrencyTest() : TreeFixture(8) {
    for (int i = 0; i < kDirectories; ++i) {
      store->PutDirectory("", DirectoryName(i));
      store->Fill(DirectoryName(i), kFiles);
    }
    options.entries_max = 200;
    Start();
  }

  static std::string DirectoryName(int i) { return absl::StrCat("d", i); }

  // One step of one thread. The store is not changed but in its versions.
  void Step(std::mt19937& random) {
    const std::string directory_name = DirectoryName(static_cast<int>(random() % kDirectories));
    const std::string file_name = absl::StrFormat("file-%07d.jpg", random() % kFiles);
    if (random() % 4 == 0) {
      store->PutFile(directory_name, file_name, random() % 100, absl::StrCat("v", random() % 9));
    }
    clock.Advance(absl::Milliseconds(random() % 1000));
    const auto directory = Lookup(kRootNode, directory_name);
    ASSERT_TRUE(directory.ok()) << directory.status();
    const auto file = Lookup(directory->id, file_name);
    ASSERT_TRUE(file.ok()) << file.status();
    const auto ref = tree->File(file->id);
    ASSERT_TRUE(ref.ok());
    EXPECT_EQ(ref->path, absl::StrCat(directory_name, "/", file_name));
    EXPECT_EQ(ref->size, file->size);
    switch (random() % 8) {
      case 0:
        EXPECT_TRUE(tree->Refresh(directory->id).ok());
        break;
      case 1:
        EXPECT_EQ(List(directory->id, 1 + random() % 20).size(), kFiles);
        break;
      case 2: {
        size_t cursor = random() % 2 == 0 ? 0 : Tree::kAfterNode;
        EXPECT_LE(tree->Siblings(file->id, &cursor, 10).size(), 10u);
        break;
      }
      case 3:
        tree->RefreshDue();
        break;
      case 4: {
        size_t files = 0;
        EXPECT_TRUE(tree->Walk(directory_name,
                               [&files](const FileRef&) {
                                 ++files;
                                 return true;
                               })
                        .ok());
        EXPECT_EQ(files, kFiles);
        break;
      }
      default:
        break;
    }
    tree->Forget(file->id, 1);
    tree->Forget(directory->id, 1);
  }
};

TEST_F(TreeConcurrencyTest, ManyThreadsChangesAndDropsAtOnce) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 6; ++t) {
    threads.emplace_back([this, seed, t] {
      std::mt19937 random(seed + t);
      for (int i = 0; i < kSteps && !HasFatalFailure(); ++i) Step(random);
    });
  }
  for (std::thread& thread : threads) thread.join();
  tree.reset();
}

}  // namespace
}  // namespace millrace::vfs
