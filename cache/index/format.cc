#include "cache/index/format.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/crc32c.h"

namespace millrace::index {
namespace {

// First byte of a record: bit 0 the kind, bits 1-2 the unit of the time, bits 3-5 the version's
// form; the others are 0.
constexpr uint8_t kDirectoryBit = 0x01;
constexpr int kUnitShift = 1;
constexpr int kFormShift = 3;
constexpr uint8_t kUsedBits = 0x3f;

enum Unit : uint8_t { kSeconds = 0, kMilliseconds = 1, kNanoseconds = 2, kUnits = 3 };
constexpr int64_t kNanosecondsOf[kUnits] = {1'000'000'000, 1'000'000, 1};

enum Form : uint8_t {
  kNone = 0,      // An empty version.
  kDerived = 1,   // "<mtime ns>-<size>".
  kMd5 = 2,       // 32 hexadecimal digits: 16 bytes.
  kMd5Parts = 3,  // The same, "-", and the number of parts: 16 bytes and a varint.
  kHex = 4,       // An even number of hexadecimal digits: a text of half as many bytes.
  kText = 5,      // Any other: a text.
};

constexpr size_t kMd5Bytes = 16;

int HexValue(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  return -1;
}

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return HexValue(c) >= 0; });
}

void AppendPacked(absl::string_view hex, std::string* out) {
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    out->push_back(static_cast<char>(HexValue(hex[i]) << 4 | HexValue(hex[i + 1])));
  }
}

std::string Unpacked(absl::string_view bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * bytes.size() + 11);
  for (const char c : bytes) {
    hex.push_back(kDigits[static_cast<uint8_t>(c) >> 4]);
    hex.push_back(kDigits[static_cast<uint8_t>(c) & 15]);
  }
  return hex;
}

std::string Derived(int64_t mtime_ns, uint64_t size) { return absl::StrCat(mtime_ns, "-", size); }

// "-N" behind an MD5: a number as we would print it.
bool ParseParts(absl::string_view text, uint32_t* parts) {
  return text.size() > 1 && text[0] == '-' && text[1] >= '1' && text[1] <= '9' &&
         absl::SimpleAtoi(text.substr(1), parts) && absl::StrCat("-", *parts) == text;
}

Form FormOf(const store::Entry& entry, int64_t mtime_ns, uint32_t* parts) {
  const absl::string_view version = entry.version;
  if (version.empty()) return kNone;
  const bool md5 = version.size() >= 2 * kMd5Bytes && IsHex(version.substr(0, 2 * kMd5Bytes));
  if (md5 && version.size() == 2 * kMd5Bytes) return kMd5;
  if (md5 && ParseParts(version.substr(2 * kMd5Bytes), parts)) return kMd5Parts;
  if (version == Derived(mtime_ns, entry.size)) return kDerived;
  return version.size() % 2 == 0 && IsHex(version) ? kHex : kText;
}

Unit UnitOf(int64_t mtime_ns) {
  if (mtime_ns % kNanosecondsOf[kSeconds] == 0) return kSeconds;
  return mtime_ns % kNanosecondsOf[kMilliseconds] == 0 ? kMilliseconds : kNanoseconds;
}

// Small for small numbers of either sign.
uint64_t ZigZag(int64_t value) {
  return static_cast<uint64_t>(value) << 1 ^ static_cast<uint64_t>(value >> 63);
}
int64_t UnZigZag(uint64_t value) {
  return static_cast<int64_t>(value >> 1) ^ -static_cast<int64_t>(value & 1);
}

// --- Headers ---

template <typename T>
void Put(size_t offset, T value, std::string* header) {
  std::memcpy(header->data() + offset, &value, sizeof(value));
}

template <typename T>
T Take(size_t offset, absl::string_view header) {
  T value;
  std::memcpy(&value, header.data() + offset, sizeof(value));
  return value;
}

constexpr size_t kFormatOffset = 8;
constexpr size_t kCrcOffset = kHeaderSize - 4;

std::string StartHeader(const char (&magic)[8]) {
  std::string header(kHeaderSize, '\0');
  std::memcpy(header.data(), magic, sizeof(magic));
  Put(kFormatOffset, kFormatVersion, &header);
  return header;
}

void EndHeader(std::string* header) {
  Put(kCrcOffset, base::Crc32c(0, absl::string_view(*header).substr(0, kCrcOffset)), header);
}

absl::Status CheckHeader(absl::string_view bytes, const char (&magic)[8], absl::string_view what) {
  if (bytes.size() < kHeaderSize || std::memcmp(bytes.data(), magic, sizeof(magic)) != 0) {
    return absl::DataLossError(absl::StrCat("this is no ", what));
  }
  const auto format = Take<uint32_t>(kFormatOffset, bytes);
  if (format != kFormatVersion) {
    return absl::DataLossError(
        absl::StrCat("a ", what, " of format ", format, "; this program reads ", kFormatVersion));
  }
  if (Take<uint32_t>(kCrcOffset, bytes) != base::Crc32c(0, bytes.substr(0, kCrcOffset))) {
    return absl::DataLossError(absl::StrCat("the header of the ", what, " is damaged"));
  }
  return absl::OkStatus();
}

uint64_t SlotsFor(uint64_t keys) { return keys + keys / 4 + 1; }

}  // namespace

Layout LayoutOf(uint64_t entries, uint64_t directories, uint64_t record_bytes) {
  Layout layout;
  layout.directory_table = kHeaderSize + (record_bytes + 7) / 8 * 8;
  layout.directory_slots = SlotsFor(directories);
  layout.entry_table = layout.directory_table + 16 * layout.directory_slots;
  layout.entry_slots = SlotsFor(entries);
  layout.file_bytes = layout.entry_table + 8 * layout.entry_slots;
  return layout;
}

std::string EncodeIndexHeader(const IndexHeader& header) {
  std::string bytes = StartHeader(kIndexMagic);
  Put(16, header.version, &bytes);
  Put(24, header.file_bytes, &bytes);
  Put(32, header.entries, &bytes);
  Put(40, header.directories, &bytes);
  Put(48, header.record_bytes, &bytes);
  Put(56, header.seed, &bytes);
  Put(64, header.source_hash, &bytes);
  Put(72, header.content.low, &bytes);
  Put(80, header.content.high, &bytes);
  EndHeader(&bytes);
  return bytes;
}

absl::StatusOr<IndexHeader> DecodeIndexHeader(absl::string_view bytes) {
  if (absl::Status status = CheckHeader(bytes, kIndexMagic, "index"); !status.ok()) return status;
  IndexHeader header;
  header.version = Take<uint64_t>(16, bytes);
  header.file_bytes = Take<uint64_t>(24, bytes);
  header.entries = Take<uint64_t>(32, bytes);
  header.directories = Take<uint64_t>(40, bytes);
  header.record_bytes = Take<uint64_t>(48, bytes);
  header.seed = Take<uint64_t>(56, bytes);
  header.source_hash = Take<uint64_t>(64, bytes);
  header.content.low = Take<uint64_t>(72, bytes);
  header.content.high = Take<uint64_t>(80, bytes);
  // Every entry takes some bytes, so that no sum below overflows.
  if (header.record_bytes > kRecordBytesMax - kHeaderSize || header.entries > header.record_bytes ||
      header.directories > header.record_bytes ||
      LayoutOf(header.entries, header.directories, header.record_bytes).file_bytes !=
          header.file_bytes) {
    return absl::DataLossError("the numbers in the index's header do not fit each other");
  }
  return header;
}

std::string EncodeDeltaHeader(const DeltaHeader& header) {
  std::string bytes = StartHeader(kDeltaMagic);
  Put(16, header.from_version, &bytes);
  Put(24, header.to_version, &bytes);
  Put(32, header.from_content.low, &bytes);
  Put(40, header.from_content.high, &bytes);
  Put(48, header.to_content.low, &bytes);
  Put(56, header.to_content.high, &bytes);
  Put(64, header.body_bytes, &bytes);
  Put(72, header.body_hash, &bytes);
  Put(80, header.seed, &bytes);
  Put(88, header.source_hash, &bytes);
  Put(96, header.changes, &bytes);
  EndHeader(&bytes);
  return bytes;
}

absl::StatusOr<DeltaHeader> DecodeDeltaHeader(absl::string_view bytes) {
  if (absl::Status status = CheckHeader(bytes, kDeltaMagic, "delta"); !status.ok()) return status;
  DeltaHeader header;
  header.from_version = Take<uint64_t>(16, bytes);
  header.to_version = Take<uint64_t>(24, bytes);
  header.from_content = {Take<uint64_t>(32, bytes), Take<uint64_t>(40, bytes)};
  header.to_content = {Take<uint64_t>(48, bytes), Take<uint64_t>(56, bytes)};
  header.body_bytes = Take<uint64_t>(64, bytes);
  header.body_hash = Take<uint64_t>(72, bytes);
  header.seed = Take<uint64_t>(80, bytes);
  header.source_hash = Take<uint64_t>(88, bytes);
  header.changes = Take<uint64_t>(96, bytes);
  return header;
}

std::string EntryView::Version() const {
  switch (version_form) {
    case kDerived:
      return Derived(mtime_ns, size);
    case kMd5:
    case kHex:
      return Unpacked(version_bytes);
    case kMd5Parts: {
      std::string version = Unpacked(version_bytes);
      absl::StrAppend(&version, "-", version_parts);
      return version;
    }
    default:
      return std::string(version_bytes);
  }
}

store::Entry EntryView::ToEntry() const {
  store::Entry entry;
  entry.name = std::string(name);
  entry.kind = kind;
  entry.size = size;
  entry.mtime = absl::FromUnixNanos(mtime_ns);
  entry.version = Version();
  return entry;
}

int Compare(const EntryView& a, const EntryView& b) {
  const int names = a.name.compare(b.name);
  return names != 0 ? names : static_cast<int>(a.kind) - static_cast<int>(b.kind);
}

void AppendVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

void AppendText(absl::string_view text, std::string* out) {
  AppendVarint(text.size(), out);
  out->append(text.data(), text.size());
}

bool AppendEntry(const store::Entry& entry, std::string* out) {
  if (entry.name.size() > kNameBytesMax || entry.version.size() > kVersionBytesMax) return false;
  const bool is_directory = entry.kind == store::EntryKind::kDirectory;
  const int64_t mtime_ns = absl::ToUnixNanos(entry.mtime);
  const Unit unit = UnitOf(mtime_ns);
  uint32_t parts = 0;
  const Form form = is_directory ? kNone : FormOf(entry, mtime_ns, &parts);
  out->push_back(static_cast<char>((is_directory ? kDirectoryBit : 0) | unit << kUnitShift |
                                   form << kFormShift));
  AppendText(entry.name, out);
  AppendVarint(ZigZag(mtime_ns / kNanosecondsOf[unit]), out);
  if (is_directory) return true;
  AppendVarint(entry.size, out);
  const absl::string_view version = entry.version;
  if (form == kMd5 || form == kMd5Parts) AppendPacked(version.substr(0, 2 * kMd5Bytes), out);
  if (form == kMd5Parts) AppendVarint(parts, out);
  if (form == kHex) {
    AppendVarint(version.size() / 2, out);
    AppendPacked(version, out);
  }
  if (form == kText) AppendText(version, out);
  return true;
}

bool Decoder::ReadByte(uint8_t* value) {
  if (at_ == end_) return false;
  *value = static_cast<uint8_t>(*at_++);
  return true;
}

bool Decoder::ReadVarint(uint64_t* value) {
  uint64_t result = 0;
  const char* at = at_;
  for (int shift = 0; shift < 64; shift += 7) {
    if (at == end_) return false;
    const auto byte = static_cast<uint8_t>(*at++);
    // The tenth byte has one bit left.
    if (shift == 63 && byte > 1) return false;
    result |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) {
      *value = result;
      at_ = at;
      return true;
    }
  }
  return false;
}

bool Decoder::ReadText(size_t size_max, absl::string_view* text) {
  const char* const start = at_;
  uint64_t size = 0;
  if (!ReadVarint(&size)) return false;
  if (size > size_max || size > static_cast<uint64_t>(end_ - at_)) {
    at_ = start;
    return false;
  }
  *text = absl::string_view(at_, size);
  at_ += size;
  return true;
}

bool Decoder::ReadEntry(EntryView* entry) {
  const char* const start = at_;
  const auto read = [&] {
    uint8_t first = 0;
    uint64_t time = 0;
    if (!ReadByte(&first) || (first & ~kUsedBits) != 0) return false;
    const uint8_t unit = first >> kUnitShift & 3;
    entry->version_form = first >> kFormShift & 7;
    const bool is_directory = (first & kDirectoryBit) != 0;
    entry->kind = is_directory ? store::EntryKind::kDirectory : store::EntryKind::kObject;
    if (unit >= kUnits || entry->version_form > kText || (is_directory && first >> kFormShift)) {
      return false;
    }
    if (!ReadText(kNameBytesMax, &entry->name) || !ReadVarint(&time)) return false;
    if (__builtin_mul_overflow(UnZigZag(time), kNanosecondsOf[unit], &entry->mtime_ns)) {
      return false;
    }
    entry->size = 0;
    entry->version_bytes = absl::string_view();
    if (is_directory) return true;
    if (!ReadVarint(&entry->size)) return false;
    switch (entry->version_form) {
      case kMd5:
      case kMd5Parts: {
        if (end_ - at_ < static_cast<ptrdiff_t>(kMd5Bytes)) return false;
        entry->version_bytes = absl::string_view(at_, kMd5Bytes);
        at_ += kMd5Bytes;
        if (entry->version_form == kMd5) return true;
        uint64_t parts = 0;
        if (!ReadVarint(&parts) || parts > std::numeric_limits<uint32_t>::max()) return false;
        entry->version_parts = static_cast<uint32_t>(parts);
        return true;
      }
      case kHex:
        return ReadText(kVersionBytesMax / 2, &entry->version_bytes);
      case kText:
        return ReadText(kVersionBytesMax, &entry->version_bytes);
      default:
        return true;
    }
  };
  if (!read()) {
    at_ = start;
    return false;
  }
  entry->raw = absl::string_view(start, at_ - start);
  return true;
}

}  // namespace millrace::index
