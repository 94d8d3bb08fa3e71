#include "common/proto/data_protocol.h"

#include <bit>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "common/base/crc32c.h"
#include "common/base/status_macros.h"

namespace millrace::proto {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers travel as they are in memory");

// An error is told in one line; what is longer is cut.
constexpr size_t kErrorTextMax = 1024;
constexpr size_t kHeaderCrcAt = 28;

// --- Fields, in their order, the same for both directions ----------------------------------------

template <typename Archive, typename Message>
void VisitFile(Archive& archive, Message& file) {
  archive.Field(file.source);
  archive.Field(file.path);
  archive.Field(file.version);
  archive.Field(file.size);
}

template <typename Archive>
struct Visitor {
  Archive& archive;

  template <typename Message>
  void operator()(Message& m) {
    using Plain = std::remove_const_t<Message>;
    if constexpr (std::is_same_v<Plain, Hello>) {
      uint32_t magic = kMagic;
      archive.Field(magic);
      archive.Expect(magic == kMagic, "not a peer of a pool of workers");
      archive.Field(m.version);
      archive.Expect(m.version == kVersion, "unknown protocol version");
      archive.Field(m.cluster);
      archive.Field(m.peer);
    } else if constexpr (std::is_same_v<Plain, Welcome>) {
      archive.Field(m.version);
      archive.Expect(m.version == kVersion, "unknown protocol version");
      archive.Field(m.cluster);
      archive.Field(m.worker);
      archive.Field(m.capacity_bytes);
      archive.Field(m.extent_size);
      archive.Field(m.replicas);
      archive.Field(m.draining);
    } else if constexpr (std::is_same_v<Plain, Error>) {
      archive.Field(m.code);
      archive.Field(m.retry_after_ms);
      archive.Field(m.message);
    } else if constexpr (std::is_same_v<Plain, Get>) {
      VisitFile(archive, m.file);
      archive.Field(m.offset);
      archive.Field(m.length);
      archive.Field(m.role);
      archive.Field(m.urgency);
    } else if constexpr (std::is_same_v<Plain, Done>) {
      archive.Field(m.bytes);
      archive.Field(m.fetched_from_store);
    } else if constexpr (std::is_same_v<Plain, IndexGet>) {
      archive.Field(m.source);
      archive.Field(m.have);
      archive.Field(m.max_age_ms);
    } else if constexpr (std::is_same_v<Plain, Open>) {
      VisitFile(archive, m.file);
    } else {
      static_assert(std::is_same_v<Plain, Opened> || std::is_same_v<Plain, Release>);
      archive.Field(m.lease);
    }
  }
};

class Writer {
 public:
  explicit Writer(std::string* out) : out_(out) {}

  template <typename T>
  void Field(const T& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      Field(static_cast<uint32_t>(value.size()));
      out_->append(value);
    } else if constexpr (std::is_same_v<T, bool>) {
      out_->push_back(value ? '\1' : '\0');
    } else {
      static_assert(std::is_integral_v<T> || std::is_enum_v<T>);
      out_->append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
  }
  void Expect(bool, absl::string_view) {}

 private:
  std::string* const out_;
};

// After the first thing that does not hold every field stays as it was.
class Reader {
 public:
  explicit Reader(absl::string_view payload) : rest_(payload) {}

  template <typename T>
  void Field(T& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      uint32_t size = 0;
      Field(size);
      const absl::string_view bytes = Take(size);
      value.assign(bytes.data(), bytes.size());
    } else if constexpr (std::is_same_v<T, bool>) {
      uint8_t byte = 0;
      Field(byte);
      Expect(byte <= 1, "a boolean that is neither 0 nor 1");
      value = byte == 1;
    } else {
      static_assert(std::is_integral_v<T> || std::is_enum_v<T>);
      const absl::string_view bytes = Take(sizeof(T));
      if (!bytes.empty()) std::memcpy(&value, bytes.data(), sizeof(T));
    }
  }

  void Expect(bool holds, absl::string_view otherwise) {
    if (!holds && problem_.empty()) problem_ = otherwise;
  }

  absl::Status Finish() {
    Expect(rest_.empty(), "bytes behind the last field");
    if (problem_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(problem_);
  }

 private:
  absl::string_view Take(size_t count) {
    Expect(count <= rest_.size(), "a message that is cut short");
    if (!problem_.empty()) return absl::string_view();
    const absl::string_view bytes = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return bytes;
  }

  absl::string_view rest_;
  absl::string_view problem_;
};

template <typename Message>
std::string EncodeMessage(uint64_t request, FrameType type, const Message& message) {
  std::string frame(kHeaderSize, '\0');
  Writer writer(&frame);
  Visitor<Writer>{writer}(message);
  const absl::string_view payload = absl::string_view(frame).substr(kHeaderSize);
  if (payload.size() > kMessageMax) return std::string();
  Header header;
  header.length = static_cast<uint32_t>(payload.size());
  header.type = type;
  header.request = request;
  header.payload_crc = base::Crc32c(0, payload);
  const std::string bytes = EncodeHeader(header);
  frame.replace(0, kHeaderSize, bytes);
  return frame;
}

template <typename Message>
absl::StatusOr<Message> DecodeMessage(absl::string_view payload) {
  Reader reader(payload);
  Message message;
  Visitor<Reader>{reader}(message);
  RETURN_IF_ERROR(reader.Finish());
  return message;
}

absl::Status CheckFile(const FileName& file) {
  if (file.size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return absl::InvalidArgumentError("a file of more than 2^63-1 bytes");
  }
  return absl::OkStatus();
}

// What is known of the payload of a frame before it is read; 0 for an unknown type.
enum class Shape : uint8_t { kUnknown, kEmpty, kMessage, kBytes };

Shape ShapeOf(FrameType type) {
  switch (type) {
    case FrameType::kHello:
    case FrameType::kWelcome:
    case FrameType::kError:
    case FrameType::kGet:
    case FrameType::kLoad:
    case FrameType::kDone:
    case FrameType::kIndex:
    case FrameType::kOpen:
    case FrameType::kOpened:
    case FrameType::kRelease:
    case FrameType::kPong:
      return Shape::kMessage;
    case FrameType::kCancel:
    case FrameType::kPing:
      return Shape::kEmpty;
    case FrameType::kData:
      return Shape::kBytes;
  }
  return Shape::kUnknown;
}

uint32_t LengthMax(Shape shape) {
  switch (shape) {
    case Shape::kMessage:
      return kMessageMax;
    case Shape::kBytes:
      return kDataMax;
    case Shape::kEmpty:
    case Shape::kUnknown:
      break;
  }
  return 0;
}

absl::Status CheckFlags(const Header& header, Shape shape) {
  constexpr uint8_t kDataFlags = kLast | kFromStore | kFromPeer;
  if ((header.flags & ~(shape == Shape::kBytes ? kDataFlags : 0)) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("unknown flags ", header.flags));
  }
  if (shape != Shape::kBytes) return absl::OkStatus();
  // Frames without bytes would cost a receiver work without end.
  if (header.length == 0 && (header.flags & kLast) == 0) {
    return absl::InvalidArgumentError("a frame of no bytes that is not the last");
  }
  if (header.offset > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) - header.length) {
    return absl::InvalidArgumentError("bytes beyond 2^63-1");
  }
  return absl::OkStatus();
}

}  // namespace

std::string EncodeHeader(const Header& header) {
  std::string bytes;
  bytes.reserve(kHeaderSize);
  Writer writer(&bytes);
  writer.Field(header.length);
  writer.Field(header.type);
  writer.Field(header.flags);
  writer.Field(uint16_t{0});
  writer.Field(header.request);
  writer.Field(header.offset);
  writer.Field(header.payload_crc);
  writer.Field(base::Crc32c(0, bytes));
  return bytes;
}

std::string Encode(uint64_t request, const Hello& message) {
  return EncodeMessage(request, FrameType::kHello, message);
}
std::string Encode(uint64_t request, const Welcome& message, FrameType type) {
  return EncodeMessage(request, type, message);
}
std::string Encode(uint64_t request, const Error& message) {
  if (message.message.size() <= kErrorTextMax) {
    return EncodeMessage(request, FrameType::kError, message);
  }
  Error cut = message;
  cut.message.resize(kErrorTextMax);
  return EncodeMessage(request, FrameType::kError, cut);
}
std::string Encode(uint64_t request, const Get& message, FrameType type) {
  return EncodeMessage(request, type, message);
}
std::string Encode(uint64_t request, const Done& message) {
  return EncodeMessage(request, FrameType::kDone, message);
}
std::string Encode(uint64_t request, const IndexGet& message) {
  return EncodeMessage(request, FrameType::kIndex, message);
}
std::string Encode(uint64_t request, const Open& message) {
  return EncodeMessage(request, FrameType::kOpen, message);
}
std::string Encode(uint64_t request, const Opened& message) {
  return EncodeMessage(request, FrameType::kOpened, message);
}
std::string Encode(uint64_t request, const Release& message) {
  return EncodeMessage(request, FrameType::kRelease, message);
}
std::string EncodeEmpty(uint64_t request, FrameType type) {
  Header header;
  header.type = type;
  header.request = request;
  return EncodeHeader(header);
}

absl::StatusOr<Header> DecodeHeader(absl::string_view bytes) {
  if (bytes.size() != kHeaderSize) return absl::InvalidArgumentError("a header that is cut short");
  Reader reader(bytes);
  Header header;
  uint16_t zero = 0;
  uint32_t crc = 0;
  reader.Field(header.length);
  reader.Field(header.type);
  reader.Field(header.flags);
  reader.Field(zero);
  reader.Field(header.request);
  reader.Field(header.offset);
  reader.Field(header.payload_crc);
  reader.Field(crc);
  RETURN_IF_ERROR(reader.Finish());
  if (crc != base::Crc32c(0, bytes.substr(0, kHeaderCrcAt))) {
    return absl::InvalidArgumentError("the header's checksum does not hold");
  }
  const Shape shape = ShapeOf(header.type);
  if (shape == Shape::kUnknown || zero != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown frame type ", static_cast<int>(header.type)));
  }
  if (header.length > LengthMax(shape)) {
    return absl::InvalidArgumentError(absl::StrFormat("%d bytes in a frame of type %d, at most %d",
                                                      header.length, static_cast<int>(header.type),
                                                      LengthMax(shape)));
  }
  if (shape != Shape::kBytes && header.offset != 0) {
    return absl::InvalidArgumentError("an offset in a frame that has none");
  }
  RETURN_IF_ERROR(CheckFlags(header, shape));
  return header;
}

absl::Status CheckPayload(const Header& header, absl::string_view payload) {
  if (payload.size() != header.length) return absl::DataLossError("a payload that is cut short");
  if (base::Crc32c(0, payload) != header.payload_crc) {
    return absl::DataLossError("the payload's checksum does not hold");
  }
  return absl::OkStatus();
}

absl::StatusOr<Hello> DecodeHello(absl::string_view payload) {
  return DecodeMessage<Hello>(payload);
}

absl::StatusOr<Welcome> DecodeWelcome(absl::string_view payload) {
  return DecodeMessage<Welcome>(payload);
}

absl::StatusOr<Error> DecodeError(absl::string_view payload) {
  ASSIGN_OR_RETURN(Error error, DecodeMessage<Error>(payload));
  if (error.code == 0 || error.code > static_cast<uint16_t>(absl::StatusCode::kUnauthenticated)) {
    return absl::InvalidArgumentError(absl::StrCat("unknown error code ", error.code));
  }
  return error;
}

absl::StatusOr<Get> DecodeGet(absl::string_view payload) {
  ASSIGN_OR_RETURN(Get get, DecodeMessage<Get>(payload));
  RETURN_IF_ERROR(CheckFile(get.file));
  if (get.length == 0 || get.offset > get.file.size || get.length > get.file.size - get.offset) {
    return absl::InvalidArgumentError("a range that is not within the file");
  }
  if (get.role > Role::kCached) return absl::InvalidArgumentError("unknown role");
  if (get.urgency > Urgency::kBulk) return absl::InvalidArgumentError("unknown urgency");
  return get;
}

absl::StatusOr<Done> DecodeDone(absl::string_view payload) { return DecodeMessage<Done>(payload); }

absl::StatusOr<IndexGet> DecodeIndexGet(absl::string_view payload) {
  return DecodeMessage<IndexGet>(payload);
}

absl::StatusOr<Open> DecodeOpen(absl::string_view payload) {
  ASSIGN_OR_RETURN(Open open, DecodeMessage<Open>(payload));
  RETURN_IF_ERROR(CheckFile(open.file));
  return open;
}

absl::StatusOr<Opened> DecodeOpened(absl::string_view payload) {
  return DecodeMessage<Opened>(payload);
}

absl::StatusOr<Release> DecodeRelease(absl::string_view payload) {
  return DecodeMessage<Release>(payload);
}

Error ToError(const absl::Status& status) {
  Error error;
  error.code = static_cast<uint16_t>(status.code());
  error.message = std::string(status.message());
  if (const auto payload = status.GetPayload(kRetryAfterPayload); payload.has_value()) {
    constexpr double kSecondsMax = 3600;
    double seconds = 0;
    if (absl::SimpleAtod(std::string(*payload), &seconds) && seconds > 0) {
      error.retry_after_ms = static_cast<uint64_t>(std::min(seconds, kSecondsMax) * 1000);
    }
  }
  return error;
}

absl::Status ToStatus(const Error& error) {
  absl::Status status(static_cast<absl::StatusCode>(error.code), error.message);
  if (error.retry_after_ms > 0) {
    status.SetPayload(kRetryAfterPayload,
                      absl::Cord(absl::StrCat(static_cast<double>(error.retry_after_ms) / 1000)));
  }
  return status;
}

}  // namespace millrace::proto
