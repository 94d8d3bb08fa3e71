// Random opens, reads, releases and evictions of objects whose bytes come from the store, from a
// cache, or from the files of a worker on this node that comes, goes and evicts what nobody
// borrows. Whatever happens: bytes are true, no read fails, and no lease outlives its holders. Each
// case prints its seed; MILLRACE_SEED repeats one.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cache/fetch/object.h"
#include "cache/pool/short_circuit.h"
#include "cache/tier/no_cache.h"
#include "common/base/units.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"
#include "test/support/fake_pool.h"
#include "test/support/faulty_file_io.h"
#include "test/support/pattern_store.h"
#include "test/support/sim_clock.h"

namespace millrace::pool {
namespace {

using base::kMiB;
using fetch::Object;

constexpr char kSource[] = "pattern://";
constexpr size_t kPaths = 4;

unsigned FirstSeed() {
  unsigned seed = 0;
  const char* given = std::getenv("MILLRACE_SEED");
  if (given == nullptr || !absl::SimpleAtoi(given, &seed)) seed = std::random_device()();
  std::printf("first seed %u\n", seed);
  return seed;
}

class Model {
 public:
  Model(unsigned seed, bool with_tier) : seed_(seed) {
    for (size_t i = 0; i < kPaths; ++i) {
      contents_[i] = test::PatternBytes(KeyOf(i).path, "v1", 0, KeyOf(i).size);
    }
    std::unique_ptr<tier::TieredCache> local = tier::NewNoCache();
    if (with_tier) {
      tier::CacheOptions options;
      // Room for two of the four.
      options.tiers.push_back({tier::Medium::kSsd, directory_.path() + "/tier", 3 * kMiB});
      options.sources_in_use = {kSource};
      auto opened = tier::TieredCache::Open(options, posix_.get());
      EXPECT_TRUE(opened.ok()) << opened.status();
      local = *std::move(opened);
    }
    cache_ =
        std::make_unique<ShortCircuitCache>(std::move(local), &worker_, 100, &file_io_, &clock_);
    shared_.cache = cache_.get();
    shared_.pool = &buffers_;
    shared_.queue = &queue_;
    shared_.memory = &memory_;
    shared_.clock = &clock_;
    shared_.keeps_read = with_tier;
    store_->SetRangeUnit(4096);
    store_->SetUsesRoom(seed % 2 == 0);
  }

  void Run(int threads, int steps) {
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t) {
      running.emplace_back([this, t, steps] {
        std::mt19937_64 random(seed_ * 1000 + static_cast<unsigned>(t));
        Reader reader(this, &random);
        for (int i = 0; i < steps && !::testing::Test::HasFatalFailure(); ++i) reader.Step();
      });
    }
    for (std::thread& thread : running) thread.join();
    queue_.Stop();
    EXPECT_EQ(worker_.leases(), 0u);
    EXPECT_LE(buffers_.used_blocks_peak(),
              buffers_.budget_blocks() + fetch::BufferPool::kUrgentBlocks);
    EXPECT_TRUE(cache_->Close().ok());
  }

 private:
  static tier::FileKey KeyOf(size_t i) {
    return {kSource, absl::StrCat("o", i), "v1", kMiB + 1 + i * 77'777};
  }

  // One thread: its open objects, and descriptors as the kernel holds them.
  class Reader {
   public:
    Reader(Model* model, std::mt19937_64* random) : model_(model), random_(*random) {}

    void Step() {
      const size_t i = random_() % kPaths;
      switch (random_() % 14) {
        case 0:
          model_->worker_.Put(KeyOf(i), model_->contents_[i]);
          break;
        case 1:
          // The fake refuses it while anybody has a lease, and a holder's bytes are checked.
          if (random_() % 8 == 0) {
            model_->worker_.Unlink(KeyOf(i));
          } else {
            model_->worker_.Evict(KeyOf(i));
          }
          break;
        case 2:
          model_->worker_.Disconnect();
          break;
        case 3:
          model_->worker_.SetAway(random_() % 2 == 0);
          break;
        case 4:
          model_->cache_->Evict(kSource, KeyOf(i).path);
          break;
        case 5:
          model_->clock_.Advance(absl::Milliseconds(random_() % 40'000));
          break;
        case 6:
          if (random_() % 4 == 0)
            model_->file_io_.Set({.read_fails_from = 0, .read_fails_count = 1});
          break;
        case 7:
          objects_[i].reset();
          files_[i].reset();
          break;
        default:
          break;
      }
      if (objects_[i] == nullptr) {
        objects_[i] = std::make_shared<Object>(KeyOf(i), model_->store_, &model_->shared_);
      }
      Object& object = *objects_[i];
      if (random_() % 4 == 0) object.LookForComplete();
      if (random_() % 4 == 0) {
        auto opened = object.OpenComplete();
        if (opened.ok()) files_[i] = *std::move(opened);
      }
      if (random_() % 8 == 0) object.Prefetch(random_() % kMiB, kMiB, fetch::Priority::kReadAhead);
      const uint64_t offset = random_() % object.key().size;
      const uint64_t size = std::min(1 + random_() % (kMiB / 2), object.key().size - offset);
      Check(object, model_->contents_[i].substr(offset, size), offset, random_() % 2 == 0);
      if (files_[i] != nullptr) {
        std::string bytes(size, '\0');
        ASSERT_EQ(pread(files_[i]->fd(), bytes.data(), size, static_cast<off_t>(offset)),
                  static_cast<ssize_t>(size));
        ASSERT_TRUE(bytes == model_->contents_[i].substr(offset, size));
      }
    }

   private:
    void Check(Object& object, const std::string& want, uint64_t offset, bool scattered) {
      base::Mutex mutex;
      base::CondVar changed;
      bool done = false;
      absl::Status status;
      std::string bytes;
      const auto answer = [&](absl::StatusOr<fetch::ReadResult> result) {
        base::MutexLock lock(&mutex);
        status = result.status();
        if (result.ok()) {
          for (const auto& piece : result->pieces) bytes.append(piece.data(), piece.size());
        }
        done = true;
        changed.NotifyAll();
      };
      if (scattered) {
        object.ReadScattered(offset, want.size(), answer);
      } else {
        object.Read(offset, want.size(), answer);
      }
      base::MutexLock lock(&mutex);
      while (!done) changed.Wait(&mutex);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_TRUE(bytes == want) << object.key().path << " from " << offset << ", " << want.size()
                                 << " bytes, got " << bytes.size();
    }

    Model* const model_;
    std::mt19937_64& random_;
    std::shared_ptr<Object> objects_[kPaths];
    std::shared_ptr<const tier::OpenData> files_[kPaths];
  };

  const unsigned seed_;
  std::array<std::string, kPaths> contents_;
  testing::TemporaryDirectory directory_;
  std::unique_ptr<io::FileIo> posix_ = io::NewPosixFileIo(2);
  testing::FaultyFileIo file_io_{posix_.get()};
  test::SimClock clock_;
  test::FakePool worker_;
  std::shared_ptr<test::PatternStore> store_ = std::make_shared<test::PatternStore>();
  std::unique_ptr<ShortCircuitCache> cache_;
  fetch::BufferPool buffers_{16 * kMiB};
  fetch::MemoryCache memory_{&buffers_};
  fetch::FetchQueue queue_{4, &buffers_, [this] { return memory_.DropOldest(); }};
  fetch::Shared shared_;
};

TEST(ShortCircuitModelTest, WithoutACache) {
  const unsigned first = FirstSeed();
  for (unsigned seed = first; seed < first + 2; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Model(seed, /*with_tier=*/false).Run(/*threads=*/3, /*steps=*/120);
  }
}

TEST(ShortCircuitModelTest, BesideACacheThatIsTooSmall) {
  const unsigned first = FirstSeed();
  for (unsigned seed = first; seed < first + 2; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Model(seed, /*with_tier=*/true).Run(/*threads=*/3, /*steps=*/120);
  }
}

}  // namespace
}  // namespace millrace::pool
