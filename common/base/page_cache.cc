#include "common/base/page_cache.h"

#include <sys/syscall.h>
#include <unistd.h>

namespace millrace::base {
namespace {

// cachestat(2): not in this C library's headers yet. The number is the same on all architectures.
constexpr long kCachestatCall = 451;
struct CachestatRange {
  uint64_t offset;
  uint64_t length;
};
struct Cachestat {
  uint64_t cached;
  uint64_t dirty;
  uint64_t in_writeback;
  uint64_t evicted;
  uint64_t recently_evicted;
};

}  // namespace

absl::optional<uint64_t> CachedPages(int fd, uint64_t offset, uint64_t size) {
  CachestatRange range = {offset, size};
  Cachestat counts = {};
  if (syscall(kCachestatCall, fd, &range, &counts, 0) != 0) return absl::nullopt;
  return counts.cached;
}

uint64_t PagesOf(uint64_t offset, uint64_t size) {
  static const uint64_t page_size = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return size == 0 ? 0 : (offset + size - 1) / page_size - offset / page_size + 1;
}

}  // namespace millrace::base
