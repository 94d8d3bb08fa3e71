// Fuzzes the reader of index files: one comes from another machine. An input is such a file; its
// size, the numbers in its header and the checksums are made to fit, so that what they cover is
// reached.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "cache/index/index_file.h"
#include "cache/index/index_writer.h"

namespace {

using millrace::index::EntryView;
using millrace::index::Index;
using millrace::index::IndexHeader;
using millrace::index::kHeaderSize;

absl::StatusOr<std::shared_ptr<const Index>> Open(const std::string& bytes) {
  millrace::base::UniqueFd file = millrace::index::NewUnnamedFile("").value();
  if (pwrite(file.get(), bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    __builtin_trap();
  }
  return Index::Open(std::move(file));
}

// The numbers of the input's header, under checksums that hold.
std::string Sealed(std::string bytes) {
  if (bytes.size() < kHeaderSize) return bytes;
  const auto take = [&](size_t offset) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data() + offset, sizeof(value));
    return value;
  };
  IndexHeader header;
  header.version = take(16);
  header.record_bytes = std::min<uint64_t>(take(48), bytes.size() - kHeaderSize);
  header.entries = std::min(take(32), header.record_bytes);
  header.directories = std::min(take(40), header.record_bytes);
  header.file_bytes =
      millrace::index::LayoutOf(header.entries, header.directories, header.record_bytes).file_bytes;
  header.seed = take(56);
  bytes.resize(header.file_bytes);
  header.content = millrace::base::ContentHash128(absl::string_view(bytes).substr(kHeaderSize));
  return bytes.replace(0, kHeaderSize, EncodeIndexHeader(header));
}

void Touch(const EntryView& entry) {
  const millrace::store::Entry copy = entry.ToEntry();
  if (copy.name.size() > millrace::index::kNameBytesMax) __builtin_trap();
}

// All of it must be usable, or say that it is damaged.
void Use(const Index& index) {
  millrace::index::RecordCursor cursor = index.Records();
  for (int directories = 0; directories < 100; ++directories) {
    const absl::StatusOr<bool> more = cursor.NextDirectory();
    if (!more.ok() || !*more) break;
    const std::string directory(cursor.directory());
    for (int entries = 0; entries < 100; ++entries) {
      const absl::StatusOr<bool> another = cursor.NextEntry();
      if (!another.ok() || !*another) break;
      Touch(cursor.entry());
      const auto found = index.Find(directory + "/" + std::string(cursor.entry().name));
      if (found.ok() && found->has_value()) Touch(**found);
    }
    const auto page = index.List(directory, std::nullopt, 3);
    if (!page.ok() || !page->has_value()) continue;
    for (const EntryView& entry : (*page)->entries) Touch(entry);
    if ((*page)->entries.empty()) continue;
    const EntryView& last = (*page)->entries.back();
    (void)index.List(directory, Index::Position{last.name, last.kind}, 3).ok();
  }
  for (const char* const path : {"", "a", "d/a", "d/b", "top"}) {
    const auto found = index.Find(path);
    if (found.ok() && found->has_value()) Touch(**found);
    (void)index.List(path, Index::Position{"a"}, 100).ok();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  if (size > 0) (void)Open(bytes).ok();
  const std::string sealed = Sealed(bytes);
  if (sealed.empty()) return 0;
  const auto index = Open(sealed);
  if (index.ok()) Use(**index);
  return 0;
}
