#include "cache/index/index_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace millrace::index {
namespace {

// A table that is four fifths full has runs of some hundreds at most; one that is full of lies
// would be gone through for every name.
constexpr uint64_t kProbesMax = 1 << 16;

absl::Status Damaged(const char* what) {
  return absl::DataLossError(absl::StrCat("the index is damaged: ", what));
}

}  // namespace

absl::StatusOr<bool> RecordCursor::NextDirectory() {
  while (inside_) RETURN_IF_ERROR(NextEntry().status());
  if (decoder_.empty()) return false;
  directory_offset_ = offset();
  const absl::string_view before = directory_;
  if (!decoder_.ReadText(kPathBytesMax, &directory_)) return Damaged("a directory");
  if (any_directory_ && directory_ <= before) return Damaged("the order of directories");
  any_directory_ = true;
  inside_ = true;
  any_entry_ = false;
  return true;
}

absl::StatusOr<bool> RecordCursor::NextEntry() {
  if (!inside_) return false;
  if (!decoder_.empty() && static_cast<uint8_t>(*decoder_.at()) == kEndOfDirectory) {
    uint8_t end = 0;
    decoder_.ReadByte(&end);
    inside_ = false;
    return false;
  }
  EntryView next;
  if (!decoder_.ReadEntry(&next)) return Damaged("an entry");
  if (any_entry_ && Compare(entry_, next) >= 0) return Damaged("the order of entries");
  any_entry_ = true;
  entry_ = next;
  return true;
}

absl::StatusOr<std::shared_ptr<const Index>> Index::Open(base::UniqueFd fd) {
  struct stat st = {};
  if (fstat(fd.get(), &st) != 0) return base::ErrnoStatus(errno, "index: fstat");
  const auto size = static_cast<size_t>(st.st_size);
  if (size < kHeaderSize) return Damaged("it is too short");
  // Only memory files can be sealed, and only those that nobody maps for writing.
  (void)fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
  // Private, for a sealed file cannot be mapped shared by a descriptor that could write.
  void* const memory = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (memory == MAP_FAILED) return base::ErrnoStatus(errno, "index: mmap");
  std::shared_ptr<Index> index(new Index);
  index->fd_ = std::move(fd);
  index->bytes_ = absl::string_view(static_cast<const char*>(memory), size);
  ASSIGN_OR_RETURN(index->header_, DecodeIndexHeader(index->bytes_));
  const IndexHeader& header = index->header_;
  if (header.file_bytes != size) return Damaged("it is not as long as it says");
  if (base::ContentHash128(index->bytes_.substr(kHeaderSize)) != header.content) {
    return Damaged("the checksum is another");
  }
  index->records_ = index->bytes_.substr(kHeaderSize, header.record_bytes);
  index->layout_ = LayoutOf(header.entries, header.directories, header.record_bytes);
  return std::shared_ptr<const Index>(std::move(index));
}

Index::~Index() {
  if (!bytes_.empty()) munmap(const_cast<char*>(bytes_.data()), bytes_.size());
}

uint64_t Index::At(uint64_t offset) const {
  uint64_t value = 0;
  std::memcpy(&value, bytes_.data() + offset, sizeof(value));
  return value;
}

absl::StatusOr<std::optional<Index::Range>> Index::FindDirectory(absl::string_view path) const {
  const uint64_t records_end = kHeaderSize + header_.record_bytes;
  const uint64_t hash = base::SeededHash64(path, header_.seed);
  uint64_t at = FirstSlot(hash, layout_.directory_slots);
  for (uint64_t probes = 0; probes < kProbesMax; ++probes) {
    const uint64_t slot = At(layout_.directory_table + 16 * at);
    if (slot == 0) return std::nullopt;
    if (SlotMayBe(slot, hash)) {
      Range range;
      range.directory = SlotOffset(slot);
      const uint64_t size = At(layout_.directory_table + 16 * at + 8);
      if (range.directory < kHeaderSize || range.directory > records_end || size == 0 ||
          size > records_end - range.directory) {
        return Damaged("the place of a directory");
      }
      range.end = range.directory + size - 1;
      Decoder decoder(bytes_.substr(range.directory, size - 1));
      absl::string_view found;
      if (!decoder.ReadText(kPathBytesMax, &found)) return Damaged("a directory");
      range.begin = decoder.at() - bytes_.data();
      if (found == path) return range;
    }
    at = at + 1 == layout_.directory_slots ? 0 : at + 1;
  }
  return Damaged("the directory table");
}

absl::StatusOr<std::optional<EntryView>> Index::FindEntry(const Range& range,
                                                          absl::string_view name,
                                                          const store::EntryKind* kind) const {
  const uint64_t hash = base::SeededHash64(name, header_.seed ^ range.directory);
  uint64_t at = FirstSlot(hash, layout_.entry_slots);
  for (uint64_t probes = 0; probes < kProbesMax; ++probes) {
    const uint64_t slot = At(layout_.entry_table + 8 * at);
    if (slot == 0) return std::nullopt;
    const uint64_t offset = SlotOffset(slot);
    // Another directory's entry may be in the way.
    if (SlotMayBe(slot, hash) && offset >= range.begin && offset < range.end) {
      Decoder decoder(bytes_.substr(offset, range.end - offset));
      EntryView entry;
      if (!decoder.ReadEntry(&entry)) return Damaged("an entry");
      if (entry.name == name && (kind == nullptr || *kind == entry.kind)) return entry;
    }
    at = at + 1 == layout_.entry_slots ? 0 : at + 1;
  }
  return Damaged("the entry table");
}

absl::StatusOr<std::optional<EntryView>> Index::Find(absl::string_view path) const {
  if (path.empty()) {
    EntryView root;
    root.kind = store::EntryKind::kDirectory;
    return root;
  }
  const size_t slash = path.rfind('/');
  if (slash == 0) return std::nullopt;
  const bool below = slash != absl::string_view::npos;
  ASSIGN_OR_RETURN(const std::optional<Range> range,
                   FindDirectory(below ? path.substr(0, slash) : absl::string_view()));
  if (!range.has_value()) return std::nullopt;
  return FindEntry(*range, below ? path.substr(slash + 1) : path, nullptr);
}

absl::StatusOr<std::optional<Index::Page>> Index::List(absl::string_view path,
                                                       const std::optional<Position>& after,
                                                       size_t max) const {
  ASSIGN_OR_RETURN(const std::optional<Range> range, FindDirectory(path));
  if (!range.has_value()) return std::nullopt;
  uint64_t begin = range->begin;
  EntryView position;
  if (after.has_value()) {
    position.name = after->name;
    position.kind = after->kind;
    ASSIGN_OR_RETURN(const std::optional<EntryView> last,
                     FindEntry(*range, after->name, &after->kind));
    if (last.has_value()) begin = last->raw.data() + last->raw.size() - bytes_.data();
  }
  Page page;
  Decoder decoder(bytes_.substr(begin, range->end - begin));
  EntryView entry;
  while (!decoder.empty()) {
    if (!decoder.ReadEntry(&entry)) return Damaged("an entry");
    if (after.has_value() && Compare(entry, position) <= 0) continue;
    if (page.entries.size() >= max) return page;
    page.entries.push_back(entry);
  }
  page.last = true;
  return page;
}

}  // namespace millrace::index
