// SIGKILL at any instant: a child fills and empties a cache until it is killed; whatever the next
// start finds must be the truth. CacheCrashTest.TheTruthSurvives prints its seed.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/units.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"

namespace millrace::tier {
namespace {

using ::millrace::testing::Compare;
using ::millrace::testing::KeyOf;
using ::millrace::testing::PutBlocks;
using ::millrace::testing::TemporaryDirectory;

constexpr int kRounds = 60;
constexpr unsigned kFiles = 60;

FileKey RandomKey(std::mt19937& random) {
  const unsigned number = random() % kFiles;
  const uint64_t size = number % 3 == 0 ? number * 20'000 + 1 : 1 + number * 1500;
  return KeyOf(absl::StrCat("f", number), size, absl::StrCat("v", random() % 2));
}

CacheOptions Options(const std::string& path) {
  CacheOptions options;
  options.policy = EvictionPolicy::kSieve;
  options.tiers = {{Medium::kMem, path + "/mem", 3 * base::kMiB, 0.9, 0.5},
                   {Medium::kSsd, path + "/ssd", 8 * base::kMiB, 0.9, 0.5}};
  return options;
}

// Never returns. Threads are allowed: the child is forked from a process with one.
[[noreturn]] void WorkUntilKilled(const std::string& path, unsigned seed, int ready_fd) {
  const auto file_io = io::NewPosixFileIo(1);
  auto cache = TieredCache::Open(Options(path), file_io.get());
  if (!cache.ok()) _exit(1);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(seed * 3 + t);
      for (int step = 0;; ++step) {
        const FileKey key = RandomKey(random);
        const auto file = (*cache)->FindOrAdmit(key);
        if (file != nullptr) {
          const uint64_t blocks = (key.size + kBlockSize - 1) / kBlockSize;
          PutBlocks(*file, random() % blocks, 1 + random() % 3).IgnoreError();
        }
        if (random() % 50 == 0) (*cache)->Evict(key.source, key.path);
        if (t == 0 && step == 20 && write(ready_fd, "r", 1) != 1) _exit(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  _exit(0);
}

TEST(CacheCrashTest, TheTruthSurvives) {
  const unsigned first_seed = std::random_device()();
  std::printf("first seed %u\n", first_seed);
  TemporaryDirectory directory;
  uint64_t blocks_seen = 0;
  for (int round = 0; round < kRounds; ++round) {
    const unsigned seed = first_seed + static_cast<unsigned>(round);
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) WorkUntilKilled(directory.path(), seed, ready[1]);
    close(ready[1]);
    char byte;
    ASSERT_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    std::mt19937 random(seed);
    // tidy: allow-sleep the instant of the kill is what is random here
    absl::SleepFor(absl::Microseconds(random() % 30'000));
    ASSERT_EQ(kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));

    const auto file_io = io::NewPosixFileIo(1);
    CacheOptions options = Options(directory.path());
    // Sometimes as after a power cut: everything must be checked, and all of it is right.
    if (round % 4 == 3) options.boot_id = absl::StrCat("boot ", round);
    auto cache = TieredCache::Open(options, file_io.get());
    ASSERT_TRUE(cache.ok()) << cache.status();
    uint64_t used = 0;
    for (unsigned number = 0; number < kFiles; ++number) {
      for (const char* version : {"v0", "v1"}) {
        const uint64_t size = number % 3 == 0 ? number * 20'000 + 1 : 1 + number * 1500;
        const auto file = (*cache)->Find(KeyOf(absl::StrCat("f", number), size, version));
        if (file == nullptr) continue;
        ASSERT_EQ(Compare(*file), "");
        for (uint64_t index = 0; index * kBlockSize < size; ++index) {
          if (!file->HasBlock(index)) continue;
          ++blocks_seen;
          used += std::min(kBlockSize, size - index * kBlockSize);
        }
      }
    }
    uint64_t counted = 0;
    for (const TierStats& stats : (*cache)->Stats()) counted += stats.used_bytes;
    EXPECT_EQ(counted, used);
  }
  EXPECT_GT(blocks_seen, 100u);
}

}  // namespace
}  // namespace millrace::tier
