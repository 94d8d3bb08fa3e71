// An index file: the names of a source with their sizes, times and versions, as one listing found
// them. format.md has its bytes.
//
// The file is checked when it is opened, mapped, and must not change from then on: it has no name
// that anybody writes to (a new index is another file, renamed into place), or is a sealed memory
// file. Checksums keep accidents out, not malice: what a lookup touches is checked again, so that
// a file that lies gives wrong names or DataLoss, and never a read outside of it.
//
// Threads. An Index is constant: all methods are safe for concurrent use and take no lock. Views
// live as long as the Index.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/index/format.h"
#include "common/base/unique_fd.h"

namespace millrace::index {

// Reads directories and their entries in the order of an index: directories by the bytes of their
// paths, entries by Compare. What is not in that order is DataLoss.
//
//   while (true) {
//     ASSIGN_OR_RETURN(const bool more, cursor.NextDirectory());
//     if (!more) break;
//     while (…cursor.NextEntry()…) Use(cursor.directory(), cursor.entry());
//   }
class RecordCursor {
 public:
  // `records` outlive the cursor.
  explicit RecordCursor(absl::string_view records) : begin_(records.data()), decoder_(records) {}

  // False at the end. Passes over what was not read of the directory before.
  absl::StatusOr<bool> NextDirectory();
  // False at the end of the directory.
  absl::StatusOr<bool> NextEntry();

  absl::string_view directory() const { return directory_; }
  const EntryView& entry() const { return entry_; }
  // Of the directory's, of the entry's first byte, and of what comes next; from the first record.
  uint64_t directory_offset() const { return directory_offset_; }
  uint64_t entry_offset() const { return entry_.raw.data() - begin_; }
  uint64_t offset() const { return decoder_.at() - begin_; }

 private:
  const char* begin_;
  Decoder decoder_;
  bool any_directory_ = false;
  bool inside_ = false;
  bool any_entry_ = false;
  uint64_t directory_offset_ = 0;
  absl::string_view directory_;
  EntryView entry_;
};

class Index {
 public:
  // DataLoss for what is no index of this format, is cut, or has another checksum.
  static absl::StatusOr<std::shared_ptr<const Index>> Open(base::UniqueFd fd);
  ~Index();
  Index(const Index&) = delete;
  Index& operator=(const Index&) = delete;

  const IndexHeader& header() const { return header_; }
  int fd() const { return fd_.get(); }
  RecordCursor Records() const { return RecordCursor(records_); }

  // The entry at the path below the source's root; the root is a directory without a name. Nullopt:
  // the listing had none. Where it had a file and a directory of one name, the file.
  absl::StatusOr<std::optional<EntryView>> Find(absl::string_view path) const;

  // Entries of the directory `path` behind the position `after`, at most `max`. Nullopt: there is
  // no such directory in the listing. Takes a time that does not depend on where in the directory
  // the page is, as long as the entry at `after` is still there.
  struct Position {
    absl::string_view name;
    store::EntryKind kind = store::EntryKind::kObject;
  };
  struct Page {
    std::vector<EntryView> entries;
    bool last = false;
  };
  absl::StatusOr<std::optional<Page>> List(absl::string_view path,
                                           const std::optional<Position>& after, size_t max) const;

 private:
  // Where a directory's entries are, as offsets in the file.
  struct Range {
    uint64_t directory = 0;
    uint64_t begin = 0;
    uint64_t end = 0;  // Of the byte that ends it.
  };
  Index() = default;
  absl::StatusOr<std::optional<Range>> FindDirectory(absl::string_view path) const;
  absl::StatusOr<std::optional<EntryView>> FindEntry(const Range& range, absl::string_view name,
                                                     const store::EntryKind* kind) const;
  uint64_t At(uint64_t offset) const;

  base::UniqueFd fd_;
  absl::string_view bytes_;  // The whole file, mapped.
  absl::string_view records_;
  IndexHeader header_;
  Layout layout_;
};

}  // namespace millrace::index
