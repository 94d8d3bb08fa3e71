// The pool against workers that answer, and against such that do everything else: no byte is ever
// wrong, no fault of a worker is an error of a read.
#include "cache/pool/pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cache/pool/placement.h"
#include "cache/pool/pool_parts.h"
#include "common/net/socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/certificates.h"
#include "test/support/child_process.h"
#include "test/support/pattern_store.h"
#include "test/support/scripted_worker.h"

namespace millrace::pool {
namespace {

using test::Mischief;
using test::PatternBytes;
using test::ScriptedWorker;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kSource[] = "s3://bucket";
constexpr char kPath[] = "dir/object";
constexpr uint64_t kExtent = 1 << 20;  // ScriptedWorker's.
constexpr uint64_t kFileSize = 8 * kExtent + 12'345;

class PoolTest : public ::testing::Test {
 protected:
  PoolTest() {
    options_.connect_timeout = absl::Milliseconds(500);
    options_.answer_timeout = absl::Seconds(1);
    options_.members_refresh = absl::Milliseconds(100);
    options_.seed = 1;
  }

  void StartWorkers(size_t count) {
    for (size_t i = 0; i < count; ++i) {
      ScriptedWorker::Options options;
      options.welcome = ScriptedWorker::WelcomeOf(absl::StrCat("worker-", i));
      workers_.push_back(std::make_unique<ScriptedWorker>(std::move(options)));
      options_.workers.push_back(workers_.back()->address());
    }
  }

  void MakePool() {
    absl::StatusOr<std::unique_ptr<Pool>> pool = Pool::Create(options_);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    source_ = pool_->Wrap(kSource, store_);
  }

  // Waits until the pool sees the member as asked.
  bool Await(const std::function<bool(const MemberStatus&)>& holds, size_t count) {
    for (int i = 0; i < 2000; ++i) {
      size_t found = 0;
      for (const MemberStatus& member : pool_->Members()) found += holds(member) ? 1 : 0;
      if (found == count) return true;
      absl::SleepFor(absl::Milliseconds(10));  // tidy: allow-sleep polls, up to 20 s
    }
    return false;
  }
  bool AwaitReachable(size_t count) {
    return Await([](const MemberStatus& member) { return member.reachable; }, count);
  }

  store::GetRequest Request(uint64_t offset, uint64_t length) {
    store::GetRequest request;
    request.path = kPath;
    request.offset = offset;
    request.length = length;
    request.version = "v1";
    request.file_size = kFileSize;
    request.from = &from_;
    return request;
  }

  // Reads and compares. Returns the status.
  absl::Status Read(uint64_t offset, uint64_t length, const store::CallOptions& call = {}) {
    std::string got;
    const absl::Status status = source_->Get(
        Request(offset, length),
        [&](absl::string_view piece) {
          got.append(piece.data(), piece.size());
          return true;
        },
        call);
    EXPECT_LE(got.size(), length);
    EXPECT_TRUE(got == PatternBytes(kPath, "v1", offset, got.size()));
    EXPECT_TRUE(!status.ok() || got.size() == length);
    return status;
  }

  // The worker that owns the extent of `offset`.
  ScriptedWorker& OwnerOf(uint64_t offset, size_t rank = 0) {
    std::vector<PlacedMember> placed;
    for (const auto& worker : workers_) placed.push_back({worker->id(), 1 << 30});
    return *workers_[Rank(placed, kSource, kPath, ExtentOf(offset, kExtent))[rank]];
  }

  size_t StoreGets() const { return store_->requests().size(); }

  PoolOptions options_;
  std::shared_ptr<test::PatternStore> store_ = std::make_shared<test::PatternStore>();
  std::vector<std::unique_ptr<ScriptedWorker>> workers_;
  std::unique_ptr<Pool> pool_;
  std::shared_ptr<store::Store> source_;
  store::BytesFrom from_ = store::BytesFrom::kStore;
};

TEST_F(PoolTest, TheOwnerOfEachExtentIsAsked) {
  StartWorkers(3);
  MakePool();
  ASSERT_TRUE(Read(0, kFileSize).ok());
  EXPECT_EQ(StoreGets(), 0u);
  EXPECT_EQ(from_, store::BytesFrom::kWorker);
  size_t asked = 0;
  for (const auto& worker : workers_) {
    for (const proto::Get& get : worker->requests()) {
      ++asked;
      EXPECT_EQ(&OwnerOf(get.offset), worker.get());
      EXPECT_EQ(get.role, proto::Role::kOwner);
      EXPECT_EQ(get.file.source, kSource);
      EXPECT_EQ(get.file.size, kFileSize);
    }
  }
  EXPECT_EQ(asked, 9u);
  EXPECT_EQ(pool_->Stats().bytes_remote, kFileSize);
  EXPECT_EQ(pool_->Stats().faults, 0u);
}

TEST_F(PoolTest, ConnectionsAreKept) {
  StartWorkers(1);
  MakePool();
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(Read(i * 4096, 4096).ok());
  EXPECT_LE(workers_[0]->connections(), 2u);
}

// Of who reads into blocks: what is large is received there, what does not fit is copied.
TEST_F(PoolTest, BytesAreReceivedWhereTheyBelong) {
  StartWorkers(1);
  MakePool();
  constexpr uint64_t kBlock = 128 * 1024;
  for (const uint64_t offset : {uint64_t{0}, uint64_t{5}}) {
    std::string got(kExtent / 2, '\0');
    uint64_t size = 0;
    size_t direct = 0;
    const auto room = [&] {
      return absl::MakeSpan(got.data() + size, kBlock - (offset + size) % kBlock);
    };
    const store::BodyRoom room_ref = room;
    store::GetRequest request = Request(offset, got.size());
    request.room = &room_ref;
    ASSERT_TRUE(source_
                    ->Get(request,
                          [&](absl::string_view piece) {
                            if (piece.data() == got.data() + size) {
                              ++direct;
                            } else {
                              memcpy(got.data() + size, piece.data(), piece.size());
                            }
                            size += piece.size();
                            return true;
                          },
                          {})
                    .ok());
    EXPECT_TRUE(got == PatternBytes(kPath, "v1", offset, got.size()));
    EXPECT_EQ(direct > 0, offset == 0) << offset;
  }
  EXPECT_EQ(pool_->Stats().faults, 0u);
}

TEST_F(PoolTest, RangesAreAsFineAsWorkersHaveThem) {
  StartWorkers(1);
  MakePool();
  ASSERT_TRUE(AwaitReachable(1));
  EXPECT_EQ(source_->range_unit(), store::kRangeUnitPage);
  workers_[0]->Kill();
  ASSERT_TRUE(AwaitReachable(0));
  EXPECT_EQ(source_->range_unit(), store_->range_unit());
}

TEST_F(PoolTest, ManyAtOnce) {
  StartWorkers(3);
  MakePool();
  std::vector<std::thread> readers;
  for (int r = 0; r < 8; ++r) {
    readers.emplace_back([this, r] {
      for (int i = 0; i < 40; ++i) {
        const uint64_t offset = static_cast<uint64_t>(r * 7919 + i * 104'729) % kFileSize;
        store::GetRequest request =
            Request(offset, std::min<uint64_t>(200'000, kFileSize - offset));
        request.from = nullptr;
        std::string got;
        EXPECT_TRUE(source_
                        ->Get(request,
                              [&](absl::string_view piece) {
                                got.append(piece.data(), piece.size());
                                return true;
                              },
                              {})
                        .ok());
        EXPECT_TRUE(got == PatternBytes(kPath, "v1", offset, request.length));
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(StoreGets(), 0u);
}

TEST_F(PoolTest, WhatAWorkerFetchedCountsAsTheStores) {
  StartWorkers(1);
  workers_[0]->SetFlags(proto::kFromStore);
  MakePool();
  ASSERT_TRUE(Read(0, 1000).ok());
  EXPECT_EQ(from_, store::BytesFrom::kStore);
  EXPECT_EQ(pool_->Stats().bytes_through_store, 1000u);
}

TEST_F(PoolTest, WithoutAVersionOrASizeTheStoreIsAsked) {
  StartWorkers(1);
  MakePool();
  store::GetRequest request = Request(0, 100);
  request.file_size = 0;
  const auto sink = [](absl::string_view) { return true; };
  EXPECT_TRUE(source_->Get(request, sink, {}).ok());
  request = Request(0, 100);
  request.version.clear();
  EXPECT_TRUE(source_->Get(request, sink, {}).ok());
  EXPECT_EQ(StoreGets(), 2u);
  EXPECT_THAT(workers_[0]->requests(), IsEmpty());
}

TEST_F(PoolTest, NobodyThereMeansTheStore) {
  StartWorkers(2);
  for (auto& worker : workers_) worker->Kill();
  MakePool();
  ASSERT_TRUE(Read(0, 3 * kExtent).ok());
  EXPECT_EQ(StoreGets(), 1u);
  EXPECT_EQ(from_, store::BytesFrom::kStore);
  EXPECT_EQ(pool_->Stats().bypassed, 1u);
  for (const MemberStatus& member : pool_->Members()) {
    EXPECT_FALSE(member.reachable);
    EXPECT_THAT(member.last_error, HasSubstr("cannot connect"));
  }
}

TEST_F(PoolTest, TheNextInRankTakesOverAndGivesBack) {
  StartWorkers(3);
  MakePool();
  ASSERT_TRUE(AwaitReachable(3));
  ScriptedWorker& owner = OwnerOf(0);
  ScriptedWorker& next = OwnerOf(0, 1);
  ASSERT_TRUE(Read(0, 1000).ok());
  owner.Kill();
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(Read(i * 1000, 1000).ok());
  EXPECT_EQ(StoreGets(), 0u);
  EXPECT_THAT(next.requests(), SizeIs(10));
  // Most of them did not even try.
  EXPECT_LE(pool_->Stats().faults, 2u);
  const size_t before = owner.requests().size();
  owner.Start();
  ASSERT_TRUE(AwaitReachable(3));
  ASSERT_TRUE(Read(0, 1000).ok());
  EXPECT_THAT(owner.requests(), SizeIs(before + 1));
}

TEST_F(PoolTest, AWorkerThatWasStartedAgainIsNoFault) {
  StartWorkers(1);
  options_.members_refresh = absl::Hours(1);
  MakePool();
  ASSERT_TRUE(Read(0, 1000).ok());
  workers_[0]->Kill();
  workers_[0]->Start();
  ASSERT_TRUE(Read(0, 1000).ok());
  EXPECT_EQ(pool_->Stats().faults, 0u);
  EXPECT_EQ(StoreGets(), 0u);
}

// Each way to fail in an answer: the rest comes from the next in rank, the store is not needed.
class MischiefTest : public PoolTest, public ::testing::WithParamInterface<Mischief> {};

TEST_P(MischiefTest, TheNextInRankGoesOn) {
  StartWorkers(2);
  MakePool();
  ASSERT_TRUE(AwaitReachable(2));
  OwnerOf(0).Do(GetParam(), absl::UnavailableError("the worker is told to fail"));
  ASSERT_TRUE(Read(5, 700'000).ok());
  EXPECT_EQ(StoreGets(), 0u);
  EXPECT_GE(pool_->Stats().faults, 1u);
  const std::vector<proto::Get> taken_over = OwnerOf(0, 1).requests();
  ASSERT_THAT(taken_over, SizeIs(1));
  // What had come by then is not asked for again.
  const bool halfway = GetParam() == Mischief::kClosesEarly || GetParam() == Mischief::kErrorMidway;
  EXPECT_TRUE(!halfway || taken_over[0].offset == 5u + 350'000);
  EXPECT_EQ(taken_over[0].offset + taken_over[0].length, 5u + 700'000);
  // And the same with nobody left.
  OwnerOf(0, 1).Do(GetParam(), absl::UnavailableError("the worker is told to fail"));
  ASSERT_TRUE(GetParam() == Mischief::kFrozen || AwaitReachable(2));
  ASSERT_TRUE(Read(5, 700'000).ok());
  EXPECT_GE(StoreGets(), 1u);
}

INSTANTIATE_TEST_SUITE_P(All, MischiefTest,
                         ::testing::Values(Mischief::kFrozen, Mischief::kSilent,
                                           Mischief::kClosesEarly, Mischief::kDamagedPayload,
                                           Mischief::kDamagedHeader, Mischief::kTooMuch,
                                           Mischief::kTooLittle, Mischief::kWrongOffset,
                                           Mischief::kWrongRequest, Mischief::kUnknownFrame,
                                           Mischief::kGarbage, Mischief::kError,
                                           Mischief::kErrorMidway));

TEST_F(PoolTest, DamagedFramesAreCountedAndNothingOfThemIsUsed) {
  StartWorkers(1);
  workers_[0]->Do(Mischief::kDamagedPayload);
  MakePool();
  std::string got;
  ASSERT_TRUE(Read(0, 1000).ok());
  EXPECT_EQ(pool_->Stats().damaged_frames, 1u);
  EXPECT_EQ(pool_->Stats().bytes_remote, 0u);
  EXPECT_TRUE(workers_[0]->AwaitComplaint());  // So that it looks at its block again.
  EXPECT_EQ(StoreGets(), 1u);
}

TEST_F(PoolTest, FramesOfOddSizes) {
  StartWorkers(1);
  workers_[0]->Do(Mischief::kTrickle);
  MakePool();
  ASSERT_TRUE(Read(17, 300'001).ok());
  EXPECT_EQ(StoreGets(), 0u);
  EXPECT_EQ(pool_->Stats().faults, 0u);
}

TEST_F(PoolTest, AFrozenWorkerIsFoundOutLongBeforeTheAnswersTimeout) {
  StartWorkers(1);
  options_.answer_timeout = absl::Minutes(5);
  MakePool();
  ASSERT_TRUE(AwaitReachable(1));
  workers_[0]->Do(Mischief::kFrozen);
  const absl::Time began = absl::Now();
  ASSERT_TRUE(Read(0, 1000).ok());
  EXPECT_LT(absl::Now() - began, absl::Seconds(20));
  EXPECT_EQ(StoreGets(), 1u);
}

// Only the store knows for sure; its own answer counts.
TEST_F(PoolTest, WhatWorkersSayOfTheStoreIsAskedOfTheStore) {
  StartWorkers(2);
  MakePool();
  ASSERT_TRUE(AwaitReachable(2));
  for (const absl::Status& error :
       {absl::NotFoundError("unknown source"), absl::FailedPreconditionError("another version"),
        absl::PermissionDeniedError("credentials")}) {
    for (auto& worker : workers_) worker->Do(Mischief::kError, error);
    const size_t before = StoreGets();
    ASSERT_TRUE(Read(0, 1000).ok());
    EXPECT_EQ(StoreGets(), before + 1);
  }
  EXPECT_THAT(OwnerOf(0, 1).requests(), IsEmpty());
  EXPECT_EQ(pool_->Stats().faults, 0u);
  store_->SetVersion(kPath, "v2");
  EXPECT_TRUE(absl::IsFailedPrecondition(Read(0, 1000)));
}

TEST_F(PoolTest, CancelledAndDeadline) {
  StartWorkers(1);
  MakePool();
  ASSERT_TRUE(AwaitReachable(1));
  workers_[0]->Do(Mischief::kSilent);
  std::atomic<bool> cancelled{true};
  store::CallOptions call;
  call.cancelled = &cancelled;
  EXPECT_TRUE(absl::IsCancelled(Read(0, 1000, call)));
  call = {};
  call.timeout = absl::Milliseconds(300);
  EXPECT_TRUE(absl::IsDeadlineExceeded(Read(0, 1000, call)));
  // It was the caller's doing.
  EXPECT_EQ(pool_->Stats().faults, 0u);
  EXPECT_EQ(StoreGets(), 0u);
}

TEST_F(PoolTest, TheSinkStopsATransfer) {
  StartWorkers(1);
  MakePool();
  const auto refuse = [](absl::string_view) { return false; };
  EXPECT_TRUE(absl::IsCancelled(source_->Get(Request(0, 1 << 20), refuse, {})));
  EXPECT_EQ(pool_->Stats().faults, 0u);
  ASSERT_TRUE(Read(0, 1000).ok());
}

TEST_F(PoolTest, WorkersOfOtherPoolsAndVersionsAreNotUsed) {
  StartWorkers(3);
  proto::Welcome welcome = ScriptedWorker::WelcomeOf("worker-0");
  welcome.cluster = "another";
  workers_[0]->SetWelcome(welcome);
  welcome = ScriptedWorker::WelcomeOf("worker-1");
  welcome.version = 99;
  workers_[1]->SetWelcome(welcome);
  welcome = ScriptedWorker::WelcomeOf("worker-2");
  welcome.extent_size = 12'345;
  workers_[2]->SetWelcome(welcome);
  MakePool();
  ASSERT_TRUE(Read(0, 1000).ok());
  EXPECT_EQ(StoreGets(), 1u);
  for (auto& worker : workers_) EXPECT_THAT(worker->requests(), IsEmpty());
  std::string errors;
  for (const MemberStatus& member : pool_->Members()) absl::StrAppend(&errors, member.last_error);
  EXPECT_THAT(errors, HasSubstr("another cluster"));
  EXPECT_THAT(errors, HasSubstr("version"));
  EXPECT_THAT(errors, HasSubstr("12345"));
}

TEST_F(PoolTest, ExtentSizesMustAgree) {
  StartWorkers(3);
  workers_[1]->SetWelcome(ScriptedWorker::WelcomeOf("worker-1", 2 << 20));
  MakePool();
  ASSERT_TRUE(AwaitReachable(3));
  ASSERT_TRUE(Read(0, kFileSize).ok());
  EXPECT_THAT(workers_[1]->requests(), IsEmpty());
  EXPECT_TRUE(Await(
      [](const MemberStatus& member) {
        return member.last_error.find("not used") != std::string::npos;
      },
      1));
}

TEST_F(PoolTest, WhoDrainsIsNotAskedUnlessNobodyElseIsThere) {
  StartWorkers(2);
  ScriptedWorker& owner = OwnerOf(0);
  proto::Welcome welcome = ScriptedWorker::WelcomeOf(owner.id());
  welcome.draining = true;
  owner.SetWelcome(welcome);
  MakePool();
  ASSERT_TRUE(Await([](const MemberStatus& member) { return member.draining; }, 1));
  ASSERT_TRUE(AwaitReachable(2));
  ASSERT_TRUE(Read(0, 1000).ok());
  EXPECT_THAT(owner.requests(), IsEmpty());
  OwnerOf(0, 1).Kill();
  ASSERT_TRUE(Read(0, 1000).ok());
  EXPECT_THAT(owner.requests(), SizeIs(1));
}

TEST_F(PoolTest, ManyMembers) {
  StartWorkers(40);
  MakePool();
  ASSERT_TRUE(AwaitReachable(40));
  ASSERT_TRUE(Read(0, kFileSize).ok());
  EXPECT_EQ(StoreGets(), 0u);
  std::set<std::string> ids;
  for (const MemberStatus& member : pool_->Members()) ids.insert(member.id);
  EXPECT_THAT(ids, SizeIs(40));
}

// --- As a worker uses it ---

TEST_F(PoolTest, AWorkersOwnPlaceMeansItsStore) {
  StartWorkers(2);
  options_.self = OwnerOf(0).id();
  MakePool();
  ASSERT_TRUE(AwaitReachable(2));
  ASSERT_TRUE(Read(0, 1000).ok());
  EXPECT_EQ(StoreGets(), 1u);
  EXPECT_THAT(OwnerOf(0).requests(), IsEmpty());
  EXPECT_THAT(OwnerOf(0, 1).requests(), IsEmpty());
}

TEST_F(PoolTest, AnOwnerAsksTheOthersForWhatTheyHave) {
  StartWorkers(6);
  options_.self = OwnerOf(0).id();
  MakePool();
  ASSERT_TRUE(AwaitReachable(6));
  source_ = pool_->WrapForOwner(kSource, store_);
  ASSERT_TRUE(Read(0, 1000).ok());
  EXPECT_EQ(StoreGets(), 0u);
  ASSERT_THAT(OwnerOf(0, 1).requests(), SizeIs(1));
  EXPECT_EQ(OwnerOf(0, 1).requests()[0].role, proto::Role::kCached);
  // Nobody has it: a few are asked, then the store.
  for (auto& worker : workers_) worker->Do(Mischief::kError, absl::NotFoundError("not cached"));
  ASSERT_TRUE(Read(0, 1000).ok());
  EXPECT_EQ(StoreGets(), 1u);
  EXPECT_EQ(from_, store::BytesFrom::kStore);
  size_t asked = 0;
  for (auto& worker : workers_) asked += worker->requests().size();
  EXPECT_EQ(asked, 1u + 3);
  EXPECT_EQ(pool_->Stats().faults, 0u);
  EXPECT_EQ(pool_->Stats().bypassed, 0u);
}

TEST_F(PoolTest, LoadGoesToTheOwners) {
  StartWorkers(3);
  MakePool();
  ASSERT_TRUE(AwaitReachable(3));
  const tier::FileKey file = {kSource, kPath, "v1", kFileSize};
  const absl::StatusOr<proto::Done> done = pool_->Load(file, 0, kFileSize, {});
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->bytes, kFileSize);
  size_t loads = 0;
  for (auto& worker : workers_) loads += worker->loads();
  EXPECT_EQ(loads, 9u);
  for (auto& worker : workers_) worker->Kill();
  EXPECT_FALSE(pool_->Load(file, 0, kFileSize, {}).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(pool_->Load(file, 1, kFileSize, {}).status()));
}

TEST_F(PoolTest, WarmOfTheStoreLetsTheOwnersLoad) {
  StartWorkers(2);
  MakePool();
  ASSERT_TRUE(AwaitReachable(2));
  store::GetRequest request;
  request.path = kPath;
  request.version = "v1";
  request.file_size = kFileSize;
  request.length = kFileSize;
  const absl::StatusOr<uint64_t> kept = source_->Warm(request, {});
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(*kept, kFileSize);
  EXPECT_EQ(workers_[0]->loads() + workers_[1]->loads(), 9u);
  EXPECT_TRUE(absl::IsUnimplemented(store_->Warm(request, {}).status()));
}

TEST_F(PoolTest, Index) {
  StartWorkers(2);
  MakePool();
  std::string got;
  const auto sink = [&](absl::string_view piece) {
    got.append(piece.data(), piece.size());
    return true;
  };
  ASSERT_TRUE(pool_->Index({kSource, 7}, sink, {}).ok());
  EXPECT_EQ(got, "index of s3://bucket");
  for (auto& worker : workers_) worker->Kill();
  EXPECT_TRUE(absl::IsUnavailable(pool_->Index({kSource, 7}, sink, {})));
}

// --- The worker of this node ---

class LocalTest : public PoolTest {
 protected:
  void StartLocal() {
    ScriptedWorker::Options options;
    options.welcome = ScriptedWorker::WelcomeOf("local");
    options.address = {"", 0, directory_.path() + "/worker.sock"};
    local_ = std::make_unique<ScriptedWorker>(std::move(options));
    options_.workers.push_back(local_->address());
  }
  base::UniqueFd FileOf(uint64_t size) {
    base::UniqueFd file(memfd_create("pool_test", MFD_CLOEXEC));
    EXPECT_EQ(ftruncate(file.get(), static_cast<off_t>(size)), 0);
    return file;
  }

  test::TempDir directory_;
  std::unique_ptr<ScriptedWorker> local_;
  const tier::FileKey file_ = {kSource, kPath, "v1", kFileSize};
};

TEST_F(LocalTest, IsAskedAsAGuestForEverything) {
  StartWorkers(2);
  StartLocal();
  MakePool();
  ASSERT_TRUE(AwaitReachable(3));
  EXPECT_TRUE(pool_->has_local_worker());
  ASSERT_TRUE(Read(0, kFileSize).ok());
  ASSERT_THAT(local_->requests(), SizeIs(1));
  EXPECT_EQ(local_->requests()[0].role, proto::Role::kGuest);
  // Without it the owners are.
  local_->Kill();
  ASSERT_TRUE(Read(0, kFileSize).ok());
  EXPECT_EQ(StoreGets(), 0u);
  EXPECT_FALSE(OwnerOf(0).requests().empty() && OwnerOf(0, 1).requests().empty());
  EXPECT_FALSE(pool_->has_local_worker());
}

TEST_F(LocalTest, HandsOverDescriptors) {
  StartLocal();
  MakePool();
  ASSERT_TRUE(AwaitReachable(1));
  EXPECT_TRUE(absl::IsNotFound(pool_->OpenLocal(file_).status()));
  local_->SetFile(FileOf(kFileSize));
  absl::StatusOr<std::shared_ptr<const tier::OpenData>> first = pool_->OpenLocal(file_);
  ASSERT_TRUE(first.ok()) << first.status();
  absl::StatusOr<std::shared_ptr<const tier::OpenData>> second = pool_->OpenLocal(file_);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(pool_->Stats().bytes_short_circuit, 2 * kFileSize);
  EXPECT_THAT(local_->released(), IsEmpty());
  first->reset();
  EXPECT_TRUE(local_->AwaitReleased(1));
  EXPECT_TRUE((*second)->leased());
  // A worker that dies leaves the descriptor, and the next one knows nothing of its leases.
  local_->Kill();
  char byte = 1;
  EXPECT_EQ(pread((*second)->fd(), &byte, 1, kFileSize - 1), 1);
  EXPECT_TRUE(absl::IsNotFound(pool_->OpenLocal(file_).status()));
  EXPECT_FALSE((*second)->leased());
  local_->Start();
  ASSERT_TRUE(AwaitReachable(1));
  EXPECT_TRUE(pool_->OpenLocal(file_).ok());
  ASSERT_TRUE(local_->AwaitReleased(2));  // Of the one that was just dropped.
  second->reset();
  EXPECT_THAT(local_->released(), SizeIs(2));
}

TEST_F(LocalTest, ALeaseMayOutliveThePool) {
  StartLocal();
  local_->SetFile(FileOf(kFileSize));
  MakePool();
  ASSERT_TRUE(AwaitReachable(1));
  absl::StatusOr<std::shared_ptr<const tier::OpenData>> opened = pool_->OpenLocal(file_);
  ASSERT_TRUE(opened.ok());
  source_.reset();
  pool_.reset();
  opened->reset();
}

TEST_F(LocalTest, AnotherFileOrNoneIsNotTaken) {
  StartLocal();
  MakePool();
  ASSERT_TRUE(AwaitReachable(1));
  local_->SetFile(FileOf(kFileSize - 1));
  EXPECT_TRUE(absl::IsNotFound(pool_->OpenLocal(file_).status()));
  EXPECT_EQ(pool_->Stats().damaged_frames, 1u);
  ASSERT_TRUE(AwaitReachable(1));
  local_->SetFile(FileOf(kFileSize));
  local_->Do(Mischief::kDescriptorMissing);
  EXPECT_TRUE(absl::IsNotFound(pool_->OpenLocal(file_).status()));
  EXPECT_EQ(pool_->Stats().damaged_frames, 2u);
  ASSERT_TRUE(AwaitReachable(1));
  // Silence costs an open a second, and no more.
  local_->Do(Mischief::kSilent);
  EXPECT_TRUE(absl::IsNotFound(pool_->OpenLocal(file_).status()));
}

// --- Certificates ---

TEST_F(PoolTest, WorkersMustShowTheirCertificate) {
  test::TempDir directory;
  testing::TestAuthority authority(directory.path(), "authority");
  testing::TestAuthority stranger(directory.path(), "stranger");
  const std::unique_ptr<net::Tls> good =
      *net::Tls::Load(authority.Issue("good", {"127.0.0.1"}), base::RealClock());
  const std::unique_ptr<net::Tls> bad =
      *net::Tls::Load(stranger.Issue("bad", {"127.0.0.1"}), base::RealClock());
  for (net::Tls* tls : {good.get(), bad.get(), static_cast<net::Tls*>(nullptr)}) {
    ScriptedWorker::Options options;
    options.welcome = ScriptedWorker::WelcomeOf(absl::StrCat("worker-", workers_.size()));
    options.tls = tls;
    workers_.push_back(std::make_unique<ScriptedWorker>(std::move(options)));
    options_.workers.push_back(workers_.back()->address());
  }
  const net::TlsFiles files = authority.Issue("client", {"client"});
  options_.certificate = files.certificate;
  options_.key = files.key;
  options_.authority = files.authority;
  MakePool();
  ASSERT_TRUE(Read(0, kFileSize).ok());
  EXPECT_EQ(StoreGets(), 0u);
  EXPECT_THAT(workers_[0]->requests(), SizeIs(9));
  EXPECT_THAT(workers_[1]->requests(), IsEmpty());
  EXPECT_THAT(workers_[2]->requests(), IsEmpty());
  workers_.clear();  // Before their certificates.
}

// --- Options and names ---

TEST_F(PoolTest, WrongOptionsAreNamed) {
  for (const std::string text : {"", "host", "host:0", ":7451", "a:1,,b:2", "a:1, b:2", "dns:name",
                                 "dns:10.0.0.1:7451", "unix:relative", "dns:name:0"}) {
    PoolOptions options;
    options.workers = {text};
    const absl::Status status = Pool::Create(options).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << text;
  }
  PoolOptions options;
  options.workers = {"unix:/a", "unix:/b"};
  EXPECT_THAT(Pool::Create(options).status().message(), HasSubstr("only one"));
  options.workers = {"a:1"};
  options.key = "/k";
  EXPECT_THAT(Pool::Create(options).status().message(), HasSubstr("belong together"));
}

TEST_F(PoolTest, NamesAreLookedUpAgain) {
  StartWorkers(2);
  // A look-up may be on its way when the pool is gone.
  struct Names {
    std::vector<std::string> addresses;
    std::atomic<size_t> known{1};
    std::atomic<bool> broken{false};
  };
  const auto names = std::make_shared<Names>();
  names->addresses = std::exchange(options_.workers, {"dns:workers:7451"});
  PoolParts parts;
  parts.look_up = [names](const WorkerSource& source) -> absl::StatusOr<std::vector<Endpoint>> {
    EXPECT_EQ(source.address.host, "workers");
    if (names->broken) return absl::UnavailableError("no name server");
    std::vector<Endpoint> endpoints;
    for (size_t i = 0; i < names->known; ++i) {
      endpoints.push_back(
          {names->addresses[i], *net::ParseAddress(names->addresses[i]), "workers"});
    }
    return endpoints;
  };
  parts.dial = [](const Endpoint& endpoint,
                  absl::Duration timeout) -> absl::StatusOr<std::unique_ptr<net::Stream>> {
    absl::StatusOr<base::UniqueFd> socket = net::Connect(endpoint.address, timeout);
    if (!socket.ok()) return socket.status();
    return net::PlainStream(*std::move(socket));
  };
  pool_ = *CreatePool(options_, parts);
  source_ = pool_->Wrap(kSource, store_);
  ASSERT_TRUE(Read(0, 1000).ok());
  EXPECT_EQ(StoreGets(), 0u);
  EXPECT_THAT(pool_->Members(), SizeIs(1));
  names->known = 2;
  EXPECT_TRUE(AwaitReachable(2));
  names->broken = true;  // What was known stays.
  ASSERT_TRUE(Read(0, kFileSize).ok());
  EXPECT_THAT(pool_->Members(), SizeIs(2));
  names->broken = false;
  names->known = 1;
  EXPECT_TRUE(AwaitReachable(1));
  EXPECT_THAT(pool_->Members(), SizeIs(1));
}

}  // namespace
}  // namespace millrace::pool
