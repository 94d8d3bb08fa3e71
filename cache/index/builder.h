// An index from a store's listings: every directory once, several at a time.
//
// What it needs for N entries: EntrySorter's 64 MiB, the paths of directories that are still to be
// listed (a directory of a million sub-directories: 50 MB), a page of each call on its way; on disk
// the index twice, once in pieces.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cache/index/index_writer.h"
#include "cache/store/store.h"
#include "common/base/unique_fd.h"

namespace millrace::index {

// Grows while a build runs; for whoever looks.
struct BuildProgress {
  std::atomic<uint64_t> directories{0};  // Listed.
  std::atomic<uint64_t> entries{0};
};

struct BuildOptions {
  size_t threads = 16;  // Calls at a time.
  size_t sort_memory_bytes = 64 << 20;
  std::string directory;  // Of files without a name while it is built; empty: in memory.
  uint64_t entries_max = 100'000'000;
  const std::atomic<bool>* cancelled = nullptr;  // As CallOptions has it.
  BuildProgress* progress = nullptr;
};

// Lists all of the store and writes the index to `file` (empty, open for reading and writing).
// Names that no file system shows (fuse/SEMANTICS.md) are in the index and are not entered. A
// directory that goes away meanwhile is left out; one that is nested deeper than 512, more
// entries than entries_max, pages without an end and the store's own errors end the build.
// `store` tries again by itself.
absl::StatusOr<std::shared_ptr<const Index>> BuildIndex(store::Store& store, base::UniqueFd file,
                                                        const IndexIdentity& identity,
                                                        const BuildOptions& options);

}  // namespace millrace::index
