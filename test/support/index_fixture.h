// Indexes from a list of entries, for the tests of index files and their differences.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cache/index/entry_sorter.h"
#include "cache/index/index_writer.h"
#include "cache/store/store.h"

namespace millrace::test {

// Entries by directory: what a source has.
using Contents = std::map<std::string, std::vector<store::Entry>>;

inline store::Entry Object(const std::string& name, uint64_t size = 1,
                           const std::string& version = "00112233445566778899aabbccddeeff") {
  return {name, store::EntryKind::kObject, size, absl::FromUnixMillis(1'700'000'000'123), version};
}

inline store::Entry Directory(const std::string& name) {
  store::Entry entry;
  entry.name = name;
  entry.kind = store::EntryKind::kDirectory;
  return entry;
}

inline absl::StatusOr<std::shared_ptr<const index::Index>> TryMakeIndex(
    const Contents& contents, const index::IndexIdentity& identity = {.version = 1, .seed = 5},
    const index::EntrySorter::Options& options = {}) {
  index::EntrySorter sorter(options);
  for (const auto& [path, entries] : contents) {
    if (absl::Status status = sorter.Add(path, entries); !status.ok()) return status;
  }
  absl::StatusOr<base::UniqueFd> file = index::NewUnnamedFile("");
  if (!file.ok()) return file.status();
  index::IndexWriter writer(*std::move(file));
  if (absl::Status status = sorter.WriteTo(&writer.records()); !status.ok()) return status;
  return writer.Finish(identity);
}

inline std::shared_ptr<const index::Index> MakeIndex(const Contents& contents,
                                                     const index::IndexIdentity& identity = {
                                                         .version = 1, .seed = 5}) {
  return TryMakeIndex(contents, identity).value();
}

// All bytes of the file.
std::string BytesOf(const index::Index& index);

// What the index says, read in order: "path/name kind size ms version" for each entry, "path/" for
// each directory.
std::vector<std::string> Lines(const index::Index& index);

// Random changes to `contents`: entries and directories that come, go and change.
class RandomContents {
 public:
  explicit RandomContents(uint64_t seed) : state_(seed) {}
  void Change(size_t changes);
  const Contents& contents() const { return contents_; }

 private:
  uint64_t Below(uint64_t bound);
  uint64_t state_;
  Contents contents_;
};

}  // namespace millrace::test
