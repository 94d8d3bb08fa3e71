#include "cache/pool/index_client.h"

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache/index/answer.h"
#include "cache/index/index_keeper.h"
#include "cache/store/memory_store.h"
#include "gtest/gtest.h"
#include "test/support/manual_clock.h"
#include "test/support/scripted_store.h"

namespace millrace::pool {
namespace {

using ::millrace::test::ScriptedStore;

constexpr char kSource[] = "memory://a";

// A client of an index keeper, without a network between them.
class IndexClientTest : public ::testing::Test {
 protected:
  IndexClientTest() {
    indexed_store_->PutDirectory("", "d");
    indexed_store_->Fill("d", 2500);
    indexed_store_->PutFile("", "top", 7, "v7");
    MakeKeeper();
    MakeClient();
  }
  ~IndexClientTest() override { client_.reset(); }

  void MakeKeeper() {
    keeper_ = index::IndexKeeper::Create({.refresh_min = absl::Seconds(1), .clock = &clock_},
                                         {{kSource, indexed_store_}});
  }
  void MakeClient(IndexClientOptions options = {}) {
    client_.reset();
    options.source = kSource;
    options.clock = &clock_;
    client_ = IndexClient::Create(options, store_,
                                  [this](const proto::IndexGet& get, store::BodySink sink,
                                         const store::CallOptions&) { return Fetch(get, sink); });
  }

  // The keeper's answer, as Pool::Index brings it, in pieces of 100,000 bytes.
  absl::Status Fetch(const proto::IndexGet& get, store::BodySink sink) {
    base::MutexLock lock(&mutex_);
    gets_.push_back(get);
    if (!fetch_status_.ok()) return fetch_status_;
    const absl::StatusOr<index::IndexAnswer> answer =
        keeper_->Get(get.source, get.have, absl::Milliseconds(get.max_age_ms));
    if (!answer.ok()) return answer.status();
    std::string bytes = EncodeAnswerHead(answer->head);
    if (answer->index != nullptr) {
      std::string file(answer->head.bytes, '\0');
      EXPECT_EQ(pread(answer->index->fd(), file.data(), file.size(), 0),
                static_cast<ssize_t>(file.size()));
      bytes += file;
    }
    if (answer->delta != nullptr) bytes += *answer->delta;
    if (damage_ != nullptr) damage_(&bytes);
    received_ = bytes.size();
    for (size_t at = 0; at < bytes.size(); at += 100'000) {
      if (!sink(absl::string_view(bytes).substr(at, 100'000))) return absl::CancelledError("sink");
    }
    return absl::OkStatus();
  }

  // A listing of the source, and the client up to date.
  void ListAndUpdate() {
    clock_.Advance(absl::Seconds(1));
    ASSERT_TRUE(keeper_->Refresh(kSource).ok());
    const absl::Status status = client_->Update();
    ASSERT_TRUE(status.ok()) << status;
  }

  static store::CallOptions May(absl::Duration age_max) {
    store::CallOptions call;
    call.age_max = age_max;
    return call;
  }

  struct Listed {
    std::vector<std::string> names;
    absl::Duration age;
    absl::Status status;
  };
  Listed ListAll(const std::string& path, absl::Duration age_max, size_t page_entries = 1000) {
    Listed listed;
    std::string token;
    do {
      const auto page = client_->List(path, token, page_entries, May(age_max));
      listed.status = page.status();
      if (!page.ok()) break;
      for (const store::Entry& entry : page->entries) listed.names.push_back(entry.name);
      listed.age = std::max(listed.age, page->age);
      token = page->next_token;
    } while (!token.empty());
    return listed;
  }

  testing::ManualClock clock_;
  // What the worker lists, and what the client would list itself: apart, to tell who was asked.
  std::shared_ptr<ScriptedStore> indexed_store_ = std::make_shared<ScriptedStore>();
  std::shared_ptr<ScriptedStore> store_ = std::make_shared<ScriptedStore>(100);
  std::unique_ptr<index::IndexKeeper> keeper_;
  std::shared_ptr<IndexClient> client_;

  base::Mutex mutex_;
  absl::Status fetch_status_ ABSL_GUARDED_BY(mutex_);
  void (*damage_)(std::string* bytes) ABSL_GUARDED_BY(mutex_) = nullptr;
  std::vector<proto::IndexGet> gets_ ABSL_GUARDED_BY(mutex_);
  size_t received_ ABSL_GUARDED_BY(mutex_) = 0;
};

TEST_F(IndexClientTest, AnswersFromTheIndexWithoutTheStore) {
  ListAndUpdate();
  clock_.Advance(absl::Seconds(20));
  for (const size_t page_entries : {1u, 999u, 5000u}) {
    const Listed listed = ListAll("d", absl::Seconds(30), page_entries);
    ASSERT_TRUE(listed.status.ok()) << listed.status;
    EXPECT_EQ(listed.names.size(), 2500u);
    EXPECT_TRUE(std::is_sorted(listed.names.begin(), listed.names.end()));
    EXPECT_EQ(listed.age, absl::Seconds(20));
  }
  const auto entry = client_->Stat("top", May(absl::Seconds(30)));
  ASSERT_TRUE(entry.ok()) << entry.status();
  EXPECT_EQ(entry->size, 7u);
  EXPECT_EQ(entry->version, "v7");
  const auto sample = client_->Sample(1000, May(absl::Seconds(30)));
  ASSERT_TRUE(sample.ok()) << sample.status();
  EXPECT_EQ(sample->size(), 1000u);
  EXPECT_EQ(sample->at(0).name, "top");
  EXPECT_EQ(sample->at(1).name.substr(0, 7), "d/file-");
  EXPECT_EQ(store_->list_calls() + store_->stat_calls(), 0u);
  EXPECT_GE(client_->Stats().answers, 5u);
}

// Of a pool: small ranges cost little, and the workers load.
class FakePoolStore : public store::MemoryStore {
 public:
  uint64_t range_unit() const override { return 4321; }
  absl::StatusOr<uint64_t> Warm(const store::GetRequest& request,
                                const store::CallOptions&) override {
    return request.length;
  }
};

TEST_F(IndexClientTest, WhatIsNotAboutNamesIsAskedOfTheStoreBehindIt) {
  IndexClientOptions options;
  options.source = kSource;
  options.clock = &clock_;
  const auto client =
      IndexClient::Create(options, std::make_shared<FakePoolStore>(),
                          [](const proto::IndexGet&, store::BodySink, const store::CallOptions&) {
                            return absl::NotFoundError("no index");
                          });
  EXPECT_EQ(client->range_unit(), 4321u);
  store::GetRequest request;
  request.length = 77;
  const absl::StatusOr<uint64_t> warmed = client->Warm(request, {});
  ASSERT_TRUE(warmed.ok()) << warmed.status();
  EXPECT_EQ(*warmed, 77u);
}

TEST_F(IndexClientTest, WhoWantsItNewerGetsTheStoresAnswer) {
  ListAndUpdate();
  store_->PutFile("d", "only-in-the-store", 1, "v");
  clock_.Advance(absl::Seconds(20));
  for (const absl::Duration age_max : {absl::ZeroDuration(), absl::Seconds(19)}) {
    const Listed listed = ListAll("d", age_max);
    EXPECT_EQ(listed.names, std::vector<std::string>{"only-in-the-store"});
    EXPECT_EQ(listed.age, absl::ZeroDuration());
    EXPECT_TRUE(client_->Stat("d/only-in-the-store", May(age_max)).ok());
  }
}

TEST_F(IndexClientTest, WithoutAnIndexTheStoreIsListedPageByPage) {
  {
    base::MutexLock lock(&mutex_);
    fetch_status_ = absl::UnavailableError("it is being built");
  }
  store_->Fill("d", 350);
  const Listed listed = ListAll("d", absl::Seconds(30), 100);
  ASSERT_TRUE(listed.status.ok()) << listed.status;
  EXPECT_EQ(listed.names.size(), 350u);
  EXPECT_EQ(store_->list_calls(), 4u);
}

TEST_F(IndexClientTest, WhatTheIndexDoesNotHaveIsAskedOfTheStore) {
  ListAndUpdate();
  store_->PutFile("", "young", 1, "v");
  store_->PutDirectory("", "e");
  store_->PutFile("e", "f", 1, "v");
  EXPECT_TRUE(client_->Stat("young", May(absl::Seconds(30))).ok());
  EXPECT_EQ(ListAll("e", absl::Seconds(30)).names, std::vector<std::string>{"f"});
}

TEST_F(IndexClientTest, AListingGoesOnInTheNextIndex) {
  ListAndUpdate();
  auto page = client_->List("d", "", 1000, May(absl::Seconds(30)));
  ASSERT_TRUE(page.ok());
  const std::string last = page->entries.back().name;
  // The entry where it stopped is gone, and the age does not matter any more.
  indexed_store_->Remove("d", last);
  ListAndUpdate();
  clock_.Advance(absl::Hours(1));
  size_t more = 0;
  for (std::string token = page->next_token; !token.empty(); token = page->next_token) {
    page = client_->List("d", token, 1000, May(absl::Seconds(30)));
    ASSERT_TRUE(page.ok()) << page.status();
    EXPECT_GT(page->entries.front().name, last);
    more += page->entries.size();
  }
  EXPECT_EQ(more, 1500u);
  EXPECT_GE(page->age, absl::Hours(1));
  EXPECT_EQ(store_->list_calls(), 0u);
}

TEST_F(IndexClientTest, ADirectoryThatGoesMeanwhileIsNotFound) {
  ListAndUpdate();
  const auto page = client_->List("d", "", 1000, May(absl::Seconds(30)));
  indexed_store_->Remove("", "d");
  ListAndUpdate();
  EXPECT_TRUE(absl::IsNotFound(client_->List("d", page->next_token, 1000, {}).status()));
}

TEST_F(IndexClientTest, ForgedTokensAreRefused) {
  ListAndUpdate();
  for (const char* const token : {"i", "i2name", "x", "ix"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(client_->List("d", token, 10, {}).status())) << token;
  }
}

TEST_F(IndexClientTest, RefreshesByTheDifference) {
  ListAndUpdate();
  const uint64_t whole = client_->Stats().bytes_received;
  indexed_store_->PutFile("d", "another", 1, "v");
  ListAndUpdate();
  EXPECT_EQ(client_->Stats().entries, 2503u);
  EXPECT_LT(client_->Stats().bytes_received - whole, 500u);
  const uint64_t before = client_->Stats().bytes_received;
  ListAndUpdate();
  EXPECT_EQ(client_->Stats().bytes_received - before, index::kAnswerHeadSize);
  EXPECT_TRUE(client_->Stat("d/another", May(absl::Seconds(1))).ok());
  base::MutexLock lock(&mutex_);
  EXPECT_EQ(gets_.back().max_age_ms, 30'000u);
}

TEST_F(IndexClientTest, WhatDoesNotHoldIsNotUsedAndAskedForAnew) {
  using Damage = void (*)(std::string*);
  const Damage damages[] = {
      [](std::string* bytes) { bytes->back() ^= 1; },
      [](std::string* bytes) { bytes->pop_back(); },
      [](std::string* bytes) { bytes->push_back('x'); },
      [](std::string* bytes) { (*bytes)[3] ^= 1; },
      [](std::string* bytes) { bytes->resize(10); },
      [](std::string* bytes) { (*bytes)[index::kAnswerHeadSize + 100] ^= 1; },
      // An honest head, and an index of something else.
      [](std::string* bytes) {
        index::AnswerHead head =
            index::DecodeAnswerHead(bytes->substr(0, index::kAnswerHeadSize)).value();
        ++head.version;
        bytes->replace(0, index::kAnswerHeadSize, EncodeAnswerHead(head));
      },
  };
  ASSERT_TRUE(keeper_->Refresh(kSource).ok());
  for (const Damage damage : damages) {
    MakeClient();
    {
      base::MutexLock lock(&mutex_);
      damage_ = damage;
    }
    EXPECT_TRUE(absl::IsDataLoss(client_->Update())) << client_->Update();
    EXPECT_EQ(client_->Stats().entries, 0u);
    {
      base::MutexLock lock(&mutex_);
      damage_ = nullptr;
    }
    ASSERT_TRUE(client_->Update().ok());
    indexed_store_->PutFile("d", absl::StrCat("x", client_->Stats().bytes_received), 1, "v");
    clock_.Advance(absl::Seconds(1));
    ASSERT_TRUE(keeper_->Refresh(kSource).ok());
    const uint64_t entries = client_->Stats().entries;
    {
      base::MutexLock lock(&mutex_);
      damage_ = damage;
    }
    EXPECT_FALSE(client_->Update().ok());
    EXPECT_EQ(client_->Stats().entries, entries);
    {
      base::MutexLock lock(&mutex_);
      damage_ = nullptr;
    }
    ASSERT_TRUE(client_->Update().ok());
    EXPECT_EQ(client_->Stats().entries, entries + 1);
    base::MutexLock lock(&mutex_);
    EXPECT_EQ(gets_.back().have, 0u);
  }
}

TEST_F(IndexClientTest, AnIndexLargerThanAllowedIsNotFetched) {
  MakeClient({.bytes_max = 50'000});
  ASSERT_TRUE(keeper_->Refresh(kSource).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(client_->Update()));
  EXPECT_EQ(client_->Stats().entries, 0u);
  EXPECT_LT(client_->Stats().bytes_received, 1000u);
}

TEST_F(IndexClientTest, AnotherWorkersOlderIndexIsNotTaken) {
  ListAndUpdate();
  const uint64_t entries = client_->Stats().entries;
  // The next in rank has one that it made an hour before.
  indexed_store_->PutFile("d", "another", 1, "v");
  clock_.Advance(absl::Seconds(1));
  MakeKeeper();
  ASSERT_TRUE(keeper_->Refresh(kSource).ok());
  {
    base::MutexLock lock(&mutex_);
    damage_ = [](std::string* bytes) {
      index::AnswerHead head =
          index::DecodeAnswerHead(bytes->substr(0, index::kAnswerHeadSize)).value();
      head.age = absl::Hours(1);
      bytes->replace(0, index::kAnswerHeadSize, EncodeAnswerHead(head));
    };
  }
  EXPECT_TRUE(absl::IsUnavailable(client_->Update()));
  EXPECT_EQ(client_->Stats().entries, entries);
  {
    base::MutexLock lock(&mutex_);
    damage_ = nullptr;
  }
  ASSERT_TRUE(client_->Update().ok());
  EXPECT_EQ(client_->Stats().entries, entries + 1);
}

TEST_F(IndexClientTest, AnIndexOfUnknownAgeAnswersNobody) {
  ASSERT_TRUE(keeper_->Refresh(kSource).ok());
  {
    base::MutexLock lock(&mutex_);
    damage_ = [](std::string* bytes) {
      index::AnswerHead head =
          index::DecodeAnswerHead(bytes->substr(0, index::kAnswerHeadSize)).value();
      head.age = absl::InfiniteDuration();
      bytes->replace(0, index::kAnswerHeadSize, EncodeAnswerHead(head));
    };
  }
  ASSERT_TRUE(client_->Update().ok());
  store_->PutFile("", "from-the-store", 1, "v");
  EXPECT_EQ(ListAll("", absl::Hours(1000)).names, std::vector<std::string>{"from-the-store"});
}

TEST_F(IndexClientTest, AMountThatRefreshesTooOftenAsksForNone) {
  MakeClient({.refresh = absl::Seconds(9)});
  store_->Fill("d", 5);
  EXPECT_EQ(ListAll("d", absl::Seconds(7)).names.size(), 5u);
  base::MutexLock lock(&mutex_);
  EXPECT_TRUE(gets_.empty());
}

TEST_F(IndexClientTest, TheFirstCallWaitsForAnIndexThatIsThere) {
  ASSERT_TRUE(keeper_->Refresh(kSource).ok());
  EXPECT_EQ(ListAll("d", absl::Seconds(30)).names.size(), 2500u);
  EXPECT_EQ(store_->list_calls(), 0u);
}

TEST_F(IndexClientTest, ListingsAndUpdatesAtOnce) {
  ListAndUpdate();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        const Listed listed = ListAll("d", absl::Hours(1), 500);
        EXPECT_TRUE(listed.status.ok()) << listed.status;
        EXPECT_GE(listed.names.size(), 2500u);
        EXPECT_TRUE(client_->Stat("top", May(absl::Hours(1))).ok());
      }
    });
  }
  for (int round = 0; round < 10; ++round) {
    indexed_store_->PutFile("d", absl::StrCat("x", round), 1, "v");
    ListAndUpdate();
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(client_->Stats().entries, 2512u);
  EXPECT_EQ(store_->list_calls(), 0u);
}

}  // namespace
}  // namespace millrace::pool
