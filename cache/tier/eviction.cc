#include "cache/tier/eviction.h"

namespace millrace::tier {

void SieveList::Insert(EvictionEntry* entry) {
  entry->older_ = newest_;
  entry->newer_ = nullptr;
  (newest_ != nullptr ? newest_->newer_ : oldest_) = entry;
  newest_ = entry;
  entry->listed_ = true;
  ++size_;
}

void SieveList::Remove(EvictionEntry* entry) {
  if (!entry->listed_) return;
  if (hand_ == entry) hand_ = entry->newer_;
  (entry->older_ != nullptr ? entry->older_->newer_ : oldest_) = entry->newer_;
  (entry->newer_ != nullptr ? entry->newer_->older_ : newest_) = entry->older_;
  entry->newer_ = entry->older_ = nullptr;
  entry->listed_ = false;
  --size_;
}

EvictionEntry* SieveList::NextVictim(Eligible eligible, size_t skips_max) {
  // Two rounds suffice: the first may clear every mark.
  size_t skips = 0;
  for (size_t steps = 2 * size_; steps > 0 && skips <= skips_max; --steps) {
    if (hand_ == nullptr) hand_ = oldest_;
    EvictionEntry* entry = hand_;
    if (entry->used_.load(std::memory_order_relaxed)) {
      entry->used_.store(false, std::memory_order_relaxed);
    } else if (eligible(*entry)) {
      return entry;
    } else {
      ++skips;
    }
    hand_ = entry->newer_;
  }
  return nullptr;
}

void EvictionQueue::Insert(EvictionEntry* entry, bool in_use) {
  (Kept(in_use) ? kept_ : open_).Insert(entry);
}

void EvictionQueue::Remove(EvictionEntry* entry, bool in_use) {
  (Kept(in_use) ? kept_ : open_).Remove(entry);
}

EvictionEntry* EvictionQueue::NextVictim(SieveList::Eligible eligible) {
  return open_.NextVictim(eligible, kSkipsMax);
}

EvictionEntry* EvictionQueue::NextForced(SieveList::Eligible eligible) {
  EvictionEntry* entry = NextVictim(eligible);
  return entry != nullptr ? entry : kept_.NextVictim(eligible, kSkipsMax);
}

}  // namespace millrace::tier
