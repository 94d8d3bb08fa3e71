#include "cache/index/delta_records.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace millrace::index {
namespace {

constexpr uint8_t kEnd = 0;  // In the place of a change.

absl::Status Damaged(const char* what) {
  return absl::DataLossError(absl::StrCat("the delta is damaged: ", what));
}

}  // namespace

absl::StatusOr<DeltaCursor> DeltaCursor::Open(absl::string_view delta) {
  ASSIGN_OR_RETURN(const DeltaHeader header, DecodeDeltaHeader(delta));
  const absl::string_view body = delta.substr(kHeaderSize);
  if (body.size() != header.body_bytes) return Damaged("it is not as long as it says");
  if (base::SeededHash64(body, 0) != header.body_hash) return Damaged("the checksum is another");
  return DeltaCursor(header, body);
}

absl::StatusOr<bool> DeltaCursor::NextDirectory() {
  while (inside_) RETURN_IF_ERROR(NextEntry().status());
  if (decoder_.empty()) return false;
  const absl::string_view before = directory_;
  uint8_t change = 0;
  if (!decoder_.ReadByte(&change) || change < static_cast<uint8_t>(DirectoryChange::kStays) ||
      change > static_cast<uint8_t>(DirectoryChange::kReplaced) ||
      !decoder_.ReadText(kPathBytesMax, &directory_)) {
    return Damaged("a directory");
  }
  if (any_directory_ && directory_ <= before) return Damaged("the order of directories");
  directory_change_ = static_cast<DirectoryChange>(change);
  any_directory_ = true;
  inside_ = true;
  any_entry_ = false;
  return true;
}

bool DeltaCursor::ReadChange(EntryView* entry) {
  if (entry_change_ != EntryChange::kRemoved) return decoder_.ReadEntry(entry);
  uint8_t kind = 0;
  if (!decoder_.ReadByte(&kind) || kind > static_cast<uint8_t>(store::EntryKind::kDirectory)) {
    return false;
  }
  entry->kind = static_cast<store::EntryKind>(kind);
  return decoder_.ReadText(kNameBytesMax, &entry->name);
}

absl::StatusOr<bool> DeltaCursor::NextEntry() {
  if (!inside_) return false;
  uint8_t change = 0;
  if (!decoder_.ReadByte(&change) || change > static_cast<uint8_t>(EntryChange::kRemoved)) {
    return Damaged("a change");
  }
  if (change == kEnd) {
    inside_ = false;
    return false;
  }
  entry_change_ = static_cast<EntryChange>(change);
  const bool only_adds = directory_change_ != DirectoryChange::kStays;
  if (only_adds &&
      (entry_change_ != EntryChange::kAdded || directory_change_ == DirectoryChange::kRemoved)) {
    return Damaged("a change where none can be");
  }
  EntryView next;
  if (!ReadChange(&next)) return Damaged("an entry");
  if (any_entry_ && Compare(entry_, next) >= 0) return Damaged("the order of entries");
  any_entry_ = true;
  entry_ = next;
  return true;
}

void DeltaWriter::WriteDirectory() {
  bytes_.push_back(static_cast<char>(change_));
  AppendText(path_, &bytes_);
  pending_ = false;
  inside_ = true;
}

void DeltaWriter::EndDirectory() {
  if (pending_ && change_ != DirectoryChange::kStays) WriteDirectory();
  if (inside_) bytes_.push_back(static_cast<char>(kEnd));
  pending_ = false;
  inside_ = false;
}

void DeltaWriter::BeginDirectory(DirectoryChange change, absl::string_view path) {
  EndDirectory();
  change_ = change;
  path_ = path;
  pending_ = true;
}

void DeltaWriter::Add(EntryChange change, const EntryView& entry) {
  if (pending_) WriteDirectory();
  bytes_.push_back(static_cast<char>(change));
  if (change == EntryChange::kRemoved) {
    bytes_.push_back(static_cast<char>(entry.kind));
    AppendText(entry.name, &bytes_);
  } else {
    bytes_.append(entry.raw.data(), entry.raw.size());
  }
  ++changes_;
}

absl::StatusOr<std::string> DeltaWriter::Finish(DeltaHeader header) {
  EndDirectory();
  if (full()) return absl::ResourceExhaustedError("the delta is longer than it may be");
  const absl::string_view body = absl::string_view(bytes_).substr(kHeaderSize);
  header.body_bytes = body.size();
  header.body_hash = base::SeededHash64(body, 0);
  header.changes = changes_;
  bytes_.replace(0, kHeaderSize, EncodeDeltaHeader(header));
  return std::move(bytes_);
}

}  // namespace millrace::index
