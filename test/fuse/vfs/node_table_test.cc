#include "fuse/vfs/node_table.h"

#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace millrace::vfs {
namespace {

class NodeTableTest : public ::testing::Test {
 protected:
  NodeTableTest() { root_ = table_.FindOrCreate({.id = kRootNode, .is_directory = true}); }
  ~NodeTableTest() override { table_.Unpin(root_); }

  NodeTable table_;
  Node* root_;
};

TEST_F(NodeTableTest, SameIdentityIsTheSameNode) {
  const NodeSpec spec{.id = 100, .parent = root_, .name = "a", .size = 1, .version = "v"};
  Node* const one = table_.FindOrCreate(spec);
  Node* const two = table_.FindOrCreate(spec);
  EXPECT_EQ(one, two);
  table_.Unpin(one);
  EXPECT_EQ(table_.size(), 2u);
  table_.Unpin(two);
  EXPECT_EQ(table_.size(), 1u);
}

TEST_F(NodeTableTest, CollidingIdsTakeTheNextFreeOne) {
  std::vector<Node*> nodes;
  for (int i = 0; i < 5; ++i) {
    const std::string name = absl::StrCat("n", i);
    nodes.push_back(table_.FindOrCreate({.id = UINT64_MAX - 1, .parent = root_, .name = name}));
  }
  EXPECT_EQ(nodes[0]->id(), UINT64_MAX - 1);
  EXPECT_EQ(nodes[1]->id(), UINT64_MAX);
  EXPECT_EQ(nodes[2]->id(), 2u);  // Neither 0 nor the root's.
  EXPECT_EQ(nodes[3]->id(), 3u);
  for (Node* const node : nodes) {
    Attributes attributes;
    EXPECT_TRUE(table_.GetAttributes(node->id(), &attributes));
    EXPECT_EQ(attributes.id, node->id());
  }
  for (Node* const node : nodes) table_.Unpin(node);
}

TEST_F(NodeTableTest, LivesWhilePinnedOrLookedUpAndKeepsItsParents) {
  Node* const d =
      table_.FindOrCreate({.id = 7, .parent = root_, .name = "d", .is_directory = true});
  Node* const a = table_.FindOrCreate({.id = 8, .parent = d, .name = "a"});
  table_.AddLookups(a, 2);
  table_.Unpin(a);
  table_.Unpin(d);
  EXPECT_EQ(table_.size(), 3u);
  table_.Forget(8, 1);
  EXPECT_EQ(table_.size(), 3u);
  table_.Forget(8, 100);
  EXPECT_EQ(table_.size(), 1u);
  table_.Forget(8, 1);
  table_.Forget(kRootNode, 100);
  EXPECT_EQ(table_.size(), 1u);
}

TEST_F(NodeTableTest, ThreadsCreateFindAndForgetTheSameNodes) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this] {
      for (uint64_t i = 0; i < 20'000; ++i) {
        const std::string name = absl::StrCat(i % 7);
        Node* const node =
            table_.FindOrCreate({.id = (i % 7) << 60 | 9, .parent = root_, .name = name});
        table_.AddLookups(node, 1);
        table_.Unpin(node);
        Attributes attributes;
        ASSERT_TRUE(table_.GetAttributes((i % 7) << 60 | 9, &attributes));
        table_.Forget((i % 7) << 60 | 9, 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(table_.size(), 1u);
}

}  // namespace
}  // namespace millrace::vfs
