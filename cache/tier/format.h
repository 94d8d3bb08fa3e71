// Names and numbers of a tier's directory and journal, byte by byte in format.md. A change of
// meaning raises kJournalVersion: a tier of another version is dropped, not guessed at.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace millrace::tier {

static_assert(std::endian::native == std::endian::little,
              "the journal is little-endian, and is read and written without swapping");

// <tier>/
inline constexpr char kLockName[] = "lock";
inline constexpr char kJournalName[] = "journal";
inline constexpr char kJournalNewName[] = "journal.new";
inline constexpr char kSourcesName[] = "sources";
// <tier>/sources/<16 hex digits>/
inline constexpr char kUrlName[] = "url";
inline constexpr char kCompleteName[] = "complete";
inline constexpr char kPartialName[] = "partial";

// First line of the lock file: tells a tier's directory from any other.
inline constexpr char kLockHeader[] = "millrace tier\n";

inline constexpr char kJournalMagic[8] = {'M', 'I', 'L', 'L', 'R', 'A', 'C', 'E'};
inline constexpr uint32_t kJournalVersion = 1;

struct JournalHeader {
  char magic[8];
  uint32_t version;
  uint32_t reserved;
};
static_assert(sizeof(JournalHeader) == 16);

enum class RecordType : uint8_t {
  kSession = 1,
  kClean = 2,
  kSource = 3,
  kFile = 4,
  kBlocks = 5,
  kDropped = 6,
  kRemoved = 7,
};

inline constexpr uint32_t kRecordMagic = 0x314a524d;  // "MRJ1"
inline constexpr uint8_t kFlagUnverified = 1;         // Of kBlocks.
inline constexpr size_t kRecordAlignment = 8;
// No record is longer; a damaged length beyond it is seen at once.
inline constexpr uint32_t kPayloadMax = 128 * 1024;
// CRCs in one kBlocks record.
inline constexpr uint32_t kBlocksPerRecordMax = 16 * 1024;

struct RecordHeader {
  uint32_t magic;
  uint8_t type;
  uint8_t flags;
  uint16_t reserved;
  uint32_t length;  // Of the payload, without padding.
  uint32_t crc;     // CRC32C of type to length, then the payload.
};
static_assert(sizeof(RecordHeader) == 16);

// StableHashHex({path, version}) in binary: the name of a data file within its source.
struct FileId {
  std::array<uint8_t, 16> bytes{};

  static FileId Of(absl::string_view path, absl::string_view version);
  // False if `name` is not 32 lower-case hexadecimal digits.
  static bool FromName(absl::string_view name, FileId* id);
  std::string Name() const;

  friend bool operator==(const FileId&, const FileId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const FileId& id) {
    return H::combine(std::move(h), id.bytes);
  }
};

// A data file within a tier: hash of its source's URL, and its name.
struct FileRef {
  uint64_t source = 0;
  FileId id;

  friend bool operator==(const FileRef&, const FileRef&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const FileRef& ref) {
    return H::combine(std::move(h), ref.source, ref.id);
  }
};

// The directory of a source: 16 lower-case hexadecimal digits.
std::string SourceDirectoryName(uint64_t hash);

}  // namespace millrace::tier
