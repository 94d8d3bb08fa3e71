// Random operations on a cache against a reference in memory. The reference knows what must hold
// whatever the cache decides: bytes are true, versions never mix, quotas hold, what a start finds
// is a subset of what was there, and counters agree with what can be seen. Each case prints its
// seed; MILLRACE_SEED repeats one.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/units.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"
#include "test/support/faulty_file_io.h"
#include "test/support/manual_clock.h"

namespace millrace::tier {
namespace {

using ::millrace::testing::Compare;
using ::millrace::testing::ContentOf;
using ::millrace::testing::FaultyFileIo;
using ::millrace::testing::KeyOf;
using ::millrace::testing::ManualClock;
using ::millrace::testing::PutBlocks;
using ::millrace::testing::ReadAll;
using ::millrace::testing::TemporaryDirectory;

constexpr char kSources[][16] = {"s3://used", "s3://idle"};

unsigned FirstSeed() {
  unsigned seed = 0;
  const char* given = std::getenv("MILLRACE_SEED");
  if (given == nullptr || !absl::SimpleAtoi(given, &seed)) seed = std::random_device()();
  std::printf("first seed %u\n", seed);
  return seed;
}

// The counters come back to nothing once everything is evicted. A demotion under way is counted
// until it finds its file gone; a counter that leaks ends in the test's time-out.
void AwaitNothing(TieredCache& cache) {
  for (;;) {
    uint64_t left = 0;
    for (const TierStats& stats : cache.Stats()) {
      left += stats.used_bytes + stats.files + stats.files_complete;
    }
    if (left == 0) return;
    std::this_thread::yield();
  }
}

class Model {
 public:
  Model(unsigned seed, bool faults)
      : random_(seed), faults_(faults), posix_(io::NewPosixFileIo(1)), file_io_(posix_.get()) {
    options_.policy = seed % 2 == 0 ? EvictionPolicy::kEpoch : EvictionPolicy::kSieve;
    options_.tiers = {{Medium::kMem, directory_.path() + "/mem", 2 * base::kMiB, 0.9, 0.5},
                      {Medium::kSsd, directory_.path() + "/ssd", 5 * base::kMiB, 0.9, 0.5}};
    options_.sources_in_use = {kSources[0]};
    options_.boot_id = "boot 0";
    options_.open_files_max = 8;
    options_.clock = &clock_;
    Open();
  }

  void Run(int steps) {
    for (int step = 0; step < steps && !::testing::Test::HasFailure(); ++step) Step();
    file_io_.Heal();
    held_.clear();
    CheckAll();
  }

 private:
  void Open() {
    cache_.reset();
    auto cache = TieredCache::Open(options_, &file_io_);
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
  }

  FileKey RandomKey() {
    const unsigned number = random_() % 40;
    // The version decides the size.
    const std::string version = absl::StrCat("v", random_() % 2);
    uint64_t size = number * number * 700 + (version == "v1" ? 1 : 0);
    if (number % 10 == 0) size = 0;
    return KeyOf(absl::StrCat("d", number % 5, "/f", number), size, version,
                 kSources[number % 4 == 0 ? 1 : 0]);
  }

  static std::string NameOf(const FileKey& key) {
    return absl::StrCat(key.source, " ", key.path, " ", key.version);
  }

  void Step() {
    const FileKey key = RandomKey();
    const unsigned action = random_() % 100;
    if (action < 50) {
      Put(key);
    } else if (action < 75) {
      Read(key);
    } else if (action < 85) {
      Hold(key);
    } else if (action < 90) {
      if (!held_.empty()) held_.erase(held_.begin() + static_cast<long>(random_() % held_.size()));
    } else if (action < 93) {
      cache_->Evict(key.source, random_() % 3 == 0 ? "d1" : key.path);
    } else if (action < 96) {
      if (faults_) Fault();
    } else if (action < 98) {
      Restart();
    } else {
      CheckQuota();
    }
  }

  void Put(const FileKey& key) {
    const auto file = cache_->FindOrAdmit(key);
    if (file == nullptr) return;
    ASSERT_EQ(file->key().version, key.version);
    const uint64_t blocks = (key.size + kBlockSize - 1) / kBlockSize;
    if (blocks == 0) {
      EXPECT_TRUE(file->complete());
      return;
    }
    const uint64_t first = random_() % blocks;
    const uint64_t count = 1 + random_() % 4;
    for (uint64_t i = 0; i < count; ++i) ever_put_[NameOf(key)].insert(first + i);
    const bool put = PutBlocks(*file, first, count).ok();
    if (!faults_ && put && !file->evicted()) {
      EXPECT_TRUE(file->HasBlock(first));
    }
    if (file->complete()) {
      EXPECT_TRUE(file->Has(0, key.size));
    }
  }

  void Read(const FileKey& key) {
    const auto file = cache_->Find(key);
    if (file != nullptr) ReadFrom(*file);
    if (!held_.empty()) ReadFrom(*held_[random_() % held_.size()]);
  }

  void ReadFrom(CachedFile& file) {
    const FileKey& key = file.key();
    if (key.size == 0) return;
    const uint64_t offset = random_() % key.size;
    const uint64_t length = 1 + random_() % std::min<uint64_t>(key.size - offset, 300'000);
    if (!file.Has(offset, length)) return;
    const std::string truth = ContentOf(key.path, key.version, offset, length);
    std::string buffer(length, '\0');
    const auto now = file.ReadNow(offset, absl::MakeSpan(buffer.data(), buffer.size()));
    if (now.ok() && now->has_value()) {
      EXPECT_EQ(**now, length);
      EXPECT_TRUE(buffer == truth) << key.path << " at " << offset;
      return;
    }
    const absl::StatusOr<std::string> got = ReadAll(file, offset, length);
    if (got.ok()) {
      EXPECT_TRUE(*got == truth) << key.path << " at " << offset;
    }
    if (!got.ok() && !faults_) {
      EXPECT_TRUE(file.evicted()) << got.status();
    }
  }

  void Hold(const FileKey& key) {
    auto file = cache_->Find(key);
    if (file == nullptr) return;
    if (file->complete()) {
      EXPECT_TRUE(file->Open().ok() || faults_ || file->evicted());
    }
    if (held_.size() < 10) held_.push_back(std::move(file));
  }

  void Fault() {
    FaultyFileIo::Plan plan;
    switch (random_() % 5) {
      case 0:
        plan.write_fails_from = random_() % 5;
        plan.write_fails_count = 1 + random_() % 12;
        break;
      case 1:
        plan.read_fails_from = random_() % 5;
        plan.read_fails_count = 1 + random_() % 3;
        break;
      case 2:
        plan.space_bytes = random_() % 1'000'000;
        break;
      case 3:
        plan.nothing_in_memory = true;
        break;
      default:
        break;
    }
    file_io_.Set(plan);
    clock_.Advance(absl::Seconds(random_() % 40));
  }

  // What is there: present blocks by file.
  std::map<std::string, std::set<uint64_t>> Present() {
    std::map<std::string, std::set<uint64_t>> present;
    for (unsigned number = 0; number < 40; ++number) {
      for (const char* version : {"v0", "v1"}) {
        uint64_t size = number * number * 700 + (version[1] == '1' ? 1 : 0);
        if (number % 10 == 0) size = 0;
        const auto file = cache_->Find(KeyOf(absl::StrCat("d", number % 5, "/f", number), size,
                                             version, kSources[number % 4 == 0 ? 1 : 0]));
        if (file == nullptr) continue;
        std::set<uint64_t>& blocks = present[NameOf(file->key())];
        for (uint64_t index = 0; index * kBlockSize < size; ++index) {
          if (file->HasBlock(index)) blocks.insert(index);
        }
      }
    }
    return present;
  }

  void Restart() {
    held_.clear();
    file_io_.Heal();
    const auto before = Present();
    const bool clean = random_() % 2 == 0;
    if (clean) {
      EXPECT_TRUE(cache_->Close().ok() || faults_);
    }
    if (random_() % 2 == 0) options_.boot_id = absl::StrCat("boot ", ++boots_);
    Open();
    // Maintenance may have moved or evicted files in between, but nothing comes from nowhere. (On a
    // failing disk a demotion may bring back blocks that a read dropped after they were copied.)
    for (const auto& [name, blocks] : Present()) {
      const auto& known = faults_ ? ever_put_ : before;
      const auto found = known.find(name);
      if (found == known.end()) {
        EXPECT_TRUE(faults_ && blocks.empty()) << name;
        continue;
      }
      EXPECT_TRUE(
          std::includes(found->second.begin(), found->second.end(), blocks.begin(), blocks.end()))
          << name;
    }
  }

  void CheckQuota() {
    for (const TierStats& stats : cache_->Stats()) {
      EXPECT_LE(stats.used_bytes, stats.capacity_bytes);
      EXPECT_LE(stats.files_complete, stats.files);
    }
  }

  void CheckAll() {
    CheckQuota();
    for (unsigned number = 0; number < 40; ++number) {
      for (const char* version : {"v0", "v1"}) {
        uint64_t size = number * number * 700 + (version[1] == '1' ? 1 : 0);
        if (number % 10 == 0) size = 0;
        const auto file = cache_->Find(KeyOf(absl::StrCat("d", number % 5, "/f", number), size,
                                             version, kSources[number % 4 == 0 ? 1 : 0]));
        if (file != nullptr) {
          EXPECT_EQ(Compare(*file), "");
        }
      }
    }
    // With everything evicted the counters come back to nothing.
    for (const char* source : kSources) cache_->Evict(source, "");
    AwaitNothing(*cache_);
    clock_.Advance(absl::Seconds(61));  // A tier set aside comes back.
    EXPECT_EQ(cache_->RoomBytes(), 7 * base::kMiB);
  }

  std::mt19937 random_;
  const bool faults_;
  TemporaryDirectory directory_;
  ManualClock clock_;
  std::unique_ptr<io::FileIo> posix_;
  FaultyFileIo file_io_;
  CacheOptions options_;
  int boots_ = 0;
  std::map<std::string, std::set<uint64_t>> ever_put_;  // Blocks by file.
  std::unique_ptr<TieredCache> cache_;
  std::vector<std::shared_ptr<CachedFile>> held_;  // Ends before the cache.
};

TEST(TieredCacheModelTest, AgreesOnAHealthyDisk) {
  const unsigned seed = FirstSeed();
  for (unsigned i = 0; i < 8 && !HasFailure(); ++i) {
    SCOPED_TRACE(absl::StrCat("seed ", seed + i));
    Model(seed + i, false).Run(400);
  }
}

TEST(TieredCacheModelTest, AgreesOnAFailingDisk) {
  const unsigned seed = FirstSeed();
  for (unsigned i = 0; i < 8 && !HasFailure(); ++i) {
    SCOPED_TRACE(absl::StrCat("seed ", seed + i));
    Model(seed + i, true).Run(400);
  }
}

// Many threads on few files: what each of them sees must be true.
TEST(TieredCacheModelTest, ManyThreadsSeeTheTruth) {
  const unsigned seed = FirstSeed();
  for (const EvictionPolicy policy : {EvictionPolicy::kEpoch, EvictionPolicy::kSieve}) {
    TemporaryDirectory directory;
    const auto file_io = io::NewPosixFileIo(2);
    CacheOptions options;
    options.policy = policy;
    options.tiers = {{Medium::kMem, directory.path() + "/mem", 2 * base::kMiB, 0.9, 0.5},
                     {Medium::kSsd, directory.path() + "/ssd", 4 * base::kMiB, 0.9, 0.5}};
    options.sources_in_use = {kSources[0]};
    options.open_files_max = 4;
    auto cache = TieredCache::Open(options, file_io.get());
    ASSERT_TRUE(cache.ok()) << cache.status();
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937 random(seed + t);
        for (int step = 0; step < 200; ++step) {
          const unsigned number = random() % 20;
          const FileKey key = KeyOf(absl::StrCat("f", number), 1 + number * number * 1500,
                                    absl::StrCat("v", random() % 2), kSources[number % 2]);
          const auto file = (*cache)->FindOrAdmit(key);
          if (file == nullptr) continue;
          const uint64_t blocks = (key.size + kBlockSize - 1) / kBlockSize;
          PutBlocks(*file, random() % blocks, 1 + random() % 4).IgnoreError();
          EXPECT_EQ(Compare(*file), "");
          if (file->complete()) file->Open().IgnoreError();
          if (random() % 20 == 0) (*cache)->Evict(key.source, key.path);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const char* source : kSources) (*cache)->Evict(source, "");
    AwaitNothing(**cache);
    EXPECT_TRUE((*cache)->Close().ok());
  }
}

}  // namespace
}  // namespace millrace::tier
