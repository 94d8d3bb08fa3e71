// Cost of asking and filling a block map.
#include "benchmark/benchmark.h"
#include "cache/tier/block_map.h"

namespace millrace::tier {
namespace {

void Fill(BlockMap& map) {
  for (uint64_t i = 0; i < map.blocks(); ++i) map.Set(i, 1);
}

void BM_HasOneBlock(benchmark::State& state) {
  BlockMap map(static_cast<uint64_t>(state.range(0)));
  Fill(map);
  uint64_t index = 0;
  while (state.KeepRunning()) {
    benchmark::DoNotOptimize(map.Has(index));
    index = (index + 7919) % map.blocks();
  }
}
BENCHMARK(BM_HasOneBlock)->Arg(1)->Arg(16384);

// A read of 1 MiB asks for 8 blocks; a whole file of 2 GiB for 16384.
void BM_HasAll(benchmark::State& state) {
  BlockMap map(16384);
  Fill(map);
  const auto count = static_cast<uint64_t>(state.range(0));
  while (state.KeepRunning()) benchmark::DoNotOptimize(map.HasAll(0, count));
}
BENCHMARK(BM_HasAll)->Arg(8)->Arg(16384);

void BM_ClaimAndSet(benchmark::State& state) {
  BlockMap map(16384);
  uint64_t index = 0;
  while (state.KeepRunning()) {
    if (map.Claim(index)) map.Set(index, 1);
    map.Clear(index);
    index = (index + 1) % map.blocks();
  }
}
BENCHMARK(BM_ClaimAndSet);

}  // namespace
}  // namespace millrace::tier
