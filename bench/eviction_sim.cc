// Hit rates of the cache's eviction under freshly shuffled epochs: the policies' own code
// (cache/tier/eviction.h) beside LRU and the bound C/N that no policy exceeds.
//
//   bench-eviction-sim [--files 5000] [--epochs 16] [--seed 1] [--json]
#include <cstdint>
#include <cstdio>
#include <limits>
#include <list>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "cache/tier/eviction.h"
#include "cli/bench/report.h"
#include "common/base/flags.h"
#include "nlohmann/json.hpp"

namespace millrace {
namespace {

// The first epochs fill the cache and are not counted.
constexpr int64_t kWarmUpEpochs = 6;

// One file each of equal size. Access returns true for a hit.
class SimulatedCache {
 public:
  virtual ~SimulatedCache() = default;
  virtual bool Access(uint32_t file) = 0;
};

// The cache's own policy: admission as the cache does it, victims from EvictionQueue.
class PolicyCache : public SimulatedCache {
 public:
  PolicyCache(tier::EvictionPolicy policy, uint64_t files, uint64_t capacity)
      : queue_(policy), capacity_(capacity), entries_(files) {}

  bool Access(uint32_t file) override {
    Entry& entry = entries_[file];
    if (entry.cached) {
      entry.MarkUsed();
      return true;
    }
    if (used_ == capacity_ && !EvictOne()) return false;  // Refused.
    queue_.Insert(&entry, /*in_use=*/true);
    entry.cached = true;
    ++used_;
    return false;
  }

 private:
  struct Entry : tier::EvictionEntry {
    bool cached = false;
  };

  bool EvictOne() {
    auto* victim =
        static_cast<Entry*>(queue_.NextVictim([](tier::EvictionEntry&) { return true; }));
    if (victim == nullptr) return false;
    queue_.Remove(victim, /*in_use=*/true);
    victim->cached = false;
    --used_;
    return true;
  }

  tier::EvictionQueue queue_;
  const uint64_t capacity_;
  uint64_t used_ = 0;
  std::vector<Entry> entries_;
};

class LruCache : public SimulatedCache {
 public:
  LruCache(uint64_t files, uint64_t capacity) : capacity_(capacity), places_(files, order_.end()) {}

  bool Access(uint32_t file) override {
    auto& place = places_[file];
    if (place != order_.end()) {
      order_.splice(order_.begin(), order_, place);
      return true;
    }
    if (order_.size() == capacity_) {
      places_[order_.back()] = order_.end();
      order_.pop_back();
    }
    order_.push_front(file);
    place = order_.begin();
    return false;
  }

 private:
  const uint64_t capacity_;
  std::list<uint32_t> order_;  // Most recent first.
  std::vector<std::list<uint32_t>::iterator> places_;
};

struct Setting {
  int64_t files = 5000;
  int64_t epochs = 16;
  int64_t seed = 1;
};

double HitRate(const Setting& setting, SimulatedCache& cache) {
  std::mt19937_64 random(static_cast<uint64_t>(setting.seed));
  std::vector<uint32_t> order(static_cast<size_t>(setting.files));
  std::iota(order.begin(), order.end(), 0);
  uint64_t hits = 0;
  uint64_t counted = 0;
  for (int64_t epoch = 0; epoch < setting.epochs; ++epoch) {
    // Fisher-Yates with a modulus: the same order on every machine, which std::shuffle is not.
    for (uint64_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
    for (const uint32_t file : order) {
      const bool hit = cache.Access(file);
      if (epoch < kWarmUpEpochs) continue;
      hits += hit ? 1 : 0;
      ++counted;
    }
  }
  return static_cast<double>(hits) / static_cast<double>(counted);
}

nlohmann::json Simulate(const Setting& setting, double share) {
  const auto files = static_cast<uint64_t>(setting.files);
  const auto capacity = static_cast<uint64_t>(share * static_cast<double>(files));
  PolicyCache epoch(tier::EvictionPolicy::kEpoch, files, capacity);
  PolicyCache sieve(tier::EvictionPolicy::kSieve, files, capacity);
  LruCache lru(files, capacity);
  return {{"cache_share", share},
          {"bound", static_cast<double>(capacity) / static_cast<double>(files)},
          {"epoch", HitRate(setting, epoch)},
          {"sieve", HitRate(setting, sieve)},
          {"lru", HitRate(setting, lru)}};
}

absl::Status Run(const std::vector<std::string>& arguments) {
  Setting setting;
  bool json = false;
  base::FlagSet flags(
      {.usage = "bench-eviction-sim [OPTION...]",
       .summary = "Prints hit rates under freshly shuffled epochs of the cache's two policies, of "
                  "LRU, and the bound C/N, at three cache sizes."});
  flags.Integer("files", &setting.files, 10, 100'000'000, "files of the set, all of one size");
  flags.Integer("epochs", &setting.epochs, kWarmUpEpochs + 1, 10'000,
                "epochs; those after the sixth are counted");
  flags.Integer("seed", &setting.seed, 0, std::numeric_limits<int64_t>::max(),
                "seed of the shuffles");
  flags.Switch("json", &json, "print one JSON object per cache size");
  absl::StatusOr<base::ParsedArguments> parsed = flags.Parse(arguments);
  if (!parsed.ok()) return parsed.status();
  if (parsed->help) {
    std::fputs(flags.Help().c_str(), stdout);
    return absl::OkStatus();
  }
  if (absl::Status status = flags.Apply(*parsed); !status.ok()) return status;
  if (!json) absl::PrintF("cache size  bound C/N  epoch   sieve   lru\n");
  for (const double share : {0.2, 0.5, 0.8}) {
    const nlohmann::json result = Simulate(setting, share);
    if (json) {
      bench::PrintJson(result);
    } else {
      absl::PrintF("%9.0f%%  %9.3f  %.3f   %.3f   %.3f\n", 100 * share,
                   result["bound"].get<double>(), result["epoch"].get<double>(),
                   result["sieve"].get<double>(), result["lru"].get<double>());
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  const absl::Status status = millrace::Run(std::vector<std::string>(argv + 1, argv + argc));
  if (!status.ok()) {
    std::fprintf(stderr, "bench-eviction-sim: %s\n", millrace::base::ErrorText(status).c_str());
  }
  return millrace::base::ExitCode(status);
}
