// The records of a delta: what became of directories and of their entries. Internal to this room
// and its tests.
//
// Threads. Values.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/index/format.h"

namespace millrace::index {

enum class DirectoryChange : uint8_t {
  kStays = 1,     // In both; its entries changed.
  kAdded = 2,     // Its entries are all added.
  kRemoved = 3,   // With all its entries, which are not repeated.
  kReplaced = 4,  // All its entries go, and others are added.
};

enum class EntryChange : uint8_t { kAdded = 1, kChanged = 2, kRemoved = 3 };

// Reads the body of a delta in the order of an index; DataLoss for what is none.
class DeltaCursor {
 public:
  // Checks the header and the body's hash. `delta` outlives the cursor.
  static absl::StatusOr<DeltaCursor> Open(absl::string_view delta);

  const DeltaHeader& header() const { return header_; }

  // As RecordCursor.
  absl::StatusOr<bool> NextDirectory();
  absl::StatusOr<bool> NextEntry();

  DirectoryChange directory_change() const { return directory_change_; }
  absl::string_view directory() const { return directory_; }
  EntryChange entry_change() const { return entry_change_; }
  const EntryView& entry() const { return entry_; }  // kRemoved: name and kind only.

 private:
  DeltaCursor(const DeltaHeader& header, absl::string_view body)
      : header_(header), decoder_(body) {}
  bool ReadChange(EntryView* entry);

  DeltaHeader header_;
  Decoder decoder_;
  bool any_directory_ = false;
  bool inside_ = false;
  bool any_entry_ = false;
  DirectoryChange directory_change_ = DirectoryChange::kStays;
  absl::string_view directory_;
  EntryChange entry_change_ = EntryChange::kAdded;
  EntryView entry_;
};

// Writes one. A directory that stays is written with its first change.
class DeltaWriter {
 public:
  explicit DeltaWriter(uint64_t bytes_max) : bytes_max_(bytes_max), bytes_(kHeaderSize, '\0') {}

  // REQUIRES: the order of an index.
  void BeginDirectory(DirectoryChange change, absl::string_view path);
  void Add(EntryChange change, const EntryView& entry);
  // Better give up.
  bool full() const { return bytes_.size() > bytes_max_; }
  // Fills in sizes and hashes of the body.
  absl::StatusOr<std::string> Finish(DeltaHeader header);

 private:
  void WriteDirectory();
  void EndDirectory();

  const uint64_t bytes_max_;
  std::string bytes_;
  DirectoryChange change_ = DirectoryChange::kStays;
  absl::string_view path_;
  bool pending_ = false;
  bool inside_ = false;
  uint64_t changes_ = 0;
};

}  // namespace millrace::index
