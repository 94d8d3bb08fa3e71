// A client of the data port that says what a test wants it to, right or wrong, and sees what comes
// back frame by frame. Not thread-safe.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/unique_fd.h"
#include "common/net/socket.h"
#include "common/net/stream.h"
#include "common/proto/data_protocol.h"

namespace millrace::test {

struct RawFrame {
  proto::Header header;
  std::string payload;
};

class RawClient {
 public:
  static constexpr absl::Duration kTimeout = absl::Seconds(20);

  explicit RawClient(const net::Address& address) {
    absl::StatusOr<base::UniqueFd> socket = net::Connect(address, kTimeout);
    if (socket.ok()) stream_ = net::PlainStream(*std::move(socket));
  }
  explicit RawClient(std::unique_ptr<net::Stream> stream) : stream_(std::move(stream)) {}

  bool connected() const { return stream_ != nullptr; }
  net::Stream& stream() { return *stream_; }

  absl::Status Send(absl::string_view bytes) { return stream_->Write(bytes, kTimeout); }

  // The next frame, whose checksums hold. Unavailable: the worker closed.
  absl::StatusOr<RawFrame> Receive(base::UniqueFd* descriptor = nullptr) {
    RawFrame frame;
    std::string header(proto::kHeaderSize, '\0');
    if (descriptor != nullptr) {
      // It comes with the first byte.
      absl::StatusOr<size_t> got =
          stream_->ReadWithDescriptor(header.data(), 1, descriptor, kTimeout);
      if (!got.ok()) return got.status();
      if (*got == 0) return absl::UnavailableError("closed");
    }
    const size_t have = descriptor != nullptr ? 1 : 0;
    absl::Status status = stream_->ReadFully(header.data() + have, header.size() - have, kTimeout);
    if (!status.ok()) return status;
    absl::StatusOr<proto::Header> decoded = proto::DecodeHeader(header);
    if (!decoded.ok()) return decoded.status();
    frame.header = *decoded;
    frame.payload.resize(frame.header.length);
    status = stream_->ReadFully(frame.payload.data(), frame.payload.size(), kTimeout);
    if (!status.ok()) return status;
    status = proto::CheckPayload(frame.header, frame.payload);
    if (!status.ok()) return status;
    return frame;
  }

  absl::StatusOr<proto::Welcome> Greet(const std::string& cluster = "millrace",
                                       const std::string& peer = "raw") {
    proto::Hello hello;
    hello.cluster = cluster;
    hello.peer = peer;
    absl::Status status = Send(proto::Encode(next_++, hello));
    if (!status.ok()) return status;
    absl::StatusOr<RawFrame> frame = Receive();
    if (!frame.ok()) return frame.status();
    if (frame->header.type == proto::FrameType::kError) return ErrorOf(*frame);
    return proto::DecodeWelcome(frame->payload);
  }

  uint64_t NextId() { return next_++; }

  // The bytes of a range, put together. `flags` gets all flags that were seen.
  absl::StatusOr<std::string> Get(const proto::Get& get, uint8_t* flags = nullptr) {
    const uint64_t id = next_++;
    absl::Status status = Send(proto::Encode(id, get));
    if (!status.ok()) return status;
    return ReceiveBytes(id, get.offset, flags);
  }

  absl::StatusOr<std::string> ReceiveBytes(uint64_t id, uint64_t offset, uint8_t* flags = nullptr) {
    std::string bytes;
    while (true) {
      absl::StatusOr<RawFrame> frame = Receive();
      if (!frame.ok()) return frame.status();
      if (frame->header.type == proto::FrameType::kError) return ErrorOf(*frame);
      if (frame->header.type != proto::FrameType::kData || frame->header.request != id ||
          frame->header.offset != offset + bytes.size()) {
        return absl::DataLossError("not the next bytes of this request");
      }
      bytes += frame->payload;
      if (flags != nullptr) *flags |= frame->header.flags;
      if ((frame->header.flags & proto::kLast) != 0) return bytes;
    }
  }

  absl::StatusOr<proto::Done> Load(const proto::Get& get) {
    absl::Status status = Send(proto::Encode(next_++, get, proto::FrameType::kLoad));
    if (!status.ok()) return status;
    absl::StatusOr<RawFrame> frame = Receive();
    if (!frame.ok()) return frame.status();
    if (frame->header.type == proto::FrameType::kError) return ErrorOf(*frame);
    return proto::DecodeDone(frame->payload);
  }

  // The error that the frame tells; Internal if it is another frame.
  static absl::Status ErrorOf(const RawFrame& frame) {
    if (frame.header.type != proto::FrameType::kError) {
      return absl::InternalError("a frame that is no error");
    }
    absl::StatusOr<proto::Error> error = proto::DecodeError(frame.payload);
    return error.ok() ? proto::ToStatus(*error) : error.status();
  }

  // True if nothing but one ERROR comes any more, and the end.
  bool IsRefused(absl::Status* why) {
    absl::StatusOr<RawFrame> frame = Receive();
    if (!frame.ok() || frame->header.type != proto::FrameType::kError) return false;
    *why = ErrorOf(*frame);
    return absl::IsUnavailable(Receive().status());
  }

 private:
  std::unique_ptr<net::Stream> stream_;
  uint64_t next_ = 1;
};

}  // namespace millrace::test
