// Names and numbers of an index file and of the difference between two, byte by byte in format.md.
// A change of meaning raises kFormatVersion: a file of another version is not guessed at.
//
// The same entries, with the same numbers in the header, give the same bytes on every machine: so a
// difference that was applied is checked by one hash.
//
// Threads. Values and pure functions. Whatever is decoded here may be hostile: nothing is read
// outside of what was given, and what does not hold is DataLoss.
#pragma once

#include <bit>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/store/store.h"
#include "common/base/hash.h"

namespace millrace::index {

static_assert(std::endian::native == std::endian::little,
              "an index is little-endian, and is read and written without swapping");

inline constexpr uint32_t kFormatVersion = 1;
inline constexpr size_t kHeaderSize = 128;
inline constexpr char kIndexMagic[8] = {'M', 'R', 'L', 'I', 'N', 'D', 'E', 'X'};
inline constexpr char kDeltaMagic[8] = {'M', 'R', 'L', 'D', 'E', 'L', 'T', 'A'};

// A file system shows names of up to 255 bytes, and versions of up to 65,535; longer paths than
// this cannot be asked for.
inline constexpr size_t kNameBytesMax = 4096;
inline constexpr size_t kVersionBytesMax = 65535;
inline constexpr size_t kPathBytesMax = 65535;
// An offset has 40 bits of a slot.
inline constexpr uint64_t kRecordBytesMax = uint64_t{1} << 40;

// --- Headers ---

// As a file has it, without magic, format version and checksum.
struct IndexHeader {
  uint64_t version = 0;  // Of the listing; grows with every change of what is listed.
  uint64_t file_bytes = 0;
  uint64_t entries = 0;
  uint64_t directories = 0;
  uint64_t record_bytes = 0;  // From kHeaderSize.
  uint64_t seed = 0;          // Of the hashes: a store's names cannot be chosen to collide.
  uint64_t source_hash = 0;   // base::StableHash64({identity}).
  base::Hash128 content;      // Of all bytes behind the header.
};

struct DeltaHeader {
  uint64_t from_version = 0;
  uint64_t to_version = 0;
  base::Hash128 from_content;
  base::Hash128 to_content;
  uint64_t body_bytes = 0;  // From kHeaderSize to the end.
  uint64_t body_hash = 0;   // base::SeededHash64 with seed 0.
  uint64_t seed = 0;
  uint64_t source_hash = 0;
  uint64_t changes = 0;  // Entries in the body.
};

std::string EncodeIndexHeader(const IndexHeader& header);
std::string EncodeDeltaHeader(const DeltaHeader& header);
// `bytes` may be longer than the header.
absl::StatusOr<IndexHeader> DecodeIndexHeader(absl::string_view bytes);
absl::StatusOr<DeltaHeader> DecodeDeltaHeader(absl::string_view bytes);

// Where the tables of an index are; the same for all who know the header.
struct Layout {
  uint64_t directory_table = 0;  // Offset of the slots.
  uint64_t directory_slots = 0;  // Of 16 bytes.
  uint64_t entry_table = 0;
  uint64_t entry_slots = 0;  // Of 8 bytes.
  uint64_t file_bytes = 0;
};
// REQUIRES: record_bytes <= kRecordBytesMax and no more entries and directories than those.
Layout LayoutOf(uint64_t entries, uint64_t directories, uint64_t record_bytes);

// --- Slots: 40 bits of offset, 24 bits of the hash. An offset is never 0: 0 is an empty slot. ---
inline constexpr uint64_t kOffsetMask = kRecordBytesMax - 1;
inline uint64_t MakeSlot(uint64_t hash, uint64_t offset) { return hash << 40 | offset; }
inline bool SlotMayBe(uint64_t slot, uint64_t hash) { return slot >> 40 == (hash & 0xff'ffff); }
inline uint64_t SlotOffset(uint64_t slot) { return slot & kOffsetMask; }
// The first slot to look at; the next ones follow, the first after the last.
inline uint64_t FirstSlot(uint64_t hash, uint64_t slots) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(hash) * slots >> 64);
}

// --- Records ---

// An entry as an index has it. Views are into the bytes it was decoded from.
struct EntryView {
  absl::string_view name;
  store::EntryKind kind = store::EntryKind::kObject;
  uint64_t size = 0;
  int64_t mtime_ns = 0;
  absl::string_view raw;  // The whole record.

  std::string Version() const;
  store::Entry ToEntry() const;

  // As kept: what Version() is made of.
  uint8_t version_form = 0;
  absl::string_view version_bytes;
  uint32_t version_parts = 0;
};

// The order of entries in a directory: by the bytes of the name, an object before a directory.
int Compare(const EntryView& a, const EntryView& b);

// What ends a directory's entries, in the place of a record's first byte.
inline constexpr uint8_t kEndOfDirectory = 0xff;

// Appends the record of `entry`. Size and version of a directory are not kept, nor parts of a
// nanosecond. False, and nothing appended, for what is over a limit.
bool AppendEntry(const store::Entry& entry, std::string* out);
void AppendVarint(uint64_t value, std::string* out);
void AppendText(absl::string_view text, std::string* out);  // Length as a varint, and the bytes.

// Reads records and numbers in order; a failed read leaves it where it was.
class Decoder {
 public:
  explicit Decoder(absl::string_view bytes) : at_(bytes.data()), end_(at_ + bytes.size()) {}

  bool empty() const { return at_ == end_; }
  const char* at() const { return at_; }
  // False at the end, or for what is no such thing.
  bool ReadByte(uint8_t* value);
  bool ReadVarint(uint64_t* value);
  bool ReadText(size_t size_max, absl::string_view* text);
  bool ReadEntry(EntryView* entry);

 private:
  const char* at_;
  const char* end_;
};

}  // namespace millrace::index
