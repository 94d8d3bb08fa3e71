// Writes an index file from entries that come in its order, in memory that does not depend on how
// many there are (the file's own pages in the page cache aside).
//
// Threads. One at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/index/format.h"
#include "cache/index/index_file.h"
#include "common/base/unique_fd.h"

namespace millrace::index {

// What makes two indexes of the same entries different.
struct IndexIdentity {
  uint64_t version = 0;
  uint64_t seed = 0;
  uint64_t source_hash = 0;
};

// The records alone, from kHeaderSize on: the part of an index that says all of it.
class RecordWriter {
 public:
  // `fd` is open for writing, at an empty file that is the writer's alone, and outlives it.
  explicit RecordWriter(int fd);

  // REQUIRES: `path` is behind the paths before it, `entry` behind those of its directory.
  void BeginDirectory(absl::string_view path);
  void Add(const EntryView& entry);
  // The first error of any call; everything is in the file when there was none.
  absl::Status Finish();

  uint64_t bytes() const { return written_ + buffer_.size() - kHeaderSize; }
  uint64_t entries() const { return entries_; }
  uint64_t directories() const { return directories_; }

 private:
  void EndDirectory();
  void Flush();

  const int fd_;
  std::string buffer_;
  uint64_t written_ = kHeaderSize;
  uint64_t entries_ = 0;
  uint64_t directories_ = 0;
  bool inside_ = false;
  absl::Status status_;
};

class IndexWriter {
 public:
  // `fd` is open for reading and writing, at an empty file that is the writer's alone.
  explicit IndexWriter(base::UniqueFd fd) : fd_(std::move(fd)), records_(fd_.get()) {}

  RecordWriter& records() { return records_; }

  // Completes the file and opens it. After an error the file is of no use. The last call. Not
  // synced: after a power cut Index::Open tells.
  absl::StatusOr<std::shared_ptr<const Index>> Finish(const IndexIdentity& identity);

 private:
  absl::Status FillTables(const IndexIdentity& identity, const Layout& layout, char* file) const;

  base::UniqueFd fd_;
  RecordWriter records_;
};

// An empty file without a name in `directory`, or in memory where that is empty.
absl::StatusOr<base::UniqueFd> NewUnnamedFile(const std::string& directory);

}  // namespace millrace::index
