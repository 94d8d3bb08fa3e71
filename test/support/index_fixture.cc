#include "test/support/index_fixture.h"

#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace millrace::test {

std::string BytesOf(const index::Index& index) {
  std::string bytes(index.header().file_bytes, '\0');
  EXPECT_EQ(pread(index.fd(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return bytes;
}

std::vector<std::string> Lines(const index::Index& index) {
  std::vector<std::string> lines;
  index::RecordCursor cursor = index.Records();
  while (cursor.NextDirectory().value()) {
    lines.push_back(absl::StrCat(cursor.directory(), "/"));
    while (cursor.NextEntry().value()) {
      const store::Entry entry = cursor.entry().ToEntry();
      lines.push_back(absl::StrCat(cursor.directory(), "/", entry.name, " ",
                                   static_cast<int>(entry.kind), " ", entry.size, " ",
                                   absl::ToUnixMillis(entry.mtime), " ", entry.version));
    }
  }
  return lines;
}

uint64_t RandomContents::Below(uint64_t bound) {
  // SplitMix64.
  state_ += 0x9e3779b97f4a7c15;
  uint64_t z = state_;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (z ^ z >> 31) % bound;
}

void RandomContents::Change(size_t changes) {
  contents_[""];
  for (; changes > 0; --changes) {
    const std::string path = Below(8) == 0 ? "" : absl::StrCat("d", Below(20));
    if (Below(30) == 0 && !path.empty()) {
      contents_.erase(path);
      continue;
    }
    std::vector<store::Entry>& entries = contents_[path];
    store::Entry entry = Below(10) == 0 ? Directory(absl::StrCat("f", Below(40)))
                                        : Object(absl::StrCat("f", Below(40)), Below(100),
                                                 absl::StrCat("v", Below(5)));
    const auto old = std::find_if(entries.begin(), entries.end(), [&](const store::Entry& other) {
      return other.name == entry.name && other.kind == entry.kind;
    });
    if (old != entries.end()) entries.erase(old);
    if (Below(3) != 0) entries.push_back(std::move(entry));
  }
}

}  // namespace millrace::test
