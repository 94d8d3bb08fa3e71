// What tests of the cache share: a directory of their own, contents that can be recomputed from a
// file's name, and a cache that can be opened again and again over one directory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "cache/tier/tiered_cache.h"
#include "common/io/file_io.h"

namespace millrace::testing {

// A new directory, removed with all below it at the end of the scope.
class TemporaryDirectory {
 public:
  // Below `parent`; empty: $TMPDIR or /tmp.
  explicit TemporaryDirectory(const std::string& parent = "");
  ~TemporaryDirectory();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The one true content of (path, version): any part of it without the rest.
std::string ContentOf(absl::string_view path, absl::string_view version, uint64_t offset,
                      uint64_t length);

tier::FileKey KeyOf(const std::string& path, uint64_t size, const std::string& version = "v1",
                    const std::string& source = "s3://bucket/set");

// Puts the true content of blocks [first, first + count), cut at the end of the file.
absl::Status PutBlocks(tier::CachedFile& file, uint64_t first, uint64_t count);
absl::Status PutAll(tier::CachedFile& file);

// Waits for the read.
absl::StatusOr<std::string> ReadAll(tier::CachedFile& file, uint64_t offset, uint64_t length);

// Every present block of the file reads as the truth, or fails. Returns what is wrong; empty if
// nothing.
std::string Compare(tier::CachedFile& file);

std::vector<std::string> ListFiles(const std::string& directory);
std::string ReadFile(const std::string& path);
void WriteFile(const std::string& path, absl::string_view content);

}  // namespace millrace::testing
