// Unit tests of common/base.
#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "common/base/crc32c.h"
#include "common/base/errno_status.h"
#include "common/base/hash.h"
#include "common/base/page_cache.h"
#include "common/base/unique_fd.h"
#include "common/base/units.h"
#include "gtest/gtest.h"

namespace millrace::base {
namespace {

TEST(Crc32cTest, MatchesPublishedVectors) {
  // RFC 3720, appendix B.4, and the check value of the CRC catalogue.
  EXPECT_EQ(Crc32c(0, "123456789"), 0xe3069283u);
  EXPECT_EQ(Crc32c(0, std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(0, std::string(32, '\xff')), 0x62a8ab43u);
}

TEST(Crc32cTest, InstructionAndTableAgreeAtEveryLength) {
  std::string data;
  for (int i = 0; i < 30000; ++i) data.push_back(static_cast<char>(i * 31 + (i >> 7)));
  for (size_t size : {0, 1, 7, 8, 9, 4095, 12287, 12288, 12289, 24576, 29999}) {
    const absl::string_view piece(data.data(), size);
    EXPECT_EQ(Crc32c(7, piece), Crc32cPortable(7, piece)) << size;
  }
}

TEST(Crc32cTest, ExtendsPieceByPiece) {
  const std::string data(100000, 'x');
  const uint32_t whole = Crc32c(0, data);
  EXPECT_EQ(Crc32c(Crc32c(0, data.substr(0, 33333)), data.substr(33333)), whole);
}

TEST(PageCacheTest, CountsThePagesThatARangeTouches) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  EXPECT_EQ(PagesOf(0, 0), 0u);
  EXPECT_EQ(PagesOf(0, 1), 1u);
  EXPECT_EQ(PagesOf(0, page), 1u);
  EXPECT_EQ(PagesOf(0, page + 1), 2u);
  EXPECT_EQ(PagesOf(page - 1, 2), 2u);
}

TEST(PageCacheTest, TellsWhatIsCachedOfAFile) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  std::string path = "/tmp/page_cache_test.XXXXXX";
  const UniqueFd file(mkstemp(&path[0]));
  ASSERT_TRUE(file.valid());
  unlink(path.c_str());
  const std::string bytes(8 * page, 'x');
  ASSERT_EQ(write(file.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  const absl::optional<uint64_t> cached = CachedPages(file.get(), 0, 0);
  if (!cached.has_value()) GTEST_SKIP() << "cachestat(2) needs Linux 6.5";
  EXPECT_EQ(*cached, 8u);
  EXPECT_EQ(CachedPages(file.get(), page + 1, page), 2u);
  EXPECT_EQ(CachedPages(file.get(), 16 * page, page), 0u);
  EXPECT_FALSE(CachedPages(-1, 0, 0).has_value());
}

TEST(HashTest, IsStable) {
  // These values name files of caches that exist: a change here orphans them.
  EXPECT_EQ(StableHashHex({"s3://bucket", "a.jpg", "etag"}).size(), 32u);
  EXPECT_NE(StableHash64({"ab", "c"}), StableHash64({"a", "bc"}));
  EXPECT_EQ(StableHash64({"a"}), StableHash64({"a"}));
}

TEST(UnitsTest, ParsesQuantities) {
  EXPECT_EQ(*ParseBytes("4Gi"), 4 * kGiB);
  EXPECT_EQ(*ParseBytes("1.5Ki"), 1536u);
  EXPECT_EQ(*ParseBytes("10M"), 10'000'000u);
  EXPECT_EQ(*ParseBytes("17"), 17u);
  for (const char* bad : {"", "Gi", "-1", "1e9", "nan", "4 Gi x", "99999999Pi", "0x10"}) {
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
  }
}

TEST(UnitsTest, FormatsBytes) {
  EXPECT_EQ(FormatBytes(17), "17 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(300 * kMiB), "300 MiB");
}

TEST(UnitsTest, ParsesDurations) {
  EXPECT_EQ(*ParseDuration("1h30m"), absl::Minutes(90));
  EXPECT_FALSE(ParseDuration("-1s").ok());
  EXPECT_FALSE(ParseDuration("soon").ok());
}

TEST(ErrnoStatusTest, KeepsTheErrno) {
  EXPECT_EQ(ErrnoOf(ErrnoStatus(28, "write")), 28);
  EXPECT_EQ(ErrnoOf(absl::InternalError("x")), std::nullopt);
  EXPECT_EQ(ErrnoOf(WithErrno(absl::AbortedError("changed"), 116)), 116);
}

}  // namespace
}  // namespace millrace::base
