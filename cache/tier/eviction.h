// Which file leaves a tier: pure order, no disk, no file.
//
// Not thread-safe but for EvictionEntry::MarkUsed: the owner holds its lock around every call.
#pragma once

#include <atomic>
#include <cstddef>

#include "absl/functional/function_ref.h"
#include "cache/tier/tiered_cache.h"

namespace millrace::tier {

// A member of at most one list at a time. Base class of what is evicted.
class EvictionEntry {
 public:
  EvictionEntry() = default;
  EvictionEntry(const EvictionEntry&) = delete;
  EvictionEntry& operator=(const EvictionEntry&) = delete;

  // A use: the next pass of the hand spares this entry once. Any thread, without a lock.
  void MarkUsed() {
    if (!used_.load(std::memory_order_relaxed)) used_.store(true, std::memory_order_relaxed);
  }
  bool listed() const { return listed_; }

 private:
  friend class SieveList;
  EvictionEntry* newer_ = nullptr;
  EvictionEntry* older_ = nullptr;
  std::atomic<bool> used_{false};
  bool listed_ = false;
};

// SIEVE (Zhang et al., NSDI'24): a FIFO queue and a hand that walks from old to new, spares used
// entries once, and stays where it evicted. A use costs one store, no lock and no list operation.
class SieveList {
 public:
  using Eligible = absl::FunctionRef<bool(EvictionEntry&)>;

  void Insert(EvictionEntry* entry);  // As the newest.
  void Remove(EvictionEntry* entry);  // No-op if it is not listed.
  // The next victim among eligible entries, still listed; null when there is none within
  // `skips_max` ineligible entries. The hand moves past what it skipped.
  EvictionEntry* NextVictim(Eligible eligible, size_t skips_max);
  size_t size() const { return size_; }

 private:
  EvictionEntry* newest_ = nullptr;
  EvictionEntry* oldest_ = nullptr;
  EvictionEntry* hand_ = nullptr;  // Null: start at the oldest.
  size_t size_ = 0;
};

// The order of one tier under a policy.
//
// kEpoch never gives up a file of a source in use, neither to eviction nor to demotion. Under
// shuffled epochs every file of the set is equally likely to be read next: pushing one out for
// another wins nothing and costs a fetch, and copying one down to a slower tier only to put another
// in its place costs a write of each byte for no hit. New data goes to the next tier at once.
// Files of sources that nobody uses leave in SIEVE order.
class EvictionQueue {
 public:
  explicit EvictionQueue(EvictionPolicy policy) : policy_(policy) {}

  // `in_use`: the entry's source is in use; must be the same in Remove.
  void Insert(EvictionEntry* entry, bool in_use);
  void Remove(EvictionEntry* entry, bool in_use);

  // The next to leave that is `eligible`; null when the policy gives up nothing more.
  EvictionEntry* NextVictim(SieveList::Eligible eligible);
  // The same without regard to the policy: a quota that shrank must be met.
  EvictionEntry* NextForced(SieveList::Eligible eligible);

  // Entries the policy may give up.
  size_t candidates() const { return open_.size(); }

 private:
  // Ineligible entries passed in one search: bounds the time a lock is held when everything is
  // busy. The hand goes on from there next time.
  static constexpr size_t kSkipsMax = 4096;

  bool Kept(bool in_use) const { return policy_ == EvictionPolicy::kEpoch && in_use; }

  const EvictionPolicy policy_;
  SieveList open_;  // May leave.
  SieveList kept_;  // Stay while their source is in use.
};

}  // namespace millrace::tier
