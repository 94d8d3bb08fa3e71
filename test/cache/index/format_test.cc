#include "cache/index/format.h"

#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "test/support/index_fixture.h"

namespace millrace::index {
namespace {

using ::millrace::test::Directory;
using ::millrace::test::Object;

store::Entry RoundTrip(const store::Entry& entry, size_t* bytes = nullptr) {
  std::string record;
  EXPECT_TRUE(AppendEntry(entry, &record));
  if (bytes != nullptr) *bytes = record.size();
  Decoder decoder(record);
  EntryView view;
  EXPECT_TRUE(decoder.ReadEntry(&view));
  EXPECT_TRUE(decoder.empty());
  EXPECT_EQ(view.raw, record);
  return view.ToEntry();
}

void ExpectSame(const store::Entry& a, const store::Entry& b) {
  EXPECT_EQ(a.name, b.name);
  EXPECT_EQ(a.kind, b.kind);
  EXPECT_EQ(a.size, b.size);
  EXPECT_EQ(a.mtime, b.mtime);
  EXPECT_EQ(a.version, b.version);
}

TEST(IndexRecordTest, EveryFormOfVersionComesBackAsItWas) {
  const std::string md5 = "00112233445566778899aabbccddeeff";
  const std::vector<std::string> versions = {
      "", md5, md5 + "-1", md5 + "-4294967295", md5 + "-10000",
      // None of these is what the compact forms would give back.
      md5 + "-0", md5 + "-01", md5 + "-4294967296", md5 + "-", md5 + "-1x", md5 + "--1",
      md5 + "- 1", "00112233445566778899AABBCCDDEEFF", md5 + "f", md5 + md5, "ab", "abc", "v1",
      "1700000000123000000-1", "1700000000123000000-2", std::string("\0x", 2), "\"quoted\"",
      std::string(kVersionBytesMax, 'z'), std::string(kVersionBytesMax - 1, 'a')};
  for (const std::string& version : versions) {
    ExpectSame(RoundTrip(Object("name", 1, version)), Object("name", 1, version));
  }
}

TEST(IndexRecordTest, EveryNumberComesBackAsItWas) {
  for (const uint64_t size : {uint64_t{0}, uint64_t{127}, uint64_t{128}, uint64_t{1} << 40,
                              std::numeric_limits<uint64_t>::max()}) {
    ExpectSame(RoundTrip(Object("name", size)), Object("name", size));
  }
  for (const int64_t ns : {int64_t{0}, int64_t{1}, int64_t{-1}, int64_t{1'700'000'000'123'456'789},
                           int64_t{-1'000'000'000}, std::numeric_limits<int64_t>::max(),
                           std::numeric_limits<int64_t>::min()}) {
    store::Entry entry = Object("name");
    entry.mtime = absl::FromUnixNanos(ns);
    ExpectSame(RoundTrip(entry), entry);
    entry = Directory("name");
    entry.mtime = absl::FromUnixNanos(ns);
    ExpectSame(RoundTrip(entry), entry);
  }
}

TEST(IndexRecordTest, HostileNamesAreKept) {
  for (const std::string& name :
       {std::string(), std::string(".."), std::string("a/b"), std::string("a\0b", 3),
        std::string("\xff\xfe"), std::string(kNameBytesMax, 'n')}) {
    ExpectSame(RoundTrip(Object(name)), Object(name));
  }
}

TEST(IndexRecordTest, WhatIsOverALimitIsNotAppended) {
  std::string record = "before";
  EXPECT_FALSE(AppendEntry(Object(std::string(kNameBytesMax + 1, 'n')), &record));
  EXPECT_FALSE(AppendEntry(Object("n", 1, std::string(kVersionBytesMax + 1, 'v')), &record));
  EXPECT_EQ(record, "before");
}

TEST(IndexRecordTest, AnObjectOfS3TakesItsNameAnd28Bytes) {
  size_t bytes = 0;
  RoundTrip(Object("0123456789", 100'000), &bytes);
  EXPECT_LE(bytes, 10 + 28);
}

TEST(IndexRecordTest, EveryCutRecordIsRefused) {
  for (const store::Entry& entry :
       {Object("name"), Object("name", 1, "00112233445566778899aabbccddeeff-12"),
        Object("name", 1, "text"), Object("name", 1, "abcd"), Directory("name")}) {
    std::string record;
    ASSERT_TRUE(AppendEntry(entry, &record));
    for (size_t size = 0; size < record.size(); ++size) {
      Decoder decoder(absl::string_view(record).substr(0, size));
      EntryView view;
      EXPECT_FALSE(decoder.ReadEntry(&view)) << size;
      EXPECT_EQ(decoder.at(), record.data());
    }
  }
}

TEST(IndexRecordTest, NumbersThatDoNotFitAreRefused) {
  uint64_t value = 0;
  const std::string ten_bytes(9, '\xff');
  EXPECT_TRUE(Decoder(ten_bytes + '\x01').ReadVarint(&value));
  EXPECT_EQ(value, std::numeric_limits<uint64_t>::max());
  EXPECT_FALSE(Decoder(ten_bytes + '\x02').ReadVarint(&value));
  EXPECT_FALSE(Decoder(ten_bytes + "\xff\x01").ReadVarint(&value));
  // A time in seconds beyond what nanoseconds have.
  std::string record(1, '\0');
  AppendText("n", &record);
  AppendVarint(std::numeric_limits<uint64_t>::max(), &record);
  AppendVarint(1, &record);
  EntryView view;
  EXPECT_FALSE(Decoder(record).ReadEntry(&view));
}

TEST(IndexHeaderTest, ComesBackAsItWas) {
  IndexHeader header;
  header.version = 7;
  header.entries = 3;
  header.directories = 2;
  header.record_bytes = 100;
  header.file_bytes = LayoutOf(3, 2, 100).file_bytes;
  header.seed = 9;
  header.source_hash = 11;
  header.content = {13, 15};
  const absl::StatusOr<IndexHeader> read = DecodeIndexHeader(EncodeIndexHeader(header));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(EncodeIndexHeader(*read), EncodeIndexHeader(header));
}

TEST(IndexHeaderTest, AnyFlippedBitIsRefused) {
  IndexHeader header;
  header.file_bytes = LayoutOf(0, 0, 0).file_bytes;
  const std::string bytes = EncodeIndexHeader(header);
  ASSERT_TRUE(DecodeIndexHeader(bytes).ok());
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ 1 << bit % 8);
    EXPECT_FALSE(DecodeIndexHeader(damaged).ok()) << bit;
  }
}

TEST(IndexHeaderTest, NumbersThatDoNotFitEachOtherAreRefused) {
  IndexHeader header;
  header.record_bytes = 10;
  header.entries = 11;
  header.file_bytes = LayoutOf(11, 0, 10).file_bytes;
  EXPECT_FALSE(DecodeIndexHeader(EncodeIndexHeader(header)).ok());
  header.entries = std::numeric_limits<uint64_t>::max();
  EXPECT_FALSE(DecodeIndexHeader(EncodeIndexHeader(header)).ok());
  header.entries = 1;
  header.file_bytes = LayoutOf(1, 0, 10).file_bytes + 1;
  EXPECT_FALSE(DecodeIndexHeader(EncodeIndexHeader(header)).ok());
}

}  // namespace
}  // namespace millrace::index
