// Unit tests of common/proto/data_protocol: every message there and back, every lie refused.
#include "common/proto/data_protocol.h"

#include <limits>
#include <string>

#include "cache/store/store.h"
#include "common/base/crc32c.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::proto {
namespace {

using ::testing::HasSubstr;

Get SomeGet() {
  Get get;
  get.file = {.source = "s3://b", .path = "a/\xff\0b", .version = "\"etag\"", .size = 1 << 20};
  get.offset = 4096;
  get.length = 8192;
  get.role = Role::kCached;
  get.urgency = Urgency::kLookAhead;
  return get;
}

// The payload of a frame whose header and checksums hold.
std::string PayloadOf(const std::string& frame, FrameType type, uint64_t request) {
  const absl::StatusOr<Header> header = DecodeHeader(frame.substr(0, kHeaderSize));
  EXPECT_TRUE(header.ok()) << header.status();
  if (!header.ok()) return std::string();
  EXPECT_EQ(header->type, type);
  EXPECT_EQ(header->request, request);
  std::string payload = frame.substr(kHeaderSize);
  EXPECT_TRUE(CheckPayload(*header, payload).ok());
  return payload;
}

// A header with a checksum that holds, whatever else it says.
std::string Forged(uint32_t length, uint8_t type, uint8_t flags, uint16_t zero, uint64_t offset) {
  std::string bytes;
  const auto put = [&bytes](auto value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  put(length);
  put(type);
  put(flags);
  put(zero);
  put(uint64_t{7});
  put(offset);
  put(uint32_t{0});
  put(base::Crc32c(0, bytes));
  return bytes;
}

TEST(DataProtocolTest, MessagesComeBackAsTheyWere) {
  Hello hello;
  hello.cluster = "c";
  hello.peer = "node-1";
  const auto hello_back = DecodeHello(PayloadOf(Encode(1, hello), FrameType::kHello, 1));
  ASSERT_TRUE(hello_back.ok()) << hello_back.status();
  EXPECT_EQ(hello_back->cluster, "c");
  EXPECT_EQ(hello_back->peer, "node-1");

  Welcome welcome;
  welcome.cluster = "c";
  welcome.worker = "w";
  welcome.capacity_bytes = uint64_t{1} << 40;
  welcome.extent_size = 64 << 20;
  welcome.replicas = 2;
  welcome.draining = true;
  const auto pong =
      DecodeWelcome(PayloadOf(Encode(2, welcome, FrameType::kPong), FrameType::kPong, 2));
  ASSERT_TRUE(pong.ok()) << pong.status();
  EXPECT_EQ(pong->worker, "w");
  EXPECT_EQ(pong->capacity_bytes, uint64_t{1} << 40);
  EXPECT_EQ(pong->extent_size, 64u << 20);
  EXPECT_EQ(pong->replicas, 2u);
  EXPECT_TRUE(pong->draining);

  const Get get = SomeGet();
  const auto get_back = DecodeGet(PayloadOf(Encode(3, get, FrameType::kLoad), FrameType::kLoad, 3));
  ASSERT_TRUE(get_back.ok()) << get_back.status();
  EXPECT_EQ(get_back->file.path, get.file.path);
  EXPECT_EQ(get_back->file.version, get.file.version);
  EXPECT_EQ(get_back->offset, 4096u);
  EXPECT_EQ(get_back->length, 8192u);
  EXPECT_EQ(get_back->role, Role::kCached);
  EXPECT_EQ(get_back->urgency, Urgency::kLookAhead);

  const auto done = DecodeDone(
      PayloadOf(Encode(4, Done{.bytes = 5, .fetched_from_store = 3}), FrameType::kDone, 4));
  ASSERT_TRUE(done.ok());
  EXPECT_EQ(done->bytes, 5u);
  EXPECT_EQ(done->fetched_from_store, 3u);

  const auto index = DecodeIndexGet(
      PayloadOf(Encode(5, IndexGet{.source = "s", .have = 9, .max_age_ms = 7}),
                               FrameType::kIndex, 5));
  ASSERT_TRUE(index.ok());
  EXPECT_EQ(index->have, 9u);
  EXPECT_EQ(index->max_age_ms, 7u);

  const auto open = DecodeOpen(PayloadOf(Encode(6, Open{get.file}), FrameType::kOpen, 6));
  ASSERT_TRUE(open.ok());
  EXPECT_EQ(open->file.size, 1u << 20);
  EXPECT_EQ(DecodeOpened(PayloadOf(Encode(7, Opened{11}), FrameType::kOpened, 7))->lease, 11u);
  EXPECT_EQ(DecodeRelease(PayloadOf(Encode(8, Release{12}), FrameType::kRelease, 8))->lease, 12u);
  EXPECT_EQ(PayloadOf(EncodeEmpty(9, FrameType::kPing), FrameType::kPing, 9), "");
}

TEST(DataProtocolTest, TheLayoutIsTheDocumentedOne) {
  Header header;
  header.length = 3;
  header.type = FrameType::kData;
  header.flags = kLast | kFromPeer;
  header.request = 0x1122334455667788;
  header.offset = 0x99;
  header.payload_crc = base::Crc32c(0, "abc");
  const std::string bytes = EncodeHeader(header);
  ASSERT_EQ(bytes.size(), kHeaderSize);
  const std::string expected(
      "\x03\0\0\0\x11\x05\0\0\x88\x77\x66\x55\x44\x33\x22\x11\x99\0\0\0\0\0\0\0", 24);
  EXPECT_EQ(bytes.substr(0, 24), expected);
  EXPECT_TRUE(CheckPayload(*DecodeHeader(bytes), "abc").ok());
}

TEST(DataProtocolTest, EveryFlippedBitOfAFrameIsSeen) {
  const std::string frame = Encode(3, SomeGet());
  for (size_t bit = 0; bit < frame.size() * 8; ++bit) {
    std::string damaged = frame;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    const auto header = DecodeHeader(damaged.substr(0, kHeaderSize));
    EXPECT_FALSE(header.ok() && CheckPayload(*header, damaged.substr(kHeaderSize)).ok()) << bit;
  }
}

TEST(DataProtocolTest, HeadersThatDoNotHoldAreRefused) {
  EXPECT_TRUE(DecodeHeader(Forged(10, 17, kLast, 0, 5)).ok());
  const struct {
    std::string bytes;
    const char* why;
  } cases[] = {
      {Forged(kDataMax + 1, 17, 0, 0, 0), "at most"},
      {Forged(kMessageMax + 1, 16, 0, 0, 0), "at most"},
      {Forged(1, 18, 0, 0, 0), "at most"},
      {Forged(0, 99, 0, 0, 0), "unknown frame type"},
      {Forged(0, 18, 0, 1, 0), "unknown frame type"},
      {Forged(10, 17, 8, 0, 0), "unknown flags"},
      {Forged(10, 16, kLast, 0, 0), "unknown flags"},
      {Forged(10, 16, 0, 0, 1), "an offset"},
      {Forged(0, 17, 0, 0, 0), "no bytes"},
      {Forged(1, 17, 0, 0, std::numeric_limits<int64_t>::max()), "beyond"},
      {Forged(10, 17, 0, 0, 0).substr(0, 31), "cut short"},
  };
  for (const auto& c : cases) {
    const absl::Status status = DecodeHeader(c.bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.why;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.why));
  }
}

TEST(DataProtocolTest, MessagesThatDoNotEndWhereTheirPayloadDoesAreRefused) {
  const std::string payload = Encode(1, SomeGet()).substr(kHeaderSize);
  for (size_t size = 0; size < payload.size(); ++size) {
    EXPECT_FALSE(DecodeGet(payload.substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(DecodeGet(payload + "x").ok());
}

TEST(DataProtocolTest, RangesOutsideTheFileAreRefused) {
  const auto decode = [](uint64_t size, uint64_t offset, uint64_t length) {
    Get get = SomeGet();
    get.file.size = size;
    get.offset = offset;
    get.length = length;
    return DecodeGet(Encode(1, get).substr(kHeaderSize)).status();
  };
  EXPECT_TRUE(decode(10, 0, 10).ok());
  EXPECT_FALSE(decode(10, 0, 0).ok());
  EXPECT_FALSE(decode(10, 1, 10).ok());
  EXPECT_FALSE(decode(10, 11, 1).ok());
  EXPECT_FALSE(decode(10, 5, std::numeric_limits<uint64_t>::max() - 2).ok());
  EXPECT_FALSE(decode(uint64_t{1} << 63, 0, 1).ok());
}

TEST(DataProtocolTest, UnknownRolesUrgenciesAndCodesAreRefused) {
  Get get = SomeGet();
  get.role = static_cast<Role>(3);
  EXPECT_FALSE(DecodeGet(Encode(1, get).substr(kHeaderSize)).ok());
  get = SomeGet();
  get.urgency = static_cast<Urgency>(4);
  EXPECT_FALSE(DecodeGet(Encode(1, get).substr(kHeaderSize)).ok());
  EXPECT_FALSE(DecodeError(Encode(1, Error{.code = 0}).substr(kHeaderSize)).ok());
  EXPECT_FALSE(DecodeError(Encode(1, Error{.code = 17}).substr(kHeaderSize)).ok());
  std::string welcome = Encode(1, Welcome{}).substr(kHeaderSize);
  welcome.back() = 2;
  EXPECT_FALSE(DecodeWelcome(welcome).ok());
}

TEST(DataProtocolTest, AnotherVersionOrProgramIsNamed) {
  Hello hello;
  hello.version = 2;
  EXPECT_THAT(std::string(DecodeHello(Encode(1, hello).substr(kHeaderSize)).status().message()),
              HasSubstr("version"));
  std::string payload = Encode(1, Hello{}).substr(kHeaderSize);
  payload[0] = 'G';
  EXPECT_THAT(std::string(DecodeHello(payload).status().message()), HasSubstr("not a peer"));
}

TEST(DataProtocolTest, NamesThatAreTooLongMakeNoFrame) {
  Get get = SomeGet();
  get.file.path.assign(kMessageMax, 'a');
  EXPECT_EQ(Encode(1, get), "");
  const Error error{.code = 5, .message = std::string(kMessageMax, 'a')};
  const auto back = DecodeError(PayloadOf(Encode(1, error), FrameType::kError, 1));
  ASSERT_TRUE(back.ok());
  EXPECT_LT(back->message.size(), kMessageMax / 2);
}

TEST(DataProtocolTest, AStatusTravelsWithItsTimeToWait) {
  EXPECT_STREQ(kRetryAfterPayload, store::kRetryAfterPayload);
  absl::Status status = absl::UnavailableError("busy");
  status.SetPayload(kRetryAfterPayload, absl::Cord("2.5"));
  const Error error = ToError(status);
  EXPECT_EQ(error.retry_after_ms, 2500u);
  const absl::Status back = ToStatus(error);
  EXPECT_EQ(back.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(back.message(), "busy");
  EXPECT_EQ(*back.GetPayload(kRetryAfterPayload), "2.5");
  EXPECT_EQ(ToStatus(ToError(absl::NotFoundError("x"))), absl::NotFoundError("x"));
}

}  // namespace
}  // namespace millrace::proto
