// Cost of the order of eviction: a use, and replacing the next victim.
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "cache/tier/eviction.h"

namespace millrace::tier {
namespace {

bool Any(EvictionEntry&) { return true; }

void BM_MarkUsed(benchmark::State& state) {
  std::vector<EvictionEntry> entries(100'000);
  size_t index = 0;
  while (state.KeepRunning()) {
    entries[index].MarkUsed();
    index = (index + 7919) % entries.size();
  }
}
BENCHMARK(BM_MarkUsed);

// The share of entries used since the last pass of the hand, in percent.
void BM_ReplaceVictim(benchmark::State& state) {
  std::vector<EvictionEntry> entries(100'000);
  EvictionQueue queue(EvictionPolicy::kSieve);
  for (EvictionEntry& entry : entries) queue.Insert(&entry, true);
  std::mt19937 random(1);
  while (state.KeepRunning()) {
    if (random() % 100 < static_cast<unsigned>(state.range(0))) {
      entries[random() % entries.size()].MarkUsed();
    }
    EvictionEntry* victim = queue.NextVictim(Any);
    queue.Remove(victim, true);
    queue.Insert(victim, true);
  }
}
BENCHMARK(BM_ReplaceVictim)->Arg(0)->Arg(50)->Arg(100);

}  // namespace
}  // namespace millrace::tier
