// Open descriptors of data files: kept while somebody uses them, and some thousands beyond, so that
// a hot file costs no open. Idle ones leave in SIEVE order: a random walk over more files than
// descriptors keeps those that are used again.
//
// Lock order: DescriptorCache's lock, then the owner's (inside YieldDescriptor). Thread-safe.
#pragma once

#include <cstddef>
#include <memory>

#include "cache/tier/eviction.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/mutex.h"

namespace millrace::tier {

class Descriptor;

// Who keeps a descriptor: a cached file.
class DescriptorOwner {
 public:
  // Gives `descriptor` up if the owner has it and nobody else uses it; null otherwise.
  virtual std::shared_ptr<Descriptor> YieldDescriptor(const Descriptor& descriptor) = 0;

 protected:
  ~DescriptorOwner() = default;
};

class Descriptor : public OpenData, public EvictionEntry {
 public:
  Descriptor(base::UniqueFd fd, bool writable, DescriptorOwner* owner)
      : OpenData(std::move(fd)), writable_(writable), owner_(owner) {}

  bool writable() const { return writable_; }
  DescriptorOwner* owner() const { return owner_; }

 private:
  const bool writable_;
  DescriptorOwner* const owner_;
};

class DescriptorCache {
 public:
  explicit DescriptorCache(size_t idle_max) : idle_max_(idle_max) {}

  // A descriptor its owner keeps from now on. May make others yield theirs.
  void Add(Descriptor* descriptor);
  // The owner let go of it, or is about to end. No-op if it is not listed.
  void Remove(Descriptor* descriptor);
  // Makes half of the idle ones yield: the process is out of descriptors.
  void Trim();

  size_t size() const;

 private:
  void ShrinkTo(size_t count);

  const size_t idle_max_;
  mutable base::Mutex mutex_;
  SieveList list_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace::tier
