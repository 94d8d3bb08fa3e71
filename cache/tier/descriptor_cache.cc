#include "cache/tier/descriptor_cache.h"

#include <vector>

namespace millrace::tier {
namespace {

// Descriptors in use passed in one search: the list is then over its limit, which is what "beyond
// those held" means.
constexpr size_t kSkipsMax = 64;

}  // namespace

void DescriptorCache::Add(Descriptor* descriptor) {
  {
    base::MutexLock lock(&mutex_);
    list_.Insert(descriptor);
    if (list_.size() <= idle_max_) return;
  }
  ShrinkTo(idle_max_);
}

void DescriptorCache::Remove(Descriptor* descriptor) {
  base::MutexLock lock(&mutex_);
  list_.Remove(descriptor);
}

void DescriptorCache::Trim() { ShrinkTo(size() / 2); }

size_t DescriptorCache::size() const {
  base::MutexLock lock(&mutex_);
  return list_.size();
}

void DescriptorCache::ShrinkTo(size_t count) {
  // Closed after the lock is gone: closing the last descriptor of an unlinked file frees its
  // blocks.
  std::vector<std::shared_ptr<Descriptor>> yielded;
  base::MutexLock lock(&mutex_);
  while (list_.size() > count) {
    std::shared_ptr<Descriptor> taken;
    EvictionEntry* victim = list_.NextVictim(
        [&](EvictionEntry& entry) {
          auto& descriptor = static_cast<Descriptor&>(entry);
          taken = descriptor.owner()->YieldDescriptor(descriptor);
          return taken != nullptr;
        },
        kSkipsMax);
    if (victim == nullptr) return;
    list_.Remove(victim);
    yielded.push_back(std::move(taken));
  }
}

}  // namespace millrace::tier
