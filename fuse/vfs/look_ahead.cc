#include "fuse/vfs/look_ahead.h"

#include <utility>
#include <vector>

namespace millrace::vfs {
namespace {

// Directories remembered; beyond it all start again, which costs a few misses each.
constexpr size_t kWalksMax = 100'000;
constexpr uint64_t kIssuedPerMiss = 2;
// Files asked of the tree at a time.
constexpr size_t kBatch = 8;

}  // namespace

LookAhead::LookAhead(Options options, Tree* tree, Fetch fetch)
    : options_(options), tree_(tree), fetch_(std::move(fetch)) {}

void LookAhead::OnMiss(NodeId directory, NodeId file) {
  {
    base::MutexLock lock(&mutex_);
    if (walks_.size() >= kWalksMax) walks_.clear();
    Walk& walk = walks_[directory];
    walk.file = file;
    ++walk.misses;
    if (walk.misses < options_.misses_min || walk.ended) return;
  }
  Pump(directory);
}

void LookAhead::Pump(NodeId directory) {
  while (true) {
    NodeId file;
    size_t cursor;
    size_t count;
    {
      base::MutexLock lock(&mutex_);
      Walk& walk = walks_[directory];
      const uint64_t allowed = walk.misses * kIssuedPerMiss;
      if (walk.ended || walk.issued >= allowed || outstanding_ >= options_.outstanding_max) return;
      count = std::min<uint64_t>(
          {kBatch, allowed - walk.issued, options_.outstanding_max - outstanding_});
      file = walk.file;
      cursor = walk.cursor;
      // Taken before the files are known: two threads must not issue the same batch.
      walk.cursor += count;
      walk.issued += count;
      outstanding_ += count;
    }
    size_t after = cursor;
    const std::vector<FileRef> batch = tree_->Siblings(file, &after, count);
    size_t started = 0;
    for (const FileRef& ref : batch) {
      const bool fetching = fetch_(ref, [this, directory] {
        {
          base::MutexLock lock(&mutex_);
          --outstanding_;
        }
        Pump(directory);
      });
      if (fetching) ++started;
    }
    base::MutexLock lock(&mutex_);
    Walk& walk = walks_[directory];
    outstanding_ -= count - started;
    walk.issued -= count - started;
    if (batch.size() < count) walk.ended = true;
  }
}

}  // namespace millrace::vfs
