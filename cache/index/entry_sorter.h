// Brings entries that come in any order into that of an index, in bounded memory: what does not fit
// is sorted in pieces, which are kept in files without a name and merged at the end.
//
// Threads. Add is safe for concurrent use; WriteTo comes after the last Add.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "cache/index/index_writer.h"
#include "cache/store/store.h"
#include "common/base/mutex.h"
#include "common/base/unique_fd.h"

namespace millrace::index {

class EntrySorter {
 public:
  struct Options {
    size_t memory_bytes = 64 << 20;  // Of entries before they are written out.
    std::string directory;           // For the files; empty: in memory after all.
  };
  explicit EntrySorter(Options options) : options_(std::move(options)) {}

  // Entries of the directory `path`; with none, that it is there. Of two with one name and kind the
  // first one added counts. What is over a limit of the format is left out and counted.
  absl::Status Add(absl::string_view path, absl::Span<const store::Entry> entries);

  absl::Status WriteTo(RecordWriter* writer);

  uint64_t entries() const;
  uint64_t left_out() const;

 private:
  struct Item {
    uint32_t directory;  // Into directories_.
    uint32_t record;     // Offset in records_; grows in the order of Add.
  };

  // Sorts what is held and gives it to `writer`.
  void WriteHeld(RecordWriter* writer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Spill() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  mutable base::Mutex mutex_;
  std::string records_ ABSL_GUARDED_BY(mutex_);
  std::vector<Item> items_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> directories_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, uint32_t> directory_numbers_ ABSL_GUARDED_BY(mutex_);
  size_t directory_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<base::UniqueFd> runs_ ABSL_GUARDED_BY(mutex_);
  uint64_t entries_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t left_out_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace millrace::index
