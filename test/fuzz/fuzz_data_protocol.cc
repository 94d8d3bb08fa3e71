// Fuzzes the frames of the data port: whatever a peer sends is input. The header is decoded as it
// is, and once more with a checksum that holds, so that mutations reach what lies behind it; the
// payload as every message.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/string_view.h"
#include "common/base/crc32c.h"
#include "common/proto/data_protocol.h"

namespace {

namespace proto = millrace::proto;

// What decodes is written again as the very bytes it came from.
template <typename Message>
void CheckMessage(absl::StatusOr<Message> (*decode)(absl::string_view), absl::string_view payload) {
  const absl::StatusOr<Message> message = decode(payload);
  if (!message.ok()) return;
  const std::string frame = proto::Encode(1, *message);
  if (frame.size() < proto::kHeaderSize) __builtin_trap();
  const bool cut = payload.size() > 1024;  // The text of an error.
  if (!cut && absl::string_view(frame).substr(proto::kHeaderSize) != payload) __builtin_trap();
}

void CheckHeader(absl::string_view bytes, absl::string_view payload) {
  const absl::StatusOr<proto::Header> header = proto::DecodeHeader(bytes);
  if (!header.ok()) return;
  if (header->length > std::max(proto::kDataMax, proto::kMessageMax)) __builtin_trap();
  if (proto::EncodeHeader(*header) != bytes) __builtin_trap();
  if (proto::CheckPayload(*header, payload).ok() && payload.size() != header->length) {
    __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  std::string header(input.substr(0, proto::kHeaderSize));
  const absl::string_view payload =
      input.size() > proto::kHeaderSize ? input.substr(proto::kHeaderSize) : absl::string_view();
  CheckHeader(header, payload);
  if (header.size() == proto::kHeaderSize) {
    const uint32_t crc = millrace::base::Crc32c(0, absl::string_view(header).substr(0, 28));
    std::memcpy(header.data() + 28, &crc, sizeof(crc));
    CheckHeader(header, payload);
  }
  if (payload.size() > proto::kMessageMax) return 0;
  CheckMessage<proto::Hello>(proto::DecodeHello, payload);
  CheckMessage<proto::Welcome>(proto::DecodeWelcome, payload);
  CheckMessage<proto::Get>(proto::DecodeGet, payload);
  if (const auto get = proto::DecodeGet(payload); get.ok()) {
    if (get->length > get->file.size || get->offset > get->file.size - get->length) {
      __builtin_trap();
    }
  }
  if (const auto error = proto::DecodeError(payload); error.ok() && proto::ToStatus(*error).ok()) {
    __builtin_trap();
  }
  CheckMessage<proto::Error>(proto::DecodeError, payload);
  CheckMessage<proto::Done>(proto::DecodeDone, payload);
  CheckMessage<proto::IndexGet>(proto::DecodeIndexGet, payload);
  CheckMessage<proto::Open>(proto::DecodeOpen, payload);
  CheckMessage<proto::Opened>(proto::DecodeOpened, payload);
  CheckMessage<proto::Release>(proto::DecodeRelease, payload);
  return 0;
}
