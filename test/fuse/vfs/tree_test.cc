// The tree of names over scripted stores: identity, lookups, directory streams, walks. What changes
// over time is in tree_refresh_test.cc. fuse/SEMANTICS.md names these tests.
#include "fuse/vfs/tree.h"

#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/tree_fixture.h"

namespace millrace::vfs {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Read = test::TreeFixture::Read;

std::vector<std::string> Paths(Tree& tree, absl::string_view path) {
  std::vector<std::string> paths;
  const absl::Status status = tree.Walk(path, [&](const FileRef& file) {
    paths.push_back(absl::StrCat(file.source, ":", file.path));
    return true;
  });
  if (!status.ok()) paths.push_back(status.ToString());
  return paths;
}

class TreeTest : public ::testing::Test, protected test::TreeFixture {};
class PagedTreeTest : public ::testing::Test, protected test::TreeFixture {
 protected:
  PagedTreeTest() : TreeFixture(10) {}
};

TEST_F(TreeTest, OneSourceIsTheRoot) {
  store->PutFile("", "a.jpg", 7, "v1");
  store->PutDirectory("", "train");
  store->PutFile("train", "b.jpg", 8, "v2");
  Start();
  const auto file = Lookup(kRootNode, "a.jpg");
  ASSERT_TRUE(file.ok());
  EXPECT_FALSE(file->is_directory);
  EXPECT_EQ(file->size, 7u);
  const auto ref = tree->File(IdOf(IdOf(kRootNode, "train"), "b.jpg"));
  ASSERT_TRUE(ref.ok());
  EXPECT_EQ(ref->path, "train/b.jpg");
  EXPECT_EQ(ref->version, "v2");
  EXPECT_EQ(ref->size, 8u);
  EXPECT_EQ(ref->source, 0u);
  EXPECT_EQ(store->list_calls(), 2u);
}

TEST_F(TreeTest, NamedSourcesAreDirectoriesOfTheRoot) {
  const auto other = std::make_shared<test::ScriptedStore>();
  store->PutFile("", "x", 1, "v");
  other->PutFile("", "x", 1, "v");
  options.sources = {{{"train", "memory://a"}, store}, {{"val", "memory://a"}, other}};
  Start();
  EXPECT_THAT(List(kRootNode), ElementsAre("train", "val"));
  const NodeId one = IdOf(IdOf(kRootNode, "train"), "x");
  const NodeId two = IdOf(IdOf(kRootNode, "val"), "x");
  EXPECT_NE(one, two);  // Of the same URL: the source's name tells them apart.
  EXPECT_EQ(tree->File(two)->source, 1u);
  EXPECT_EQ(tree->File(two)->path, "x");
  EXPECT_EQ(tree->Parent(two), IdOf(kRootNode, "val"));
  EXPECT_THAT(Paths(*tree, ""), ElementsAre("0:x", "1:x"));
  EXPECT_THAT(Paths(*tree, "val"), ElementsAre("1:x"));
  EXPECT_TRUE(tree->Refresh(kRootNode).ok());
}

TEST_F(TreeTest, ResolvesPathsWithoutTheStore) {
  Start();
  EXPECT_EQ((*tree->Resolve("a/b"))[0].path, "a/b");
  EXPECT_EQ(tree->Resolve("a/../b").status().code(), absl::StatusCode::kInvalidArgument);
  options.sources = {{{"train", "memory://a"}, store}, {{"val", "memory://b"}, store}};
  Start();
  EXPECT_THAT(*tree->Resolve("/"), SizeIs(2));
  EXPECT_EQ((*tree->Resolve("val/a/b"))[0].source, 1u);
  EXPECT_EQ((*tree->Resolve("val/a/b"))[0].path, "a/b");
  EXPECT_TRUE(absl::IsNotFound(tree->Resolve("test/a").status()));
  EXPECT_EQ(store->list_calls(), 0u);
}

TEST_F(TreeTest, NodeIdsAreTheSameInTheNextTree) {
  store->PutFile("", "a", 1, "0123456789abcdef0123456789abcdef");
  store->PutDirectory("", "d");
  Start();
  const NodeId file = IdOf(kRootNode, "a");
  const NodeId directory = IdOf(kRootNode, "d");
  EXPECT_GT(file, kRootNode);
  EXPECT_GT(directory, kRootNode);
  EXPECT_NE(file, directory);
  Start();
  EXPECT_EQ(IdOf(kRootNode, "a"), file);
  EXPECT_EQ(IdOf(kRootNode, "d"), directory);
}

TEST_F(TreeTest, EveryFormOfVersionComesBackAsItWas) {
  const std::vector<std::string> versions = {"",
                                             "0123456789abcdef0123456789abcdef",
                                             "0123456789ABCDEF0123456789abcdef",
                                             "0123456789abcdef0123456789abcdef-12",
                                             "1500000000000000001-42",
                                             "1500000000000000002-42",
                                             std::string("\0\n", 2),
                                             std::string(5000, 'v')};
  for (size_t i = 0; i < versions.size(); ++i) {
    store->PutEntry("", {.name = absl::StrCat("f", i),
                         .size = 42,
                         .mtime = absl::FromUnixNanos(1500000000000000001),
                         .version = versions[i]});
  }
  Start();
  for (size_t i = 0; i < versions.size(); ++i) {
    const auto found = Lookup(kRootNode, absl::StrCat("f", i));
    ASSERT_TRUE(found.ok());
    EXPECT_EQ(found->mtime, absl::FromUnixNanos(1500000000000000001));
    EXPECT_EQ(tree->File(found->id)->version, versions[i]);
  }
}

TEST_F(TreeTest, UnknownNodesAreNotFound) {
  store->PutFile("", "a", 1, "v");
  Start();
  EXPECT_TRUE(absl::IsNotFound(tree->GetAttributes(4711).status()));
  EXPECT_TRUE(absl::IsNotFound(tree->File(4711).status()));
  EXPECT_TRUE(absl::IsNotFound(tree->OpenDirectory(4711).status()));
  EXPECT_TRUE(absl::IsNotFound(Lookup(4711, "a").status()));
  EXPECT_TRUE(absl::IsNotFound(tree->Refresh(4711)));
  EXPECT_EQ(tree->Parent(4711), kRootNode);
  tree->Forget(4711, 1);
  const NodeId file = IdOf(kRootNode, "a");
  EXPECT_TRUE(absl::IsFailedPrecondition(Lookup(file, "b").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(tree->OpenDirectory(file).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(tree->File(kRootNode).status()));
}

TEST_F(TreeTest, NamesThatNoListingHasAreNotAskedFor) {
  Start();
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("a/b"),
        std::string("a\0b", 3), std::string(256, 'n')}) {
    EXPECT_TRUE(absl::IsNotFound(Lookup(kRootNode, name).status())) << name;
  }
  EXPECT_EQ(store->list_calls(), 0u);
}

TEST_F(TreeTest, HostileNamesAreHiddenAndCounted) {
  const std::string longest(255, 'n');
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("a/"), std::string("a/b"),
        std::string("/"), std::string("a\0b", 3), std::string(256, 'n'), std::string(300, '/')}) {
    store->PutFile("", name, 0, "v");
    store->PutDirectory("", name);
  }
  store->PutEntry("", {.name = "huge", .size = uint64_t{1} << 63, .version = "v"});
  store->PutFile("", "largest", (uint64_t{1} << 63) - 1, "v");
  store->PutFile("", longest, 1, "v");
  store->PutFile("", "new\nline\x7f\x1b[0m", 1, "v");
  store->PutFile("", "\xff\xfe", 1, "v");
  store->PutFile("", "...", 1, "v");
  Start();
  EXPECT_THAT(List(kRootNode),
              ElementsAre("largest", longest, "new\nline\x7f\x1b[0m", "\xff\xfe", "..."));
  EXPECT_EQ(tree->Stats().names_hidden, 19u);
  EXPECT_EQ(tree->Stats().files, 5u);
  EXPECT_EQ(Lookup(kRootNode, "largest")->size, (uint64_t{1} << 63) - 1);
  EXPECT_TRUE(Lookup(kRootNode, "\xff\xfe").ok());
  EXPECT_TRUE(absl::IsNotFound(Lookup(kRootNode, "huge").status()));
}

TEST_F(TreeTest, DirectoryWinsOverFileAndFirstDuplicateWins) {
  store->PutFile("", "both", 1, "v");
  store->PutDirectory("", "both");
  store->PutDirectory("", "other");
  store->PutFile("", "other", 1, "v");
  store->PutFile("", "twice", 1, "v1");
  store->PutEntry("", {.name = "twice", .size = 2, .version = "v2"}, /*again=*/true);
  Start();
  EXPECT_THAT(List(kRootNode), ElementsAre("both", "other", "twice"));
  EXPECT_TRUE(Lookup(kRootNode, "both")->is_directory);
  EXPECT_TRUE(Lookup(kRootNode, "other")->is_directory);
  EXPECT_EQ(Lookup(kRootNode, "twice")->size, 1u);
  EXPECT_EQ(tree->Stats().names_hidden, 3u);
}

TEST_F(PagedTreeTest, DirectoryThatFollowsItsFileOnALaterPageTakesItsPlace) {
  store->PutFile("", "both", 1, "v");
  store->Fill("", 15);
  store->PutDirectory("", "both");
  store->CloseListGate();
  Start();
  const auto handle = *tree->OpenDirectory(kRootNode);
  const auto first = LookupLater(kRootNode, "both");
  store->LetLists(1);
  EXPECT_FALSE(first.Get()->is_directory);
  EXPECT_EQ(ReadLater(handle, 0, 1).Get().names[0], "both");
  store->OpenGates();
  EXPECT_THAT(List(kRootNode), SizeIs(16));
  EXPECT_TRUE(Lookup(kRootNode, "both")->is_directory);
  EXPECT_TRUE(ReadLater(handle, 0, 1).Get().attributes[0].is_directory);
  tree->RefreshDue();
  // The kernel was told that what it saw first is no longer so.
  EXPECT_THAT(invalidator.Take(), ElementsAre("1/both"));
}

TEST_F(TreeTest, ListsADirectoryOnceForAllWhoAsk) {
  store->PutFile("", "a", 1, "v");
  store->CloseListGate();
  Start();
  const auto one = LookupLater(kRootNode, "a");
  const auto two = LookupLater(kRootNode, "a");
  const auto three = LookupLater(kRootNode, "b");
  store->AwaitLists(1);
  EXPECT_FALSE(one.ready());
  store->OpenGates();
  EXPECT_EQ(one.Get()->id, two.Get()->id);
  EXPECT_TRUE(absl::IsNotFound(three.Get().status()));
  EXPECT_EQ(store->list_calls(), 1u);
  EXPECT_EQ(store->stat_calls(), 0u);
}

TEST_F(PagedTreeTest, AnswersANameAsSoonAsItsPageArrived) {
  store->Fill("", 25);
  store->CloseListGate();
  store->CloseStatGate();
  Start();
  const auto early = LookupLater(kRootNode, "file-0000003.jpg");
  const auto late = LookupLater(kRootNode, "file-0000013.jpg");
  store->LetLists(1);
  EXPECT_TRUE(early.Get().ok());
  store->AwaitStats(1);
  EXPECT_FALSE(late.ready());
  store->LetLists(1);
  EXPECT_TRUE(late.Get().ok());
  store->OpenGates();
}

TEST_F(PagedTreeTest, AsksForSingleNamesWhileALongListingArrives) {
  store->Fill("", 100);
  store->PutFile("", "last", 7, "v");
  store->CloseListGate();
  Start();
  const auto waiting = LookupLater(kRootNode, "last");
  store->LetLists(1);
  EXPECT_EQ(waiting.Get()->size, 7u);
  EXPECT_TRUE(Lookup(kRootNode, "file-0000077.jpg").ok());
  EXPECT_TRUE(absl::IsNotFound(Lookup(kRootNode, "nothing").status()));
  EXPECT_EQ(store->stat_calls(), 3u);
  EXPECT_TRUE(Lookup(kRootNode, "last").ok());
  EXPECT_EQ(store->stat_calls(), 3u);  // Known from before.
  store->OpenGates();
  EXPECT_THAT(List(kRootNode), SizeIs(101));
  EXPECT_EQ(IdOf(kRootNode, "last"), waiting.Get()->id);
  tree->RefreshDue();
  EXPECT_THAT(invalidator.Take(), IsEmpty());
}

TEST_F(PagedTreeTest, StatsAtOnceAreBounded) {
  options.threads = 8;
  store->Fill("", 100);
  store->CloseListGate();
  store->CloseStatGate();
  Start();
  std::vector<test::Promise<absl::StatusOr<Attributes>>> waiting;
  for (int i = 20; i < 60; ++i) {
    waiting.push_back(LookupLater(kRootNode, absl::StrFormat("file-%07d.jpg", i)));
  }
  store->LetLists(1);
  store->AwaitStats(4);
  store->LetStats(40);
  for (const auto& one : waiting) EXPECT_TRUE(one.Get().ok());
  EXPECT_LE(store->stats_at_once_max(), 4u);
  store->OpenGates();
}

TEST_F(PagedTreeTest, EarlyAnswersThatTheListingContradictsAreTakenBack) {
  store->Fill("", 30);
  store->PutFile("", "goes", 1, "v");
  store->PutFile("", "changes", 1, "v1");
  store->CloseListGate();
  Start();
  const auto goes = LookupLater(kRootNode, "goes");
  store->LetLists(1);
  EXPECT_TRUE(goes.Get().ok());
  EXPECT_TRUE(absl::IsNotFound(Lookup(kRootNode, "comes").status()));
  const auto changes = Lookup(kRootNode, "changes");
  store->Remove("", "goes");
  store->PutFile("", "changes", 1, "v2");
  store->PutFile("", "comes", 1, "v");
  store->OpenGates();
  EXPECT_THAT(List(kRootNode), SizeIs(32));
  tree->RefreshDue();
  EXPECT_THAT(invalidator.Take(), ElementsAre("1/changes", "1/comes", "1/goes"));
  EXPECT_NE(IdOf(kRootNode, "changes"), changes->id);
  EXPECT_EQ(tree->File(changes->id)->version, "v1");
}

TEST_F(PagedTreeTest, FailedStatLeavesTheAnswerToTheListing) {
  store->Fill("", 25);
  store->FailStats(absl::UnavailableError("slow down"), 1);
  store->CloseListGate();
  Start();
  const auto last = LookupLater(kRootNode, "file-0000024.jpg");
  store->LetLists(1);
  store->AwaitLists(1);
  store->OpenGates();
  EXPECT_TRUE(last.Get().ok());
}

TEST_F(TreeTest, FailedListingIsReportedAndTriedAgain) {
  store->PutFile("", "a", 1, "v");
  store->FailLists(absl::UnavailableError("no answer"), 1);
  Start();
  EXPECT_TRUE(absl::IsUnavailable(Lookup(kRootNode, "a").status()));
  EXPECT_TRUE(absl::IsUnavailable(Lookup(kRootNode, "a").status()));
  EXPECT_THAT(List(kRootNode), ElementsAre(HasSubstr("no answer")));
  EXPECT_EQ(store->list_calls(), 1u);
  clock.Advance(absl::Seconds(1));
  EXPECT_TRUE(Lookup(kRootNode, "a").ok());
}

TEST_F(PagedTreeTest, ListingThatFailsHalfwayGivesWhatItHasAndThenTheError) {
  store->Fill("", 25);
  store->CloseListGate();
  Start();
  const auto handle = *tree->OpenDirectory(kRootNode);
  const auto first = ReadLater(handle, 0, 100);
  store->LetLists(1);
  EXPECT_THAT(first.Get().names, SizeIs(10));
  store->FailLists(absl::UnavailableError("reset"), 1);
  const auto second = ReadLater(handle, 10, 100);
  store->OpenGates();
  EXPECT_TRUE(absl::IsUnavailable(second.Get().status));
  EXPECT_THAT(second.Get().names, IsEmpty());
  clock.Advance(absl::Seconds(1));
  EXPECT_THAT(List(kRootNode), SizeIs(25));
}

TEST_F(TreeTest, PagesWithoutAnEndAreAnError) {
  store->PutFile("", "a", 1, "v");
  store->RepeatToken();
  Start();
  EXPECT_THAT(List(kRootNode).back(), HasSubstr("the same token twice"));
}

TEST_F(PagedTreeTest, DirectoryLargerThanTheTreeIsAnError) {
  options.entries_max = 50;
  store->Fill("", 100);
  Start();
  EXPECT_THAT(List(kRootNode).back(), HasSubstr("more than 50 entries"));
}

TEST_F(PagedTreeTest, FirstEntriesComeAfterTheFirstPage) {
  store->Fill("", 200'000);
  store->CloseListGate();
  Start();
  const auto handle = *tree->OpenDirectory(kRootNode);
  const auto first = ReadLater(handle, 0, 1000);
  store->AwaitLists(1);
  EXPECT_FALSE(first.ready());
  store->LetLists(1);
  EXPECT_THAT(first.Get().names, SizeIs(10));
  const auto second = ReadLater(handle, 10, 1000);
  store->AwaitLists(1);
  EXPECT_FALSE(second.ready());
  store->LetLists(1);
  EXPECT_EQ(second.Get().names.front(), "file-0000010.jpg");
}

TEST_F(PagedTreeTest, OffsetsAreStableAndAnyBufferSizeGivesAllNamesOnce) {
  store->Fill("", 137);
  Start();
  const std::vector<std::string> all = List(kRootNode);
  ASSERT_THAT(all, SizeIs(137));
  for (const size_t buffer : {1, 7, 64, 65, 1000}) EXPECT_EQ(List(kRootNode, buffer), all);
  const auto handle = *tree->OpenDirectory(kRootNode);
  EXPECT_EQ(ReadLater(handle, 100, 1).Get().names[0], all[100]);
  EXPECT_EQ(ReadLater(handle, 5, 1).Get().names[0], all[5]);
  EXPECT_THAT(ReadLater(handle, 137, 10).Get().names, IsEmpty());
  EXPECT_THAT(ReadLater(handle, UINT64_MAX, 10).Get().names, IsEmpty());
  EXPECT_TRUE(ReadLater(handle, UINT64_MAX, 10).Get().status.ok());
}

TEST_F(TreeTest, ReadDirectoryPlusCountsALookupForEachEntryTaken) {
  options.threads = 1;  // No other is still on its way out of a call, with a listing in its hand.
  store->PutFile("", "a", 1, "v");
  store->PutFile("", "b", 1, "v");
  Start();
  const auto handle = *tree->OpenDirectory(kRootNode);
  const Read read = ReadLater(handle, 0, 1, /*plus=*/true).Get();
  ASSERT_THAT(read.names, ElementsAre("a"));
  store->Remove("", "a");
  store->Remove("", "b");
  const NodeId b = ReadLater(handle, 1, 1).Get().attributes[0].id;
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  ReadLater(handle, 0, 1).Get();  // The handle lets go of the old listing.
  EXPECT_TRUE(tree->GetAttributes(read.attributes[0].id).ok());
  EXPECT_TRUE(absl::IsNotFound(tree->GetAttributes(b).status()));
  tree->Forget(read.attributes[0].id, 1);
  EXPECT_TRUE(absl::IsNotFound(tree->GetAttributes(read.attributes[0].id).status()));
}

TEST_F(TreeTest, OpeningADirectoryListsNothing) {
  Start();
  EXPECT_TRUE(tree->OpenDirectory(kRootNode).ok());
  EXPECT_EQ(store->list_calls(), 0u);
}

TEST_F(TreeTest, SiblingsFollowTheListing) {
  store->Fill("", 5);
  store->PutDirectory("", "d");
  store->PutFile("", "z", 1, "v");
  Start();
  const NodeId second = IdOf(kRootNode, "file-0000001.jpg");
  size_t cursor = Tree::kAfterNode;
  std::vector<FileRef> files = tree->Siblings(second, &cursor, 2);
  ASSERT_THAT(files, SizeIs(2));
  EXPECT_EQ(files[0].path, "file-0000002.jpg");
  EXPECT_EQ(files[1].path, "file-0000003.jpg");
  files = tree->Siblings(second, &cursor, 10);
  ASSERT_THAT(files, SizeIs(2));
  EXPECT_EQ(files[1].path, "z");
  EXPECT_THAT(tree->Siblings(second, &cursor, 10), IsEmpty());
  cursor = 0;
  EXPECT_THAT(tree->Siblings(second, &cursor, 100), SizeIs(6));
  EXPECT_THAT(tree->Siblings(4711, &cursor, 100), IsEmpty());
  EXPECT_THAT(tree->Siblings(kRootNode, &cursor, 100), IsEmpty());
}

TEST_F(PagedTreeTest, WalksDepthFirstInListingOrder) {
  store->PutFile("", "a", 1, "v");
  store->PutDirectory("", "d");
  store->PutFile("", "z", 1, "v");
  store->PutDirectory("d", "e");
  store->PutFile("d", "f", 1, "v");
  store->PutFile("d/e", "g", 1, "v");
  store->Fill("d/e", 25);
  Start();
  const std::vector<std::string> all = Paths(*tree, "");
  ASSERT_THAT(all, SizeIs(29));
  EXPECT_EQ(all[0], "0:a");
  EXPECT_EQ(all[1], "0:d/e/g");
  EXPECT_EQ(all[27], "0:d/f");
  EXPECT_EQ(all[28], "0:z");
  EXPECT_EQ(Paths(*tree, ""), all);
  EXPECT_THAT(Paths(*tree, "/d/e/"), SizeIs(26));
  EXPECT_THAT(Paths(*tree, "d/f"), ElementsAre("0:d/f"));
  int visits = 0;
  EXPECT_TRUE(tree->Walk("", [&](const FileRef&) { return ++visits < 3; }).ok());
  EXPECT_EQ(visits, 3);
}

TEST_F(TreeTest, WalkRefusesPathsThatLeaveTheMount) {
  store->PutFile("", "a", 1, "v");
  Start();
  for (const char* path : {"..", "../a", "a/..", "./a", "a/../../b"}) {
    EXPECT_THAT(Paths(*tree, path), ElementsAre(HasSubstr("INVALID_ARGUMENT"))) << path;
  }
  EXPECT_THAT(Paths(*tree, "b"), ElementsAre(HasSubstr("NOT_FOUND")));
  EXPECT_THAT(Paths(*tree, "a/b"), ElementsAre(HasSubstr("NOT_FOUND")));
}

TEST_F(TreeTest, WalkReportsAStoresErrorAndPassesOverWhatVanished) {
  store->PutDirectory("", "d");
  store->PutFile("", "z", 1, "v");
  store->SetNotFound("d");
  Start();
  EXPECT_THAT(Paths(*tree, ""), ElementsAre("0:z"));
  clock.Advance(absl::Seconds(1));
  store->FailLists(absl::PermissionDeniedError("refused"), 1);
  EXPECT_THAT(Paths(*tree, ""), ElementsAre(HasSubstr("refused")));
}

TEST_F(TreeTest, WalkOfALoopEnds) {
  std::string path;
  for (int i = 0; i < 600; ++i) {
    store->PutDirectory(path, "again");
    path += path.empty() ? "again" : "/again";
  }
  Start();
  EXPECT_THAT(Paths(*tree, ""), ElementsAre(HasSubstr("is there a loop?")));
}

TEST_F(TreeTest, AnswersAllWhoWaitWhenItEnds) {
  store->PutFile("", "a", 1, "v");
  store->CloseListGate();
  Start();
  const auto lookup = LookupLater(kRootNode, "a");
  const auto handle = *tree->OpenDirectory(kRootNode);
  const auto read = ReadLater(handle, 0, 10);
  store->AwaitLists(1);
  tree.reset();
  EXPECT_TRUE(absl::IsCancelled(lookup.Get().status()));
  EXPECT_TRUE(absl::IsCancelled(read.Get().status));
}

TEST_F(TreeTest, GivesBackEveryNode) {
  store->Fill("d", 100);
  store->PutDirectory("", "d");
  options.entries_max = 100;
  options.threads = 1;  // As above.
  Start();
  const NodeId d = IdOf(kRootNode, "d");
  const NodeId file = IdOf(d, "file-0000001.jpg");
  EXPECT_EQ(tree->nodes(), 102u);
  tree->Forget(file, 2);  // One more than there are.
  store->Remove("", "d");
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  store->SetNotFound("d");
  ASSERT_TRUE(tree->Refresh(d).ok());
  tree->Forget(d, 1);
  EXPECT_TRUE(absl::IsNotFound(tree->GetAttributes(file).status()));
}

}  // namespace
}  // namespace millrace::vfs
