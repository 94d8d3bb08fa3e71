// What the tree does over time, with a clock moved by hand.
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/tree_fixture.h"

namespace millrace::vfs {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;
using Read = test::TreeFixture::Read;

class TreeRefreshTest : public ::testing::Test, protected test::TreeFixture {};

TEST_F(TreeRefreshTest, NewVersionIsANewNodeAndTheOldOneLivesOn) {
  store->PutFile("", "a", 10, "v1");
  options.threads = 1;  // No other is still on its way out of a call, with a listing in its hand.
  Start();
  const auto old = Lookup(kRootNode, "a");
  store->PutFile("", "a", 20, "v2");
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  EXPECT_THAT(invalidator.Take(), UnorderedElementsAre("1/a", "1/"));
  const auto now = Lookup(kRootNode, "a");
  EXPECT_NE(now->id, old->id);
  EXPECT_EQ(now->size, 20u);
  EXPECT_EQ(tree->GetAttributes(old->id)->size, 10u);
  EXPECT_EQ(tree->File(old->id)->version, "v1");
  EXPECT_EQ(tree->File(old->id)->path, "a");
  EXPECT_EQ(tree->Stats().changes, 1u);
  tree->Forget(old->id, 1);
  EXPECT_TRUE(absl::IsNotFound(tree->GetAttributes(old->id).status()));
  // Back to the old bytes: back to the old id.
  store->PutFile("", "a", 10, "v1");
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  EXPECT_EQ(IdOf(kRootNode, "a"), old->id);
}

TEST_F(TreeRefreshTest, SameVersionOfAnotherSizeIsAnotherNode) {
  store->PutFile("", "a", 10, "v");
  Start();
  const auto old = Lookup(kRootNode, "a");
  store->PutFile("", "a", 20, "v");
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  EXPECT_EQ(IdOf(kRootNode, "a"), old->id + 1);  // The next free id.
  EXPECT_EQ(tree->GetAttributes(old->id)->size, 10u);
}

TEST_F(TreeRefreshTest, RemovedAndAddedNamesAreTold) {
  store->PutFile("", "stays", 1, "v");
  store->PutFile("", "goes", 1, "v");
  Start();
  const auto goes = Lookup(kRootNode, "goes");
  EXPECT_TRUE(absl::IsNotFound(Lookup(kRootNode, "comes").status()));
  store->Remove("", "goes");
  store->PutFile("", "comes", 1, "v");
  EXPECT_TRUE(absl::IsNotFound(Lookup(kRootNode, "comes").status()));  // Not before a refresh.
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  EXPECT_THAT(invalidator.Take(), ElementsAre("1/", "1/comes", "1/goes"));
  EXPECT_TRUE(Lookup(kRootNode, "comes").ok());
  EXPECT_TRUE(absl::IsNotFound(Lookup(kRootNode, "goes").status()));
  EXPECT_EQ(tree->File(goes->id)->path, "goes");
  EXPECT_EQ(tree->Stats().changes, 2u);
}

TEST_F(TreeRefreshTest, FileThatBecomesADirectoryIsTold) {
  store->PutFile("", "a", 1, "v");
  Start();
  const auto file = Lookup(kRootNode, "a");
  store->Remove("", "a");
  store->PutDirectory("", "a");
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  EXPECT_TRUE(Lookup(kRootNode, "a")->is_directory);
  EXPECT_NE(IdOf(kRootNode, "a"), file->id);
  EXPECT_FALSE(tree->GetAttributes(file->id)->is_directory);
  EXPECT_THAT(invalidator.Take(), ElementsAre("1/", "1/a"));
}

TEST_F(TreeRefreshTest, NothingNewIsNotTold) {
  store->Fill("", 100);
  Start();
  List(kRootNode);
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  EXPECT_THAT(invalidator.Take(), IsEmpty());
  EXPECT_EQ(tree->Stats().listings, 2u);
  EXPECT_EQ(tree->Stats().changes, 0u);
}

TEST_F(TreeRefreshTest, DirectorysNewTimeIsShownUnderTheSameNode) {
  store->PutDirectory("", "d");
  Start();
  const auto before = Lookup(kRootNode, "d");
  store->PutEntry("", {.name = "d",
                       .kind = store::EntryKind::kDirectory,
                       .mtime = absl::FromUnixSeconds(1'600'000'000)});
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  EXPECT_EQ(tree->GetAttributes(before->id)->mtime, absl::FromUnixSeconds(1'600'000'000));
  EXPECT_THAT(invalidator.Take(), ElementsAre(absl::StrCat(before->id, "/")));
}

TEST_F(TreeRefreshTest, OpenStreamKeepsTheListingItBeganWith) {
  store->Fill("", 20);
  Start();
  const auto handle = *tree->OpenDirectory(kRootNode);
  const Read first = ReadLater(handle, 0, 5).Get();
  for (int i = 0; i < 20; ++i) store->Remove("", absl::StrFormat("file-%07d.jpg", i));
  store->PutFile("", "new", 1, "v");
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  const Read second = ReadLater(handle, first.offset, 100).Get();
  EXPECT_THAT(second.names, SizeIs(15));
  EXPECT_EQ(second.names[0], "file-0000005.jpg");
  EXPECT_THAT(ReadLater(handle, 0, 100).Get().names, ElementsAre("new"));  // rewinddir.
}

TEST_F(TreeRefreshTest, FailedRefreshKeepsTheOldListing) {
  store->PutFile("", "a", 1, "v");
  Start();
  const NodeId a = IdOf(kRootNode, "a");
  store->FailLists(absl::UnavailableError("no answer"), 2);
  EXPECT_TRUE(absl::IsUnavailable(tree->Refresh(kRootNode)));
  EXPECT_TRUE(absl::IsUnavailable(tree->Refresh(kRootNode)));
  EXPECT_EQ(IdOf(kRootNode, "a"), a);
  store->SetNotFound("");  // A source that vanishes whole is a fault of the source.
  EXPECT_TRUE(absl::IsNotFound(tree->Refresh(kRootNode)));
  EXPECT_EQ(IdOf(kRootNode, "a"), a);
  EXPECT_THAT(invalidator.Take(), IsEmpty());
}

TEST_F(TreeRefreshTest, DirectoryThatIsGoneIsTold) {
  store->PutDirectory("", "d");
  store->PutFile("d", "a", 1, "v");
  Start();
  const NodeId d = IdOf(kRootNode, "d");
  ASSERT_NE(IdOf(d, "a"), 0u);
  store->SetNotFound("d");
  EXPECT_TRUE(tree->Refresh(d).ok());
  EXPECT_THAT(invalidator.Take(),
              UnorderedElementsAre("1/d", absl::StrCat(d, "/a"), absl::StrCat(d, "/")));
  EXPECT_TRUE(absl::IsNotFound(Lookup(d, "a").status()));
}

TEST_F(TreeRefreshTest, UsedDirectoriesAreListedAgainEveryInterval) {
  store->PutFile("", "a", 1, "v1");
  Start();
  IdOf(kRootNode, "a");
  tree->RefreshDue();
  EXPECT_EQ(store->list_calls(), 1u);
  clock.Advance(absl::Seconds(59));
  tree->RefreshDue();
  EXPECT_EQ(store->list_calls(), 1u);
  clock.Advance(absl::Seconds(1));
  tree->RefreshDue();
  EXPECT_EQ(store->list_calls(), 2u);
  clock.Advance(absl::Seconds(59));
  tree->RefreshDue();
  EXPECT_EQ(store->list_calls(), 2u);
}

// What a pool's index does to a store: an old answer for those who can do with it.
class IndexedStore final : public test::ScriptedStore {
 public:
  explicit IndexedStore(std::shared_ptr<store::Store> now) : now_(std::move(now)) {}
  void SetAge(absl::Duration age) { age_ns_ = absl::ToInt64Nanoseconds(age); }

  absl::StatusOr<store::ListPage> List(const std::string& path, const std::string& token,
                                       size_t max_entries,
                                       const store::CallOptions& call) override {
    const absl::Duration age = absl::Nanoseconds(age_ns_.load());
    if (age > call.age_max) return now_->List(path, token, max_entries, call);
    absl::StatusOr<store::ListPage> page = ScriptedStore::List(path, token, max_entries, call);
    if (page.ok()) page->age = age;
    return page;
  }

 private:
  const std::shared_ptr<store::Store> now_;
  std::atomic<int64_t> age_ns_ = 0;
};

class IndexedTreeTest : public TreeRefreshTest {
 protected:
  IndexedTreeTest() {
    options.sources = {{{"", "memory://a"}, indexed}};
    store->PutFile("", "a", 1, "new");
    indexed->PutFile("", "a", 1, "old");
  }
  uint64_t Lists() const { return store->list_calls(); }

  std::shared_ptr<IndexedStore> indexed = std::make_shared<IndexedStore>(store);
};

TEST_F(IndexedTreeTest, WhatAnIndexSaysIsDueAnIntervalAfterTheIndexWasMade) {
  Start();
  indexed->SetAge(absl::Seconds(45));
  IdOf(kRootNode, "a");
  EXPECT_EQ(indexed->list_calls(), 1u);
  EXPECT_EQ(Lists(), 0u);
  clock.Advance(absl::Seconds(14));
  tree->RefreshDue();
  EXPECT_EQ(indexed->list_calls(), 1u);
  clock.Advance(absl::Seconds(1));
  tree->RefreshDue();
  EXPECT_EQ(indexed->list_calls(), 2u);
}

TEST_F(IndexedTreeTest, AnIndexOfFiveSixthsOfTheIntervalIsTooOld) {
  Start();
  indexed->SetAge(absl::Seconds(51));
  IdOf(kRootNode, "a");
  EXPECT_EQ(Lists(), 1u);
  // From the store, and so due a whole interval later.
  indexed->SetAge(absl::Seconds(50));
  clock.Advance(absl::Seconds(59));
  tree->RefreshDue();
  EXPECT_EQ(indexed->list_calls(), 0u);
  clock.Advance(absl::Seconds(1));
  tree->RefreshDue();
  EXPECT_EQ(indexed->list_calls(), 1u);
}

TEST_F(IndexedTreeTest, WithoutRefreshAnIndexMayBeFiftySecondsOld) {
  options.refresh = absl::InfiniteDuration();
  Start();
  store->PutDirectory("", "d");
  indexed->SetAge(absl::Seconds(51));
  const NodeId directory = IdOf(kRootNode, "d");
  EXPECT_EQ(Lists(), 1u);
  indexed->SetAge(absl::Seconds(50));
  List(directory);
  EXPECT_EQ(Lists(), 1u);
  EXPECT_EQ(indexed->list_calls(), 1u);
}

TEST_F(IndexedTreeTest, WhoAsksForARefreshIsToldWhatTheStoreHas) {
  Start();
  indexed->SetAge(absl::Seconds(1));
  const NodeId old_node = IdOf(kRootNode, "a");
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  EXPECT_EQ(Lists(), 1u);
  EXPECT_NE(IdOf(kRootNode, "a"), old_node);
}

TEST_F(IndexedTreeTest, ARefreshFromAnIndexUnderWayIsNotEnoughForWhoAsks) {
  Start();
  indexed->SetAge(absl::Seconds(1));
  const NodeId old_node = IdOf(kRootNode, "a");
  indexed->CloseListGate();
  clock.Advance(absl::Seconds(60));
  std::thread background([&] { tree->RefreshDue(); });
  indexed->AwaitLists(1);
  std::thread asking([&] { EXPECT_TRUE(tree->Refresh(kRootNode).ok()); });
  indexed->OpenGates();
  asking.join();
  background.join();
  EXPECT_EQ(Lists(), 1u);
  EXPECT_NE(IdOf(kRootNode, "a"), old_node);
}

TEST_F(TreeRefreshTest, ListingTakesAtMostATwentiethOfTheTime) {
  store->PutFile("", "a", 1, "v1");
  store->CloseListGate();
  Start();
  const auto first = LookupLater(kRootNode, "a");
  store->AwaitLists(1);
  clock.Advance(absl::Seconds(30));  // The listing took so long.
  store->OpenGates();
  ASSERT_TRUE(first.Get().ok());
  List(kRootNode);  // Complete by now.
  clock.Advance(absl::Seconds(599));
  tree->RefreshDue();
  EXPECT_EQ(store->list_calls(), 1u);
  clock.Advance(absl::Seconds(1));
  tree->RefreshDue();
  EXPECT_EQ(store->list_calls(), 2u);
}

TEST_F(TreeRefreshTest, IdleDirectoriesAreLeftAloneUntilTheirNextUse) {
  store->PutFile("", "a", 1, "v1");
  store->PutFile("", "b", 1, "v1");
  Start();
  const NodeId old = IdOf(kRootNode, "a");
  clock.Advance(absl::Minutes(11));
  tree->RefreshDue();
  EXPECT_EQ(store->list_calls(), 1u);
  // The kernel answers from its own cache and would never ask again: of what it holds, it must.
  EXPECT_THAT(invalidator.Take(), ElementsAre("1?a"));
  tree->RefreshDue();
  EXPECT_THAT(invalidator.Take(), IsEmpty());  // Once.
  store->PutFile("", "a", 1, "v2");
  store->CloseListGate();
  EXPECT_EQ(IdOf(kRootNode, "a"), old);  // The old listing serves meanwhile.
  store->AwaitLists(1);
  store->OpenGates();
  tree->RefreshDue();
  EXPECT_EQ(store->list_calls(), 2u);
  EXPECT_THAT(invalidator.Take(), ElementsAre("1/", "1/a"));
  EXPECT_NE(IdOf(kRootNode, "a"), old);
}

TEST_F(TreeRefreshTest, OpeningAFileIsAUseOfItsDirectory) {
  store->PutFile("", "a", 1, "v1");
  Start();
  const NodeId a = IdOf(kRootNode, "a");
  clock.Advance(absl::Minutes(9));
  ASSERT_TRUE(tree->File(a).ok());
  clock.Advance(absl::Minutes(9));
  tree->RefreshDue();
  EXPECT_EQ(store->list_calls(), 2u);
}

TEST_F(TreeRefreshTest, NeverMeansNever) {
  options.refresh = absl::InfiniteDuration();
  store->PutFile("", "a", 1, "v1");
  Start();
  const NodeId old = IdOf(kRootNode, "a");
  clock.Advance(absl::Hours(100'000));
  store->PutFile("", "a", 1, "v2");
  tree->RefreshDue();
  EXPECT_EQ(IdOf(kRootNode, "a"), old);
  EXPECT_EQ(store->list_calls(), 1u);
  EXPECT_THAT(invalidator.Take(), IsEmpty());
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());  // But when asked.
  EXPECT_NE(IdOf(kRootNode, "a"), old);
}

TEST_F(TreeRefreshTest, RefreshIsSharedByAllWhoAsk) {
  store->PutFile("", "a", 1, "v1");
  Start();
  IdOf(kRootNode, "a");
  store->CloseListGate();
  std::thread one([&] { EXPECT_TRUE(tree->Refresh(kRootNode).ok()); });
  store->AwaitLists(1);
  std::thread two([&] { EXPECT_TRUE(tree->Refresh(kRootNode).ok()); });
  EXPECT_TRUE(Lookup(kRootNode, "a").ok());  // Not held up by it.
  store->OpenGates();
  one.join();
  two.join();
  EXPECT_LE(store->list_calls(), 3u);
}

TEST_F(TreeRefreshTest, LeastUsedDirectoriesGoAndTheirNodesComeBackTheSame) {
  for (int i = 0; i < 10; ++i) {
    store->PutDirectory("", absl::StrCat("d", i));
    store->Fill(absl::StrCat("d", i), 100);
  }
  store->PutDirectory("", "empty");
  options.entries_max = 500;
  options.threads = 1;
  Start();
  std::vector<NodeId> directories;
  NodeId held = 0;
  for (int i = 0; i < 10; ++i) {
    clock.Advance(absl::Seconds(1));
    directories.push_back(IdOf(kRootNode, absl::StrCat("d", i)));
    const NodeId file = IdOf(directories.back(), "file-0000042.jpg");
    if (i == 0) held = file;
  }
  List(IdOf(kRootNode, "empty"));  // By the one thread: what came before it is done.
  tree->RefreshDue();              // Nothing is due; what was posted is delivered.
  EXPECT_LE(tree->Stats().files, 500u);
  EXPECT_LT(tree->nodes(), 530u);
  std::vector<std::string> told = invalidator.Take();
  EXPECT_THAT(told, ::testing::Contains(absl::StrCat(directories[0], "?file-0000042.jpg")));
  // What the kernel holds stays, and is found again under the same id.
  EXPECT_EQ(tree->File(held)->path, "d0/file-0000042.jpg");
  EXPECT_EQ(IdOf(directories[0], "file-0000042.jpg"), held);
}

TEST_F(TreeRefreshTest, BackgroundThreadRefreshesByTheRealClock) {
  options.clock = base::RealClock();
  options.refresh = absl::Milliseconds(200);
  options.refresh_thread = true;
  store->PutFile("", "a", 1, "v");
  Start();
  ASSERT_TRUE(Lookup(kRootNode, "a").ok());
  store->CloseListGate();
  store->AwaitLists(1);  // Hangs, and times out, if no one lists again.
  store->OpenGates();
}

}  // namespace
}  // namespace millrace::vfs
