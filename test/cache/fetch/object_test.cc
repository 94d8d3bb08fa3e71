// Objects over a real cache on a temporary directory and a store that can be held and broken.
#include "cache/fetch/object.h"

#include <cerrno>
#include <filesystem>
#include <random>
#include <thread>

#include "cache/pool/short_circuit.h"
#include "cache/tier/no_cache.h"
#include "common/base/errno_status.h"
#include "common/base/units.h"
#include "gtest/gtest.h"
#include "test/support/fake_pool.h"
#include "test/support/pattern_store.h"
#include "test/support/sim_clock.h"

namespace millrace::fetch {
namespace {

using base::kMiB;
using test::PatternBytes;
using test::PatternStore;

struct Answer {
  absl::Status status;
  std::string bytes;
  Origin origin = Origin::kLocal;
};

// Collects the answer of one read, whatever thread gives it.
class Waiter {
 public:
  ReadCallback Callback() {
    return [this](absl::StatusOr<ReadResult> result) {
      base::MutexLock lock(&mutex_);
      answer_.status = result.status();
      if (result.ok()) {
        for (const absl::Span<const char> piece : result->pieces) {
          answer_.bytes.append(piece.data(), piece.size());
        }
        answer_.origin = result->origin;
      }
      done_ = true;
      changed_.NotifyAll();
    };
  }
  const Answer& Wait() {
    base::MutexLock lock(&mutex_);
    while (!done_) changed_.Wait(&mutex_);
    return answer_;
  }
  bool done() {
    base::MutexLock lock(&mutex_);
    return done_;
  }

 private:
  base::Mutex mutex_;
  base::CondVar changed_;
  bool done_ = false;
  Answer answer_;
};

// The same for one block.
class BlockWaiter {
 public:
  BlockCallback Callback() {
    return [this](absl::StatusOr<BlockRef> block) {
      base::MutexLock lock(&mutex_);
      block_ = std::move(block);
      changed_.NotifyAll();
    };
  }
  const absl::StatusOr<BlockRef>& Wait() {
    base::MutexLock lock(&mutex_);
    while (absl::IsUnknown(block_.status())) changed_.Wait(&mutex_);
    return block_;
  }

 private:
  base::Mutex mutex_;
  base::CondVar changed_;
  absl::StatusOr<BlockRef> block_ = absl::UnknownError("not yet");
};

// Says where two texts differ instead of printing megabytes.
testing::AssertionResult Same(const std::string& got, const std::string& want) {
  if (got == want) return testing::AssertionSuccess();
  const size_t at =
      std::mismatch(got.begin(), got.end(), want.begin(), want.end()).first - got.begin();
  return testing::AssertionFailure()
         << got.size() << " bytes for " << want.size() << ", different from byte " << at;
}

class ObjectTest : public testing::Test {
 protected:
  void SetUp() override { Make(64 * kMiB, 64 * kMiB, 8); }
  void TearDown() override {
    Clear();
    std::filesystem::remove_all(directory_);
  }

  // With a quota of 0 there is no cache, but what the worker of this node has.
  void Make(uint64_t quota, uint64_t memory, size_t threads) {
    Clear();
    char name[] = "/tmp/object_test.XXXXXX";
    if (directory_.empty()) directory_ = mkdtemp(name);
    file_io_ = io::NewPosixFileIo(2);
    tier::CacheOptions options;
    options.tiers.push_back({tier::Medium::kSsd, directory_ + "/tier", quota});
    options.sources_in_use = {"pattern://"};
    if (quota == 0) {
      cache_ = std::make_unique<pool::ShortCircuitCache>(tier::NewNoCache(), &worker_, 100,
                                                         file_io_.get(), &clock_);
    } else {
      auto cache = tier::TieredCache::Open(options, file_io_.get());
      ASSERT_TRUE(cache.ok()) << cache.status();
      cache_ = *std::move(cache);
    }
    shared_.keeps_read = quota > 0;
    pool_ = std::make_unique<BufferPool>(memory);
    memory_ = std::make_unique<MemoryCache>(pool_.get());
    queue_ = std::make_unique<FetchQueue>(threads, pool_.get(),
                                          [this] { return memory_->DropOldest(); });
    shared_.cache = cache_.get();
    shared_.pool = pool_.get();
    shared_.queue = queue_.get();
    shared_.memory = memory_.get();
    store_ = std::make_shared<PatternStore>();
  }
  void Clear() {
    if (queue_ != nullptr) {
      store_->Open();
      queue_->Stop();
    }
    memory_.reset();
    queue_.reset();
    if (cache_ != nullptr) {
      EXPECT_TRUE(cache_->Close().ok());
    }
    cache_.reset();
    file_io_.reset();
    pool_.reset();
  }

  std::shared_ptr<Object> MakeObject(const std::string& path, uint64_t size) {
    return std::make_shared<Object>(tier::FileKey{"pattern://", path, "v1", size}, store_,
                                    &shared_);
  }
  static Answer Read(Object& object, uint64_t offset, uint64_t size) {
    Waiter waiter;
    object.Read(offset, size, waiter.Callback());
    return waiter.Wait();
  }
  static Answer ReadScattered(Object& object, uint64_t offset, uint64_t size) {
    Waiter waiter;
    object.ReadScattered(offset, size, waiter.Callback());
    return waiter.Wait();
  }
  static void Fill(Object& object, uint64_t offset, uint64_t size) {
    base::Mutex mutex;
    base::CondVar changed;
    bool done = false;
    object.Prefetch(offset, size, Priority::kBulk, [&](const absl::Status& status) {
      EXPECT_TRUE(status.ok()) << status;
      base::MutexLock lock(&mutex);
      done = true;
      changed.NotifyAll();
    });
    base::MutexLock lock(&mutex);
    while (!done) changed.Wait(&mutex);
  }

  std::string directory_;
  test::SimClock clock_;
  test::FakePool worker_;
  std::unique_ptr<io::FileIo> file_io_;
  std::unique_ptr<tier::TieredCache> cache_;
  std::unique_ptr<BufferPool> pool_;
  std::unique_ptr<MemoryCache> memory_;
  Shared shared_;
  std::shared_ptr<PatternStore> store_;
  std::unique_ptr<FetchQueue> queue_;
};

TEST_F(ObjectTest, ReadsTheRightBytesAcrossBlocksAndAtTheEnd) {
  const uint64_t size = 3 * kMiB + 12'345;
  const auto object = MakeObject("a", size);
  for (const uint64_t offset : {uint64_t{0}, kBlockSize - 1, 2 * kMiB, size - 100}) {
    const Answer answer = Read(*object, offset, kMiB);
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_TRUE(Same(answer.bytes, PatternBytes("a", "v1", offset, std::min(kMiB, size - offset))));
  }
  EXPECT_EQ(Read(*object, size, 10).bytes, "");
}

TEST_F(ObjectTest, ManyReadersOfOneColdRangeCauseOneGet) {
  store_->Hold();
  const auto object = MakeObject("a", 8 * kMiB);
  std::vector<Waiter> waiters(32);
  for (Waiter& waiter : waiters) object->Read(2 * kMiB, kMiB, waiter.Callback());
  store_->AwaitGets(1);
  store_->Open();
  for (Waiter& waiter : waiters) {
    EXPECT_TRUE(Same(waiter.Wait().bytes, PatternBytes("a", "v1", 2 * kMiB, kMiB)));
  }
  EXPECT_EQ(store_->requests().size(), 1u);
  EXPECT_EQ(store_->bytes_sent(), kMiB);
}

TEST_F(ObjectTest, SecondReadComesFromTheCache) {
  const auto object = MakeObject("a", 2 * kMiB);
  Fill(*object, 0, 2 * kMiB);
  const uint64_t sent = store_->bytes_sent();
  // Whether a block is in the cache already or still on its way there, it is not fetched again.
  EXPECT_TRUE(Same(Read(*object, 0, kMiB).bytes, PatternBytes("a", "v1", 0, kMiB)));
  EXPECT_EQ(store_->bytes_sent(), sent);
  EXPECT_EQ(sent, 2 * kMiB);
}

TEST_F(ObjectTest, SmallObjectIsFetchedWholeWithOneGet) {
  const auto object = MakeObject("small", 300'000);
  EXPECT_TRUE(Same(Read(*object, 200'000, 4096).bytes, PatternBytes("small", "v1", 200'000, 4096)));
  EXPECT_TRUE(Same(Read(*object, 0, 4096).bytes, PatternBytes("small", "v1", 0, 4096)));
  ASSERT_EQ(store_->requests().size(), 1u);
  EXPECT_EQ(store_->requests()[0].length, 300'000u);
}

TEST_F(ObjectTest, RandomReadOfALargeObjectFetchesOneBlock) {
  const auto object = MakeObject("large", 512 * kMiB);
  EXPECT_TRUE(Read(*object, 100 * kMiB + 5000, 4096).status.ok());
  ASSERT_EQ(store_->requests().size(), 1u);
  EXPECT_EQ(store_->requests()[0].length, kBlockSize);
}

TEST_F(ObjectTest, WhatTheCacheRefusesIsServedFromMemory) {
  Make(/*quota=*/kMiB, /*memory=*/64 * kMiB, 4);
  const auto object = MakeObject("large", 16 * kMiB);
  EXPECT_TRUE(object->Uncached());
  Fill(*object, 0, 8 * kMiB);
  const uint64_t sent = store_->bytes_sent();
  EXPECT_TRUE(Same(Read(*object, kMiB, kMiB).bytes, PatternBytes("large", "v1", kMiB, kMiB)));
  EXPECT_EQ(store_->bytes_sent(), sent);
}

TEST_F(ObjectTest, WithoutACacheABlockLeavesMemoryWhenItWasRead) {
  Make(/*quota=*/0, /*memory=*/64 * kMiB, 4);
  const auto object = MakeObject("large", 16 * kMiB + 5);
  Fill(*object, 0, 16 * kMiB + 5);
  EXPECT_EQ(pool_->used_blocks(), 129u);
  for (uint64_t offset = 0; offset < object->key().size; offset += kBlockSize / 2) {
    EXPECT_TRUE(Same(Read(*object, offset, kBlockSize / 2).bytes,
                     PatternBytes("large", "v1", offset,
                                  std::min(kBlockSize / 2, object->key().size - offset))));
  }
  EXPECT_EQ(store_->bytes_sent(), object->key().size);
  EXPECT_EQ(pool_->used_blocks(), 0u);
  // And what a reader waits for does not stay either.
  EXPECT_TRUE(Same(Read(*object, kMiB, kMiB).bytes, PatternBytes("large", "v1", kMiB, kMiB)));
  queue_->Stop();
  EXPECT_EQ(pool_->used_blocks(), 0u);
}

// The kernel reads on, on another thread, between our seeing a stream and our fetching ahead of it.
TEST_F(ObjectTest, ReadAheadFetchesNothingThatWasReadMeanwhile) {
  Make(/*quota=*/0, /*memory=*/64 * kMiB, 4);
  const auto object = MakeObject("a", 16 * kMiB);
  Read(*object, 0, kMiB);
  const uint64_t mark = object->Mark();
  Read(*object, kMiB, kMiB);
  object->ReadAhead(kMiB, 3 * kMiB, mark);
  store_->AwaitGets(3);
  EXPECT_EQ(store_->requests().back().offset, 2 * kMiB);
  EXPECT_EQ(store_->requests().back().length, 2 * kMiB);
  // Who comes a second time is fetched for anew.
  object->ReadAhead(kMiB, kMiB, object->Mark());
  store_->AwaitGets(4);
  EXPECT_EQ(store_->requests().back().offset, kMiB);
  // And nothing of a range that was read altogether.
  const uint64_t before = object->Mark();
  Read(*object, 8 * kMiB, kMiB);
  object->ReadAhead(8 * kMiB, kMiB, before);
  queue_->Stop();
  EXPECT_EQ(store_->requests().size(), 5u);
}

TEST_F(ObjectTest, WithoutACacheNothingStaysOfWhatTheLastReaderLeft) {
  Make(/*quota=*/0, /*memory=*/64 * kMiB, 4);
  shared_.clock = &clock_;
  auto object = MakeObject("a", 16 * kMiB);
  Fill(*object, 0, 4 * kMiB);
  queue_->Stop();
  EXPECT_EQ(pool_->used_blocks(), 32u);
  object->CancelPrefetch();
  EXPECT_EQ(pool_->used_blocks(), 0u);
  // Nor when the worker's file has it all: what waits in memory would keep its reader from there.
  object.reset();
  Make(/*quota=*/0, /*memory=*/64 * kMiB, 4);
  object = MakeObject("a", 16 * kMiB);
  object->Prefetch(0, kMiB, Priority::kReadAhead);
  Read(*object, kMiB - 1, 1);
  EXPECT_GT(pool_->used_blocks(), 0u);
  worker_.Put(object->key(), PatternBytes("a", "v1", 0, 16 * kMiB));
  clock_.Advance(Object::kLookAgain);
  queue_->Stop();
  object->LookForComplete();
  EXPECT_EQ(pool_->used_blocks(), 0u);
  EXPECT_NE(object->OpenHit(), nullptr);
}

TEST_F(ObjectTest, BytesThatTheStorePutInPlaceAreNotMixedUp) {
  store_->SetUsesRoom(true);
  for (const uint64_t quota : {64 * kMiB, uint64_t{0}}) {
    Make(quota, 64 * kMiB, 4);
    store_->SetUsesRoom(true);
    store_->SetRangeUnit(store::kRangeUnitPage);
    const auto object = MakeObject("a", 5 * kMiB + 77);
    for (const uint64_t offset : {uint64_t{0}, 2 * kMiB + 5, 4 * kMiB + 100}) {
      EXPECT_TRUE(Same(Read(*object, offset, kMiB).bytes,
                       PatternBytes("a", "v1", offset, std::min(kMiB, 5 * kMiB + 77 - offset))));
    }
    EXPECT_TRUE(Same(ReadScattered(*object, 3 * kMiB + 99, 70'000).bytes,
                     PatternBytes("a", "v1", 3 * kMiB + 99, 70'000)));
  }
}

TEST_F(ObjectTest, ScatteredReadWithoutACacheFetchesItsPagesOnly) {
  Make(/*quota=*/0, /*memory=*/64 * kMiB, 4);
  store_->SetRangeUnit(4096);
  const auto object = MakeObject("large", 512 * kMiB + 100);
  struct Case {
    uint64_t offset, size, from, length;
  };
  size_t gets = 0;
  for (const Case& read :
       {Case{100 * kMiB + 5000, 4096, 100 * kMiB + 4096, 8192}, Case{8192, 4096, 8192, 4096},
        Case{kBlockSize - 1, 2, kBlockSize - 4096, 8192},
        Case{512 * kMiB + 90, 4096, 512 * kMiB, 100}, Case{kMiB, kBlockSize, kMiB, kBlockSize}}) {
    const Answer answer = ReadScattered(*object, read.offset, read.size);
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    const uint64_t size = std::min(read.size, object->key().size - read.offset);
    EXPECT_TRUE(Same(answer.bytes, PatternBytes("large", "v1", read.offset, size)));
    ASSERT_EQ(store_->requests().size(), ++gets);
    EXPECT_EQ(store_->requests().back().offset, read.from);
    EXPECT_EQ(store_->requests().back().length, read.length);
  }
  EXPECT_EQ(ReadScattered(*object, object->key().size, 10).bytes, "");
  queue_->Stop();
  EXPECT_EQ(pool_->used_blocks(), 0u);
}

TEST_F(ObjectTest, ScatteredReadTakesWhatIsHereOrOnItsWay) {
  Make(/*quota=*/0, /*memory=*/64 * kMiB, 4);
  store_->SetRangeUnit(4096);
  const auto object = MakeObject("large", 16 * kMiB);
  store_->Hold();
  object->Prefetch(0, kMiB, Priority::kReadAhead);
  store_->AwaitGets(1);
  Waiter waiter;
  object->ReadScattered(kBlockSize - 10, 20, waiter.Callback());
  store_->Open();
  EXPECT_TRUE(Same(waiter.Wait().bytes, PatternBytes("large", "v1", kBlockSize - 10, 20)));
  EXPECT_EQ(store_->requests().size(), 1u);
}

TEST_F(ObjectTest, ScatteredReadGoesByBlocksWhereTheyAreKeptOrCostNoMore) {
  store_->SetRangeUnit(4096);
  auto kept = MakeObject("kept", 16 * kMiB);
  EXPECT_TRUE(ReadScattered(*kept, 5 * kMiB + 1, 10).status.ok());
  EXPECT_EQ(store_->requests().back().length, kBlockSize);
  kept.reset();
  Make(/*quota=*/0, /*memory=*/64 * kMiB, 4);
  const auto far = MakeObject("far", 16 * kMiB);
  EXPECT_TRUE(ReadScattered(*far, 5 * kMiB + 1, 10).status.ok());
  EXPECT_EQ(store_->requests().back().length, kBlockSize);
}

TEST_F(ObjectTest, ScatteredReadFailsAsAnyOther) {
  Make(/*quota=*/0, /*memory=*/64 * kMiB, 4);
  shared_.clock = &clock_;
  store_->SetRangeUnit(4096);
  const auto object = MakeObject("a", 16 * kMiB);
  store_->FailNext(1, absl::UnavailableError("503 after 4 tries"), 100);
  EXPECT_EQ(base::ErrnoOf(ReadScattered(*object, 0, 4096).status), EIO);
  EXPECT_EQ(base::ErrnoOf(ReadScattered(*object, 0, 4096).status), EIO);
  EXPECT_EQ(store_->requests().size(), 1u);
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(ReadScattered(*object, 0, 4096).status.ok());
  store_->SetVersion("a", "v2");
  EXPECT_EQ(base::ErrnoOf(ReadScattered(*object, 0, 4096).status), ESTALE);
  EXPECT_EQ(shared_.store_errors.load(), 1u);
  EXPECT_EQ(shared_.stale_objects.load(), 1u);
  queue_->Stop();
  EXPECT_EQ(pool_->used_blocks(), 0u);
  const auto other = MakeObject("b", 16 * kMiB);
  EXPECT_TRUE(absl::IsCancelled(ReadScattered(*other, 0, 4096).status));
}

TEST_F(ObjectTest, ReadsTellWhereTheirBytesCameFrom) {
  auto object = MakeObject("a", 16 * kMiB);
  EXPECT_EQ(Read(*object, 0, kBlockSize).origin, Origin::kStore);
  store_->SetFrom(store::BytesFrom::kWorker);
  EXPECT_EQ(Read(*object, kMiB, kBlockSize).origin, Origin::kRemote);
  Fill(*object, 2 * kMiB, kMiB);
  EXPECT_EQ(Read(*object, 2 * kMiB, kBlockSize).origin, Origin::kLocal);
  // Partly here, partly from the worker: as far as the farthest.
  EXPECT_EQ(Read(*object, 3 * kMiB - kBlockSize, 2 * kBlockSize).origin, Origin::kRemote);
  object.reset();
  Make(/*quota=*/0, /*memory=*/64 * kMiB, 4);
  store_->SetFrom(store::BytesFrom::kWorker);
  store_->SetRangeUnit(4096);
  const auto uncached = MakeObject("b", 16 * kMiB);
  EXPECT_EQ(ReadScattered(*uncached, 0, 4096).origin, Origin::kRemote);
  store_->SetFrom(store::BytesFrom::kStore);
  EXPECT_EQ(ReadScattered(*uncached, 0, 4096).origin, Origin::kStore);
}

TEST_F(ObjectTest, TheWorkersFileIsLookedForAtOpensAndNotTooOften) {
  Make(/*quota=*/0, /*memory=*/64 * kMiB, 4);
  shared_.clock = &clock_;
  const auto object = MakeObject("a", 4 * kMiB);
  EXPECT_EQ(worker_.asked(), 1u);
  worker_.Put(object->key(), PatternBytes("a", "v1", 0, 4 * kMiB));
  object->LookForComplete();
  EXPECT_FALSE(object->Complete());  // It was asked a moment ago.
  EXPECT_EQ(Read(*object, 0, kMiB).origin, Origin::kStore);
  EXPECT_EQ(worker_.asked(), 1u);
  clock_.Advance(Object::kLookAgain);
  object->LookForComplete();
  EXPECT_EQ(worker_.asked(), 2u);
  EXPECT_TRUE(object->Complete());
  const uint64_t sent = store_->bytes_sent();
  const Answer answer = Read(*object, kMiB, kMiB);
  EXPECT_EQ(answer.origin, Origin::kShortCircuit);
  EXPECT_TRUE(Same(answer.bytes, PatternBytes("a", "v1", kMiB, kMiB)));
  EXPECT_EQ(store_->bytes_sent(), sent);
  clock_.Advance(Object::kLookAgain);
  object->LookForComplete();
  EXPECT_EQ(worker_.asked(), 2u);  // It has what it wants.
  // The lease ends with its connection, and is taken again at an open.
  worker_.Disconnect();
  EXPECT_TRUE(object->Evicted());
  EXPECT_TRUE(Same(Read(*object, 0, kMiB).bytes, PatternBytes("a", "v1", 0, kMiB)));
  EXPECT_EQ(worker_.leases(), 0u);
  object->LookForComplete();
  EXPECT_FALSE(object->Evicted());
  EXPECT_EQ(worker_.leases(), 1u);
}

TEST_F(ObjectTest, MemoryStaysWithinItsBudgetUnderManyReaders) {
  Make(/*quota=*/kMiB, /*memory=*/4 * kMiB, 8);
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([this, t] {
      std::mt19937_64 random(t);
      const std::string path = absl::StrCat("object", t);
      const auto object = MakeObject(path, 64 * kMiB);
      for (int i = 0; i < 20; ++i) {
        const uint64_t offset = random() % (63 * kMiB);
        const Answer answer = Read(*object, offset, kMiB);
        ASSERT_TRUE(answer.status.ok()) << answer.status;
        ASSERT_TRUE(Same(answer.bytes, PatternBytes(path, "v1", offset, kMiB)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(pool_->used_blocks_peak(), pool_->budget_blocks() + BufferPool::kUrgentBlocks);
}

TEST_F(ObjectTest, StoreErrorReachesTheReaderAndAReadASecondLaterTriesAgain) {
  shared_.clock = &clock_;
  const auto object = MakeObject("a", 8 * kMiB);
  store_->FailNext(1, absl::UnavailableError("503 after 4 tries"), /*bytes=*/kBlockSize + 10);
  const Answer answer = Read(*object, 0, kMiB);
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(base::ErrnoOf(answer.status), EIO);
  // The kernel repeats a failed read at once: that must not wait for the store again.
  EXPECT_EQ(Read(*object, 0, kMiB).status, answer.status);
  EXPECT_EQ(store_->requests().size(), 1u);
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(Same(Read(*object, 0, kMiB).bytes, PatternBytes("a", "v1", 0, kMiB)));
  // The block that had arrived before the error was kept.
  EXPECT_EQ(store_->requests()[1].offset, kBlockSize);
  EXPECT_EQ(shared_.store_errors.load(), 1u);
}

TEST_F(ObjectTest, ChangedObjectGivesStaleAndNeverMixedBytes) {
  const auto object = MakeObject("a", 8 * kMiB);
  EXPECT_TRUE(Read(*object, 0, kMiB).status.ok());
  store_->SetVersion("a", "v2");
  const Answer changed = Read(*object, 4 * kMiB, kMiB);
  EXPECT_EQ(base::ErrnoOf(changed.status), ESTALE);
  const Answer across = Read(*object, kMiB / 2, kMiB);
  EXPECT_EQ(base::ErrnoOf(across.status), ESTALE);
  // What is here of the old version stays readable to whoever has it open.
  EXPECT_TRUE(Same(Read(*object, 0, kMiB).bytes, PatternBytes("a", "v1", 0, kMiB)));
}

TEST_F(ObjectTest, CancelledPrefetchStopsButNotForAReaderThatWaits) {
  Make(64 * kMiB, 64 * kMiB, 2);
  store_->Hold();
  const auto object = MakeObject("a", 32 * kMiB);
  object->Prefetch(0, 32 * kMiB, Priority::kReadAhead);
  store_->AwaitGets(1);
  Waiter waiter;
  object->Read(20 * kMiB, 4096, waiter.Callback());
  object->CancelPrefetch();
  store_->Open();
  EXPECT_TRUE(Same(waiter.Wait().bytes, PatternBytes("a", "v1", 20 * kMiB, 4096)));
  queue_->Stop();
  // The one in progress, and the flight of 4 MiB that the reader waited for.
  EXPECT_LE(store_->requests().size(), 2u);
}

TEST_F(ObjectTest, ABlockIsHeldAsLongAsSomebodyWantsIt) {
  const uint64_t size = 3 * kMiB + 100;
  auto object = MakeObject("a", size);
  for (const uint64_t index : {uint64_t{0}, uint64_t{24}, uint64_t{24}}) {  // Store, store, cache.
    BlockWaiter waiter;
    object->ReadBlock({.index = index}, waiter.Callback());
    const absl::StatusOr<BlockRef> block = waiter.Wait();
    ASSERT_TRUE(block.ok()) << block.status();
    EXPECT_TRUE(Same(std::string((*block)->bytes()),
                     PatternBytes("a", "v1", index * kBlockSize,
                                  std::min(kBlockSize, size - index * kBlockSize))));
  }
  EXPECT_EQ(store_->requests().size(), 2u);
}

TEST_F(ObjectTest, ABlockThatNobodyFetchesIsNotFetched) {
  const auto object = MakeObject("a", 8 * kMiB);
  BlockWaiter nothing;
  object->ReadBlock({.index = 3, .fetch = false}, nothing.Callback());
  EXPECT_TRUE(absl::IsNotFound(nothing.Wait().status()));
  store_->Hold();
  object->Prefetch(0, kMiB, Priority::kBulk);
  BlockWaiter coming;
  object->ReadBlock({.index = 3, .priority = Priority::kBulk, .fetch = false}, coming.Callback());
  store_->Open();
  EXPECT_TRUE(coming.Wait().ok()) << coming.Wait().status();
  EXPECT_EQ(store_->requests().size(), 1u);
}

TEST_F(ObjectTest, WhatItsOnlyReaderGaveUpIsAbandonedAndNothingElse) {
  Make(64 * kMiB, 64 * kMiB, 2);
  store_->Hold();
  const auto object = MakeObject("a", 16 * kMiB);
  const auto given_up = std::make_shared<std::atomic<bool>>(false);
  BlockWaiter mine;
  BlockWaiter others;
  object->ReadBlock({.index = 0, .given_up = given_up}, mine.Callback());
  store_->AwaitGets(1);
  object->Prefetch(4 * kMiB, 8 * kMiB, Priority::kBulk, nullptr, given_up);
  object->ReadBlock({.index = 40}, others.Callback());
  *given_up = true;
  object->CancelPrefetch();
  store_->Open();
  EXPECT_TRUE(absl::IsCancelled(mine.Wait().status())) << mine.Wait().status();
  EXPECT_TRUE(others.Wait().ok()) << others.Wait().status();
  queue_->Stop();
  for (const store::GetRequest& request : store_->requests()) {
    EXPECT_LT(request.offset, 8 * kMiB);  // The flight behind, which nobody wants.
  }
}

TEST_F(ObjectTest, DemandOvertakesBulkLoads) {
  Make(64 * kMiB, 64 * kMiB, 2);
  store_->Hold();
  const auto bulk = MakeObject("bulk", 32 * kMiB);
  bulk->Prefetch(0, 32 * kMiB, Priority::kBulk);
  store_->AwaitGets(1);  // One of the two threads; the other is kept for demand.
  const auto object = MakeObject("a", 8 * kMiB);
  Waiter waiter;
  object->Read(0, kMiB, waiter.Callback());
  store_->AwaitGets(2);
  EXPECT_EQ(store_->requests()[1].path, "a");
  store_->Open();
  EXPECT_TRUE(waiter.Wait().status.ok());
}

TEST_F(ObjectTest, CompleteObjectGivesItsFile) {
  const auto object = MakeObject("a", 2 * kMiB + 5);
  Fill(*object, 0, 2 * kMiB + 5);
  queue_->Stop();  // The last block's way into the cache ends with its fetch.
  ASSERT_TRUE(object->Complete());
  const auto data = object->OpenComplete();
  ASSERT_TRUE(data.ok()) << data.status();
  std::string bytes(2 * kMiB + 5, '\0');
  ASSERT_EQ(pread((*data)->fd(), bytes.data(), bytes.size(), 0),
            static_cast<ssize_t>(bytes.size()));
  EXPECT_TRUE(Same(bytes, PatternBytes("a", "v1", 0, bytes.size())));
}

TEST_F(ObjectTest, RandomReadsWithEvictionsAndErrorsNeverGiveWrongBytes) {
  Make(/*quota=*/12 * kMiB, /*memory=*/16 * kMiB, 6);
  std::vector<std::shared_ptr<Object>> objects;
  for (int i = 0; i < 4; ++i) {
    objects.push_back(MakeObject(absl::StrCat("o", i), 4 * kMiB + static_cast<uint64_t>(i) * 999));
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 150; ++i) {
        const auto& object = objects[random() % objects.size()];
        const uint64_t offset = random() % object->key().size;
        const uint64_t size = 1 + random() % kMiB;
        switch (random() % 16) {
          case 0:
            cache_->Evict("pattern://", object->key().path);
            break;
          case 1:
            store_->FailNext(1, absl::UnavailableError("injected"), random() % kMiB);
            break;
          case 2:
            object->Prefetch(offset, size * 4, Priority::kReadAhead);
            break;
          case 3:
            object->CancelPrefetch();
            break;
          default:
            break;
        }
        const Answer answer = Read(*object, offset, size);
        if (!answer.status.ok()) {
          // Only what was injected, or a prefetch cancelled in the instant before this read.
          ASSERT_TRUE(absl::IsUnavailable(answer.status) || absl::IsCancelled(answer.status))
              << answer.status;
          continue;
        }
        ASSERT_TRUE(Same(answer.bytes, PatternBytes(object->key().path, "v1", offset,
                                                    std::min(size, object->key().size - offset))))
            << object->key().path << " from " << offset << " of " << object->key().size;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace millrace::fetch
