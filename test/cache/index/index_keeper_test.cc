#include "cache/index/index_keeper.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache/index/delta.h"
#include "cache/index/index_writer.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"
#include "test/support/manual_clock.h"
#include "test/support/scripted_store.h"

namespace millrace::index {
namespace {

using ::millrace::test::ScriptedStore;
using ::millrace::testing::TemporaryDirectory;

constexpr char kSource[] = "memory://a";
constexpr absl::Duration kAnyAge = absl::InfiniteDuration();

class IndexKeeperTest : public ::testing::Test {
 protected:
  IndexKeeperTest() {
    store_->PutDirectory("", "d");
    store_->Fill("d", 3000);
    Start();
  }

  void Start() {
    keeper_.reset();
    IndexKeeperOptions options;
    options.directory = directory_.path() + "/indexes";
    options.refresh_min = absl::Seconds(10);
    options.threads = 2;
    options.clock = &clock_;
    keeper_ = IndexKeeper::Create(options, {{kSource, store_}});
  }

  IndexAnswer Get(uint64_t have, absl::Duration max_age = kAnyAge) {
    absl::StatusOr<IndexAnswer> answer = keeper_->Get(kSource, have, max_age);
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? *answer : IndexAnswer();
  }

  void ListAgain() {
    clock_.Advance(absl::Seconds(1));
    const absl::Status status = keeper_->Refresh(kSource);
    EXPECT_TRUE(status.ok()) << status;
  }

  // Files in the directory of the source.
  size_t Files() {
    size_t files = 0;
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(directory_.path() + "/indexes")) {
      files += entry.is_regular_file();
    }
    return files;
  }

  TemporaryDirectory directory_;
  testing::ManualClock clock_;
  std::shared_ptr<ScriptedStore> store_ = std::make_shared<ScriptedStore>();
  std::unique_ptr<IndexKeeper> keeper_;
};

TEST_F(IndexKeeperTest, WhoAsksFirstIsToldToAskAgain) {
  store_->CloseListGate();
  const absl::Status first = keeper_->Get(kSource, 0, kAnyAge).status();
  EXPECT_TRUE(absl::IsUnavailable(first)) << first;
  EXPECT_TRUE(first.GetPayload(store::kRetryAfterPayload).has_value());
  store_->AwaitLists(1);
  EXPECT_TRUE(absl::IsUnavailable(keeper_->Get(kSource, 0, kAnyAge).status()));
  EXPECT_TRUE(keeper_->Status()[0].listing);
  store_->OpenGates();
  ASSERT_TRUE(keeper_->Refresh(kSource).ok());
  const IndexAnswer answer = Get(0);
  EXPECT_EQ(answer.head.kind, AnswerKind::kIndex);
  EXPECT_EQ(answer.head.bytes, answer.index->header().file_bytes);
  EXPECT_EQ(answer.index->header().entries, 3001u);
  EXPECT_EQ(keeper_->Status()[0].listings, 1u);
}

TEST_F(IndexKeeperTest, NothingIsListedForNobody) {
  EXPECT_EQ(store_->list_calls(), 0u);
  ListAgain();
  const size_t calls = store_->list_calls();
  clock_.Advance(absl::Hours(1));
  EXPECT_EQ(keeper_->Status()[0].age, absl::Hours(1));
  EXPECT_EQ(store_->list_calls(), calls);
}

TEST_F(IndexKeeperTest, ManyWhoAskCauseOneListing) {
  store_->CloseListGate();
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] { EXPECT_TRUE(keeper_->Refresh(kSource).ok()); });
  }
  store_->AwaitLists(1);
  for (int i = 0; i < 8; ++i) {
    EXPECT_TRUE(absl::IsUnavailable(keeper_->Get(kSource, 0, absl::ZeroDuration()).status()));
  }
  store_->OpenGates();
  for (std::thread& thread : threads) thread.join();
  // Those that came when it had ended began another one.
  const uint64_t listings = keeper_->Status()[0].listings;
  EXPECT_LE(listings, 8u);
  EXPECT_EQ(store_->list_calls(), 4 * listings);
}

TEST_F(IndexKeeperTest, WhoIsUpToDateGetsNothingAndTheAge) {
  ListAgain();
  const uint64_t version = Get(0).head.version;
  clock_.Advance(absl::Milliseconds(1500));
  const IndexAnswer answer = Get(version);
  EXPECT_EQ(answer.head.kind, AnswerKind::kUnchanged);
  EXPECT_EQ(answer.head.age, absl::Milliseconds(1500));
  // Listed again without news: the same version, confirmed.
  ListAgain();
  EXPECT_EQ(Get(version).head.kind, AnswerKind::kUnchanged);
  EXPECT_EQ(Get(version).head.age, absl::ZeroDuration());
  EXPECT_EQ(Files(), 1u);
}

TEST_F(IndexKeeperTest, AQuestionForSomethingNewerBeginsAListing) {
  ListAgain();
  const uint64_t version = Get(0).head.version;
  store_->PutFile("d", "new", 1, "v");
  clock_.Advance(absl::Seconds(30));
  // Answered at once with what there is.
  EXPECT_EQ(Get(version, absl::Seconds(20)).head.age, absl::Seconds(30));
  ASSERT_TRUE(keeper_->Refresh(kSource).ok());
  EXPECT_EQ(Get(version).head.kind, AnswerKind::kDelta);
}

TEST_F(IndexKeeperTest, NotMoreOftenThanAllowed) {
  ListAgain();
  const size_t calls = store_->list_calls();
  clock_.Advance(absl::Seconds(9));
  Get(0, absl::ZeroDuration());
  EXPECT_FALSE(keeper_->Status()[0].listing);
  EXPECT_EQ(store_->list_calls(), calls);
  clock_.Advance(absl::Seconds(1));
  store_->CloseListGate();
  Get(0, absl::ZeroDuration());
  EXPECT_TRUE(keeper_->Status()[0].listing);
  store_->OpenGates();
}

TEST_F(IndexKeeperTest, OldVersionsAreBroughtUpToDateByOneDelta) {
  ListAgain();
  std::vector<std::shared_ptr<const Index>> versions = {Get(0).index};
  for (int i = 0; i < 10; ++i) {
    store_->PutFile("d", absl::StrCat("new-", i), 1, "v");
    store_->Remove("d", absl::StrCat("new-", i - 5));
    ListAgain();
    versions.push_back(Get(0).index);
  }
  for (int restart = 0; restart < 2; ++restart) {
    for (size_t i = 0; i + 1 < versions.size(); ++i) {
      const IndexAnswer answer = Get(versions[i]->header().version);
      ASSERT_EQ(answer.head.kind, AnswerKind::kDelta) << i;
      EXPECT_EQ(answer.head.bytes, answer.delta->size());
      const auto applied = Apply(*versions[i], *answer.delta, NewUnnamedFile("").value());
      ASSERT_TRUE(applied.ok()) << applied.status();
      EXPECT_EQ((*applied)->header().content, versions.back()->header().content);
      EXPECT_EQ((*applied)->header().version, answer.head.version);
    }
    EXPECT_EQ(Get(12345).head.kind, AnswerKind::kIndex);
    Start();
  }
}

TEST_F(IndexKeeperTest, DeltasAreKeptWhileTheyAreShortBesideTheIndex) {
  ListAgain();
  const uint64_t first = Get(0).head.version;
  for (int i = 0; i < 40; ++i) {
    store_->PutFile("d", absl::StrCat("new-", i), 1, "v");
    ListAgain();
  }
  EXPECT_EQ(Get(first).head.kind, AnswerKind::kIndex);
  EXPECT_LE(Files(), 1u + 32);
  const uint64_t last = Get(0).head.version;
  // Nearly everything is new: no delta is worth it, and the older ones lead nowhere.
  store_->Fill("e", 20'000);
  store_->PutDirectory("", "e");
  ListAgain();
  EXPECT_EQ(Get(last).head.kind, AnswerKind::kIndex);
  EXPECT_EQ(Files(), 1u);
}

TEST_F(IndexKeeperTest, ARestartFindsItAndItsAgeIsNotKnownUntilItIsConfirmed) {
  ListAgain();
  const uint64_t version = Get(0).head.version;
  Start();
  store_->CloseListGate();
  IndexAnswer answer = Get(0);
  EXPECT_EQ(answer.head.version, version);
  EXPECT_EQ(answer.head.kind, AnswerKind::kIndex);
  EXPECT_EQ(answer.head.age, absl::InfiniteDuration());
  EXPECT_TRUE(keeper_->Status()[0].listing);
  store_->OpenGates();
  ASSERT_TRUE(keeper_->Refresh(kSource).ok());
  answer = Get(version);
  EXPECT_EQ(answer.head.kind, AnswerKind::kUnchanged);
  EXPECT_LT(answer.head.age, absl::Seconds(1));
}

TEST_F(IndexKeeperTest, DamagedFilesAreNotServed) {
  ListAgain();
  const uint64_t version = Get(0).head.version;
  keeper_.reset();
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory_.path())) {
    if (!entry.is_regular_file()) continue;
    const int fd = open(entry.path().c_str(), O_WRONLY);
    ASSERT_EQ(pwrite(fd, "x", 1, 500), 1);
    close(fd);
  }
  clock_.Advance(absl::Seconds(1));
  Start();
  EXPECT_TRUE(absl::IsUnavailable(keeper_->Get(kSource, version, kAnyAge).status()));
  ASSERT_TRUE(keeper_->Refresh(kSource).ok());
  EXPECT_EQ(Get(version).head.kind, AnswerKind::kIndex);
}

TEST_F(IndexKeeperTest, AFailedListingLeavesTheOldIndexAndItsAge) {
  ListAgain();
  const uint64_t version = Get(0).head.version;
  store_->FailLists(absl::UnavailableError("away"), 1);
  clock_.Advance(absl::Minutes(1));
  EXPECT_TRUE(absl::IsUnavailable(keeper_->Refresh(kSource)));
  EXPECT_EQ(Get(version).head.kind, AnswerKind::kUnchanged);
  EXPECT_EQ(Get(version).head.age, absl::Minutes(1));
  EXPECT_EQ(keeper_->Status()[0].last_error, "away");
  EXPECT_EQ(Files(), 1u);
}

TEST_F(IndexKeeperTest, WhatIsBeingSentOutlivesItsSuccessor) {
  ListAgain();
  const IndexAnswer answer = Get(0);
  store_->Fill("e", 20'000);
  store_->PutDirectory("", "e");
  ListAgain();
  const auto copy = Index::Open(base::UniqueFd(dup(answer.index->fd())));
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ((*copy)->header().version, answer.head.version);
}

TEST_F(IndexKeeperTest, AnUnknownSourceIsNotFound) {
  EXPECT_TRUE(absl::IsNotFound(keeper_->Get("memory://b", 0, kAnyAge).status()));
}

TEST_F(IndexKeeperTest, EndsWithAListingUnderWay) {
  store_->CloseListGate();
  EXPECT_FALSE(keeper_->Get(kSource, 0, kAnyAge).ok());
  store_->AwaitLists(1);
  keeper_.reset();
}

TEST(IndexAnswerTest, ComesBackAsItWas) {
  AnswerHead head;
  head.kind = AnswerKind::kDelta;
  head.version = 7;
  head.content = {9, 11};
  head.age = absl::Milliseconds(1234);
  head.bytes = 13;
  const std::string bytes = EncodeAnswerHead(head);
  ASSERT_EQ(bytes.size(), kAnswerHeadSize);
  EXPECT_EQ(EncodeAnswerHead(DecodeAnswerHead(bytes).value()), bytes);
  head.age = absl::InfiniteDuration();
  EXPECT_EQ(DecodeAnswerHead(EncodeAnswerHead(head))->age, absl::InfiniteDuration());
  head.age = absl::Microseconds(1);
  EXPECT_EQ(DecodeAnswerHead(EncodeAnswerHead(head))->age, absl::Milliseconds(1));
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ 1 << bit % 8);
    EXPECT_FALSE(DecodeAnswerHead(damaged).ok()) << bit;
  }
}

}  // namespace
}  // namespace millrace::index
