// Threads that start a measurement together.
#pragma once

#include <cstdint>
#include <latch>
#include <thread>
#include <vector>

#include "cli/bench/report.h"

namespace millrace::bench {

// Runs body(0) … body(threads - 1), each on a thread of its own, all released at the same moment
// once they exist. Returns the nanoseconds from then to the end of the last.
template <typename Body>
uint64_t RunTogether(uint64_t threads, const Body& body) {
  std::latch ready(static_cast<std::ptrdiff_t>(threads));
  std::latch go(1);
  std::vector<std::thread> running;
  running.reserve(threads);
  for (uint64_t i = 0; i < threads; ++i) {
    running.emplace_back([&, i] {
      ready.count_down();
      go.wait();
      body(i);
    });
  }
  ready.wait();
  const uint64_t start = NowNanos();
  go.count_down();
  for (std::thread& thread : running) thread.join();
  return NowNanos() - start;
}

}  // namespace millrace::bench
