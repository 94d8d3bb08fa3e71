#include "fuse/vfs/call_queue.h"

#include <atomic>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::vfs {
namespace {

TEST(CallQueueTest, OneKindNeverRunsMoreThanItsLimit) {
  std::atomic<int> now = 0;
  std::atomic<int> most = 0;
  std::atomic<int> runs = 0;
  {
    CallQueue queue(8, {2, 8});
    for (int i = 0; i < 1000; ++i) {
      queue.Submit(0, [&] {
        const int running = ++now;
        int seen = most;
        while (seen < running && !most.compare_exchange_weak(seen, running)) {
        }
        --now;
        ++runs;
      });
      queue.Submit(1, [&] { ++runs; });
    }
  }
  EXPECT_EQ(runs, 2000);
  EXPECT_LE(most, 2);
}

TEST(CallQueueTest, AKindAtItsLimitLeavesRoomForOthers) {
  base::Mutex mutex;
  base::CondVar changed;
  bool other_ran = false;
  CallQueue queue(2, {1, 1});
  for (int i = 0; i < 10; ++i) {
    queue.Submit(0, [&] {
      const base::MutexLock lock(&mutex);
      while (!other_ran) changed.Wait(&mutex);
    });
  }
  queue.Submit(1, [&] {
    const base::MutexLock lock(&mutex);
    other_ran = true;
    changed.NotifyAll();
  });
  queue.Stop();
  EXPECT_TRUE(other_ran);
}

TEST(CallQueueTest, StopRunsWhatTasksSubmit) {
  std::atomic<int> runs = 0;
  CallQueue queue(3, {1});
  queue.Submit(0, [&] {
    queue.Submit(0, [&] {
      queue.Submit(0, [&] { ++runs; });
      ++runs;
    });
    ++runs;
  });
  queue.Stop();
  queue.Stop();
  EXPECT_EQ(runs, 3);
}

}  // namespace
}  // namespace millrace::vfs
