// A tree that goes on where one that died at this moment left off.
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/ledger_file.h"
#include "test/support/tree_fixture.h"

namespace millrace::vfs {
namespace {

using test::LedgerFile;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class TreeRestoreTest : public ::testing::Test, protected test::TreeFixture {
 protected:
  explicit TreeRestoreTest(size_t page_entries = 1000) : TreeFixture(page_entries) {}

  void StartKept(const Ledger::Size& size = LedgerFile::kSize) {
    ledger_ = file_.Open(size);
    ASSERT_NE(ledger_, nullptr);
    options.ledger = ledger_.get();
    Start();
  }

  // The process ends at this instruction, and another one takes over.
  void Die(const Ledger::Size& size = LedgerFile::kSize) {
    LedgerFile left = file_.Copy();
    tree.reset();
    file_ = std::move(left);
    invalidator.Take();
    StartKept(size);
  }

  LedgerFile file_;
  std::unique_ptr<Ledger> ledger_;
};

TEST_F(TreeRestoreTest, NodesComeBackWithTheirIdsAndAttributes) {
  const std::string hex = "0123456789abcdef0123456789abcdef";
  store->PutDirectory("", "d");
  store->PutDirectory("d", "e");
  store->PutFile("d/e", "etag", 10, hex);
  store->PutFile("d/e", "plain", 20, "W/\"5\"");
  store->PutEntry("d/e", {.name = "derived",
                          .size = 30,
                          .mtime = absl::FromUnixNanos(1'234'567'890'123),
                          .version = "1234567890123-30"});
  StartKept();
  const NodeId d = IdOf(kRootNode, "d");
  const NodeId e = IdOf(d, "e");
  std::vector<Attributes> files;
  std::vector<FileRef> refs;
  for (const char* const name : {"etag", "plain", "derived"}) {
    files.push_back(*Lookup(e, name));
    refs.push_back(*tree->File(files.back().id));
  }
  Die();
  for (size_t i = 0; i < files.size(); ++i) {
    const auto now = tree->GetAttributes(files[i].id);
    ASSERT_TRUE(now.ok());
    EXPECT_EQ(now->size, files[i].size);
    EXPECT_EQ(now->mtime, files[i].mtime);
    const auto ref = tree->File(files[i].id);
    ASSERT_TRUE(ref.ok());
    EXPECT_EQ(ref->path, refs[i].path);
    EXPECT_EQ(ref->version, refs[i].version);
    EXPECT_EQ(tree->Parent(files[i].id), e);
  }
  EXPECT_TRUE(tree->GetAttributes(e)->is_directory);
  EXPECT_EQ(tree->Parent(e), d);
  EXPECT_EQ(tree->Parent(d), kRootNode);
}

TEST_F(TreeRestoreTest, LookupsAreNeitherLostNorAdded) {
  store->PutDirectory("", "d");
  store->PutFile("d", "a", 1, "v");
  StartKept();
  const NodeId d = IdOf(kRootNode, "d");
  const NodeId a = IdOf(d, "a");
  IdOf(d, "a");
  IdOf(d, "a");
  tree->Forget(a, 1);
  Die();
  tree->Forget(a, 1);
  EXPECT_TRUE(tree->GetAttributes(a).ok());
  Die();
  tree->Forget(a, 1);
  Die();
  EXPECT_FALSE(tree->GetAttributes(a).ok());
  tree->Forget(d, 1);
  Die();
  EXPECT_EQ(ledger_->stats().nodes, 0u);
  EXPECT_EQ(tree->nodes(), 1u);
}

// A parent that the kernel forgot before its child.
TEST_F(TreeRestoreTest, ParentsLiveAsLongAsTheirChildren) {
  store->PutDirectory("", "d");
  store->PutFile("d", "a", 1, "v");
  StartKept();
  const NodeId d = IdOf(kRootNode, "d");
  const NodeId a = IdOf(d, "a");
  tree->Forget(d, 1);
  Die();
  EXPECT_EQ(tree->File(a)->path, "d/a");
  EXPECT_EQ(IdOf(kRootNode, "d"), d);
}

TEST_F(TreeRestoreTest, KnownNamesAreAnsweredWhileTheStoreIsAway) {
  store->PutDirectory("", "d");
  store->PutFile("d", "a", 1, "v");
  store->PutFile("d", "b", 1, "v");
  StartKept();
  const NodeId d = IdOf(kRootNode, "d");
  const NodeId a = IdOf(d, "a");
  Die();
  store->FailLists(absl::UnavailableError("away"), 1000);
  store->FailStats(absl::UnavailableError("away"), 1000);
  EXPECT_EQ(IdOf(kRootNode, "d"), d);
  EXPECT_EQ(IdOf(d, "a"), a);
  const size_t calls = store->list_calls();
  EXPECT_TRUE(absl::IsUnavailable(Lookup(d, "b").status()));
  EXPECT_EQ(store->list_calls(), calls + 1);
  // A listing that failed, for whomever, takes nothing away.
  EXPECT_EQ(IdOf(d, "a"), a);
  tree->RefreshDue();
  clock.Advance(absl::Minutes(1));
  EXPECT_EQ(IdOf(d, "a"), a);
  EXPECT_THAT(invalidator.Take(), IsEmpty());

  store->FailLists(absl::OkStatus(), 0);
  store->FailStats(absl::OkStatus(), 0);
  store->PutFile("d", "a", 2, "v2");
  tree->RefreshDue();
  EXPECT_THAT(invalidator.Take(),
              UnorderedElementsAre("1/", absl::StrCat(d, "/"), absl::StrCat(d, "/a")));
  EXPECT_EQ(Lookup(d, "a")->size, 2u);
}

TEST_F(TreeRestoreTest, DifferencesToWhatThePredecessorToldAreTold) {
  store->PutDirectory("", "d");
  for (const char* const name : {"same", "changed", "gone", "becomes-directory", "not-asked"}) {
    store->PutFile("d", name, 1, "v");
  }
  StartKept();
  const NodeId d = IdOf(kRootNode, "d");
  const NodeId changed = IdOf(d, "changed");
  for (const char* const name : {"same", "gone", "becomes-directory"}) IdOf(d, name);
  store->PutFile("d", "changed", 1, "v2");
  store->Remove("d", "gone");
  store->Remove("d", "becomes-directory");
  store->PutDirectory("d", "becomes-directory");
  store->PutFile("d", "not-asked", 1, "v2");
  Die();
  EXPECT_EQ(IdOf(d, "changed"), changed);  // Not known better yet.
  tree->RefreshDue();
  const std::string in = absl::StrCat(d, "/");
  EXPECT_THAT(invalidator.Take(), UnorderedElementsAre("1/", in, in + "changed", in + "gone",
                                                       in + "becomes-directory"));
  EXPECT_NE(IdOf(d, "changed"), changed);
  EXPECT_EQ(tree->File(changed)->version, "v");  // An open file keeps what it has.
  EXPECT_TRUE(absl::IsNotFound(Lookup(d, "gone").status()));
  EXPECT_TRUE(Lookup(d, "becomes-directory")->is_directory);
  tree->RefreshDue();
  EXPECT_THAT(invalidator.Take(), IsEmpty());
}

// Somebody who reads the directory before its turn in the background.
TEST_F(TreeRestoreTest, ADirectoryThatIsUsedIsListedAtOnceAndItsDifferencesAreTold) {
  store->PutFile("", "a", 1, "v");
  store->PutFile("", "b", 1, "v");
  StartKept();
  IdOf(kRootNode, "a");
  store->PutFile("", "a", 1, "v2");
  Die();
  EXPECT_THAT(List(kRootNode), UnorderedElementsAre("a", "b"));
  tree->RefreshDue();
  EXPECT_THAT(invalidator.Take(), UnorderedElementsAre("1/", "1/a"));
  EXPECT_EQ(store->list_calls(), 2u);
}

TEST_F(TreeRestoreTest, ADirectoryThatIsGoneIsTold) {
  store->PutDirectory("", "d");
  store->PutFile("d", "a", 1, "v");
  StartKept();
  const NodeId d = IdOf(kRootNode, "d");
  IdOf(d, "a");
  Die();
  store->Remove("", "d");
  store->SetNotFound("d");
  tree->RefreshDue();
  EXPECT_THAT(invalidator.Take(), UnorderedElementsAre("1/", "1/d", "1/d", absl::StrCat(d, "/"),
                                                       absl::StrCat(d, "/a")));
  EXPECT_TRUE(absl::IsNotFound(Lookup(d, "a").status()));
}

TEST_F(TreeRestoreTest, ASourceThatIsNotFoundKeepsWhatIsKnown) {
  store->PutFile("", "a", 1, "v");
  StartKept();
  const NodeId a = IdOf(kRootNode, "a");
  Die();
  store->SetNotFound("");
  tree->RefreshDue();
  EXPECT_THAT(invalidator.Take(), IsEmpty());
  EXPECT_EQ(IdOf(kRootNode, "a"), a);
}

// Which of them the name means now, the successor does not know.
TEST_F(TreeRestoreTest, ANameOfTwoNodesIsAskedAnew) {
  store->PutFile("", "a", 1, "v");
  StartKept();
  const NodeId old = IdOf(kRootNode, "a");
  store->PutFile("", "a", 2, "v2");
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  const NodeId now = IdOf(kRootNode, "a");
  ASSERT_NE(now, old);
  Die();
  EXPECT_EQ(IdOf(kRootNode, "a"), now);
  EXPECT_EQ(store->list_calls(), 3u);
  tree->RefreshDue();
  EXPECT_THAT(invalidator.Take(), UnorderedElementsAre("1/", "1/a"));
  EXPECT_EQ(tree->File(old)->version, "v");
}

// The next free id after a collision, which a listing would not find in this order again.
TEST_F(TreeRestoreTest, IdsThatWereTheNextFreeOnesAreKept) {
  store->PutFile("", "a", 1, "v");
  StartKept();
  const NodeId old = IdOf(kRootNode, "a");
  store->PutFile("", "a", 2, "v");
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  const NodeId next = IdOf(kRootNode, "a");
  ASSERT_EQ(next, old + 1);
  tree->Forget(old, 1);
  Die();
  EXPECT_EQ(tree->GetAttributes(next)->size, 2u);
  EXPECT_EQ(IdOf(kRootNode, "a"), next);
}

TEST_F(TreeRestoreTest, ADirectorysNewTimeIsKept) {
  store->PutEntry(
      "", {.name = "d", .kind = store::EntryKind::kDirectory, .mtime = absl::FromUnixSeconds(5)});
  StartKept();
  const NodeId d = IdOf(kRootNode, "d");
  store->PutEntry(
      "", {.name = "d", .kind = store::EntryKind::kDirectory, .mtime = absl::FromUnixSeconds(6)});
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  Die();
  EXPECT_EQ(tree->GetAttributes(d)->mtime, absl::FromUnixSeconds(6));
}

TEST_F(TreeRestoreTest, WithoutRefreshNothingIsListedByItself) {
  options.refresh = absl::InfiniteDuration();
  store->PutFile("", "a", 1, "v");
  store->PutFile("", "b", 1, "v");
  StartKept();
  const NodeId a = IdOf(kRootNode, "a");
  const size_t calls = store->list_calls();
  Die();
  tree->RefreshDue();
  EXPECT_EQ(IdOf(kRootNode, "a"), a);
  EXPECT_EQ(store->list_calls(), calls);
  store->PutFile("", "a", 1, "v2");
  IdOf(kRootNode, "b");
  EXPECT_EQ(store->list_calls(), calls + 1);
  tree->RefreshDue();
  EXPECT_THAT(invalidator.Take(), UnorderedElementsAre("1/", "1/a"));
}

TEST_F(TreeRestoreTest, RefreshListsWhatIsNotListedYet) {
  store->PutFile("", "a", 1, "v");
  StartKept();
  IdOf(kRootNode, "a");
  store->PutFile("", "a", 1, "v2");
  Die();
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  EXPECT_THAT(invalidator.Take(), UnorderedElementsAre("1/", "1/a"));
  Die();
  store->FailLists(absl::UnavailableError("away"), 1);
  EXPECT_TRUE(absl::IsUnavailable(tree->Refresh(kRootNode)));
}

TEST_F(TreeRestoreTest, SourcesOfTheSameNamesAreTheSame) {
  options.sources = {{{"one", "memory://a"}, store}, {{"two", "memory://b"}, store}};
  store->PutFile("", "a", 1, "v");
  StartKept();
  const NodeId one = IdOf(kRootNode, "one");
  const NodeId two = IdOf(kRootNode, "two");
  const NodeId in_one = IdOf(one, "a");
  const NodeId in_two = IdOf(two, "a");
  Die();
  EXPECT_EQ(IdOf(kRootNode, "one"), one);
  EXPECT_EQ(tree->File(in_one)->source, 0u);
  EXPECT_EQ(tree->File(in_two)->source, 1u);
  EXPECT_EQ(IdOf(two, "a"), in_two);
  tree->RefreshDue();
  EXPECT_THAT(invalidator.Take(),
              UnorderedElementsAre(absl::StrCat(one, "/"), absl::StrCat(two, "/")));
  // Started with other sources: what is no longer there is stale, and nothing else.
  options.sources.pop_back();
  Die();
  EXPECT_FALSE(tree->File(in_two).ok());
  EXPECT_TRUE(tree->File(in_one).ok());
}

TEST_F(TreeRestoreTest, AStreamGoesOnAtItsOffset) {
  store->Fill("", 50);
  StartKept();
  const auto before = ReadLater(*tree->OpenDirectory(kRootNode), 0, 20).Get();
  Die();
  // A stream is begun anew by the number of its directory, and read from where the kernel is.
  const auto after = ReadLater(*tree->OpenDirectory(kRootNode), before.offset, 100).Get();
  EXPECT_EQ(before.names.size() + after.names.size(), 50u);
  EXPECT_EQ(after.names.front(), "file-0000020.jpg");
}

// The kernel may hold a listing of a directory of which it holds no name.
TEST_F(TreeRestoreTest, ADirectoryThatWasReadIsListedAgain) {
  store->PutDirectory("", "read");
  store->PutDirectory("", "not-read");
  store->PutFile("read", "a", 1, "v");
  StartKept();
  const NodeId read = IdOf(kRootNode, "read");
  IdOf(kRootNode, "not-read");
  List(read);
  Die();
  const size_t calls = store->list_calls();
  tree->RefreshDue();
  EXPECT_EQ(store->list_calls(), calls + 2);
  EXPECT_THAT(invalidator.Take(), UnorderedElementsAre("1/", absl::StrCat(read, "/")));
}

TEST_F(TreeRestoreTest, ManyDirectoriesAreListedAFewAtATime) {
  for (int i = 0; i < 30; ++i) {
    const std::string name = absl::StrCat("d", i);
    store->PutDirectory("", name);
    store->PutFile(name, "a", 1, "v");
  }
  StartKept();
  for (int i = 0; i < 30; ++i) IdOf(IdOf(kRootNode, absl::StrCat("d", i)), "a");
  options.refresh_thread = true;
  store->CloseListGate();
  const size_t calls = store->list_calls();
  Die();
  store->AwaitLists(4);
  EXPECT_EQ(store->list_calls(), calls + 4);
  store->OpenGates();
  // What is asked for does not wait for all of them.
  EXPECT_FALSE(Lookup(IdOf(kRootNode, "d29"), "b").ok());
  while (store->list_calls() < calls + 31) std::this_thread::yield();
}

TEST_F(TreeRestoreTest, WhatFoundNoRoomIsStaleAndAllElseIsThere) {
  const Ledger::Size small{.bytes = 16 << 10, .slots = 4};
  store->PutDirectory("", "d");
  store->Fill("d", 300);
  StartKept(small);
  const NodeId d = IdOf(kRootNode, "d");
  std::vector<NodeId> ids;
  for (int i = 0; i < 300; ++i) ids.push_back(IdOf(d, absl::StrFormat("file-%07d.jpg", i)));
  EXPECT_GT(ledger_->stats().lost, 0u);
  EXPECT_EQ(ledger_->stats().lost + ledger_->stats().nodes, 301u);
  Die(small);
  EXPECT_TRUE(tree->GetAttributes(ids.front()).ok());
  EXPECT_FALSE(tree->GetAttributes(ids.back()).ok());
  EXPECT_EQ(IdOf(d, "file-0000299.jpg"), ids.back());
  EXPECT_TRUE(tree->GetAttributes(ids.back()).ok());
}

TEST_F(TreeRestoreTest, RecordsThatMakeNoTreeAreLeftOut) {
  {
    const auto ledger = file_.Open();
    const auto add = [&](NodeRecord record) { ledger->AddLookups(ledger->Add(record), 1); };
    constexpr uint8_t kDirectory = 1;
    add({.id = 100, .parent = 1, .name = "good"});
    add({.id = 100, .parent = 1, .name = "same-id"});
    add({.id = 101, .parent = 102, .flags = kDirectory, .name = "loop"});
    add({.id = 102, .parent = 101, .flags = kDirectory, .name = "loop"});
    add({.id = 103, .parent = 101, .name = "below-a-loop"});
    add({.id = 104, .parent = 104, .flags = kDirectory, .name = "itself"});
    add({.id = 105, .parent = 999, .name = "orphan"});
    add({.id = 106, .parent = 100, .name = "below-a-file"});
    add({.id = 107, .parent = 1, .name = "a/b"});
    add({.id = 108, .parent = 1, .name = ".."});
    add({.id = 109, .parent = 1, .name = ""});
    add({.id = 110, .parent = 1, .flags = 0x80, .name = "flag"});
    add({.id = 111, .parent = 1, .flags = 4, .name = "hex", .version = "short"});
    add({.id = 112, .parent = 1, .flags = 12, .name = "both"});
    add({.id = 113, .parent = 1, .flags = 3, .name = "source"});
    add({.id = 114, .parent = 1, .flags = 1, .name = "d", .version = "v"});
    add({.id = 1, .parent = 1, .flags = kDirectory, .name = "root"});
    add({.id = 0, .parent = 1, .name = "none"});
    add({.id = 115, .parent = 116, .name = "before-its-parent"});
    add({.id = 116, .parent = 1, .flags = kDirectory, .name = "d2"});
  }
  StartKept();
  EXPECT_EQ(tree->nodes(), 4u);
  EXPECT_EQ(tree->File(100)->path, "good");
  EXPECT_EQ(tree->File(115)->path, "d2/before-its-parent");
  EXPECT_EQ(ledger_->stats().nodes, 3u);
}

TEST_F(TreeRestoreTest, NothingGrowsOverManyTakeOvers) {
  store->PutDirectory("", "d");
  store->Fill("d", 100);
  StartKept();
  const NodeId d = IdOf(kRootNode, "d");
  uint64_t bytes = 0;
  for (int round = 0; round < 200; ++round) {
    for (int i = 0; i < 100; i += 3) {
      tree->Forget(IdOf(d, absl::StrFormat("file-%07d.jpg", (i + round) % 100)), 1);
    }
    if (round % 3 == 0) tree->RefreshDue();
    Die();
    if (round == 20) bytes = ledger_->stats().bytes;
  }
  EXPECT_LE(ledger_->stats().bytes, bytes);
  EXPECT_LE(tree->nodes(), 102u);
}

}  // namespace
}  // namespace millrace::vfs
