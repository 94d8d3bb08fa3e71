// The namespace index at a million objects: bytes, lookups, pages, building, differences.
//
//   bench-micro --benchmark_filter=Index
#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "benchmark/benchmark.h"
#include "cache/index/builder.h"
#include "cache/index/delta.h"
#include "cache/index/entry_sorter.h"
#include "cache/index/index_writer.h"
#include "cache/store/memory_store.h"

namespace millrace::index {
namespace {

constexpr size_t kObjects = 1'000'000;
constexpr size_t kPerDirectory = 1000;

std::string PathOf(size_t i) {
  return absl::StrFormat("train/shard-%05d/image-%08d.jpg", i / kPerDirectory, i);
}

// As S3 gives them: an MD5 that cannot be compressed, times in milliseconds.
store::Entry EntryOf(size_t i, uint64_t generation) {
  std::mt19937_64 random(i * 31 + generation);
  store::Entry entry;
  entry.name = absl::StrFormat("image-%08d.jpg", i);
  entry.size = 50'000 + random() % 200'000;
  entry.mtime =
      absl::FromUnixMillis(1'700'000'000'000 + static_cast<int64_t>(random() % (1u << 30)));
  entry.version = absl::StrFormat("%016x%016x", random(), random());
  return entry;
}

// `changed`: every how many-th object is of a newer generation; 0: none.
std::shared_ptr<const Index> Make(uint64_t version, size_t changed) {
  EntrySorter sorter({});
  std::vector<store::Entry> page;
  for (size_t i = 0; i < kObjects; i += kPerDirectory) {
    page.clear();
    for (size_t j = i; j < i + kPerDirectory; ++j) {
      page.push_back(EntryOf(j, changed != 0 && j % changed == 0 ? 1 : 0));
    }
    if (!sorter.Add(absl::StrFormat("train/shard-%05d", i / kPerDirectory), page).ok()) abort();
  }
  IndexWriter writer(NewUnnamedFile("").value());
  if (!sorter.WriteTo(&writer.records()).ok()) abort();
  return writer.Finish({.version = version, .seed = 5}).value();
}

const Index& Million() {
  static const std::shared_ptr<const Index> index = Make(1, 0);
  return *index;
}

const Index& MillionLater() {
  static const std::shared_ptr<const Index> index = Make(2, 100);
  return *index;
}

void BM_IndexLookup(benchmark::State& state) {
  const Index& index = Million();
  std::vector<std::string> paths(kObjects);
  for (size_t i = 0; i < kObjects; ++i) paths[i] = PathOf(i);
  std::shuffle(paths.begin(), paths.end(), std::mt19937_64(1));
  size_t i = 0;
  while (state.KeepRunning()) {
    const auto found = index.Find(paths[i]);
    if (!found.ok() || !found->has_value()) state.SkipWithError("not found");
    i = i + 1 == kObjects ? 0 : i + 1;
  }
  state.counters["bytes_per_entry"] =
      static_cast<double>(index.header().file_bytes) / static_cast<double>(index.header().entries);
  state.counters["lookups"] =
      benchmark::Counter(static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}
BENCHMARK(BM_IndexLookup);

void BM_IndexLookupOfAbsentNames(benchmark::State& state) {
  const Index& index = Million();
  std::vector<std::string> paths(kObjects);
  for (size_t i = 0; i < kObjects; ++i) paths[i] = PathOf(i) + "x";
  std::shuffle(paths.begin(), paths.end(), std::mt19937_64(1));
  size_t i = 0;
  while (state.KeepRunning()) {
    const auto found = index.Find(paths[i]);
    if (!found.ok() || found->has_value()) state.SkipWithError("found");
    i = i + 1 == kObjects ? 0 : i + 1;
  }
}
BENCHMARK(BM_IndexLookupOfAbsentNames);

void BM_IndexPageOf1000(benchmark::State& state) {
  const Index& index = Million();
  size_t i = 0;
  while (state.KeepRunning()) {
    const auto page = index.List(absl::StrFormat("train/shard-%05d", i), std::nullopt, 1000);
    if (!page.ok() || (*page)->entries.size() != kPerDirectory) state.SkipWithError("no page");
    i = (i + 7) % (kObjects / kPerDirectory);
  }
}
BENCHMARK(BM_IndexPageOf1000);

// Sorting and writing, without the store.
void BM_IndexBuildOfAMillion(benchmark::State& state) {
  while (state.KeepRunning()) benchmark::DoNotOptimize(Make(1, 0));
}
BENCHMARK(BM_IndexBuildOfAMillion)->Unit(benchmark::kMillisecond);

void BM_IndexOpen(benchmark::State& state) {
  const Index& index = Million();
  while (state.KeepRunning()) {
    if (!Index::Open(base::UniqueFd(dup(index.fd()))).ok()) state.SkipWithError("not opened");
  }
}
BENCHMARK(BM_IndexOpen)->Unit(benchmark::kMillisecond);

void BM_IndexDiffOfOnePercent(benchmark::State& state) {
  const Index& from = Million();
  const Index& to = MillionLater();
  uint64_t bytes = 0;
  while (state.KeepRunning()) bytes = Diff(from, to, 1 << 30).value().size();
  state.counters["share_of_bytes"] =
      static_cast<double>(bytes) / static_cast<double>(from.header().file_bytes);
}
BENCHMARK(BM_IndexDiffOfOnePercent)->Unit(benchmark::kMillisecond);

void BM_IndexApplyOfOnePercent(benchmark::State& state) {
  const std::string delta = Diff(Million(), MillionLater(), 1 << 30).value();
  while (state.KeepRunning()) {
    if (!Apply(Million(), delta, NewUnnamedFile("").value()).ok()) state.SkipWithError("refused");
  }
}
BENCHMARK(BM_IndexApplyOfOnePercent)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace millrace::index
