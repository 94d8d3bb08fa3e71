#include "cache/pool/connection.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace millrace::pool {
namespace {

// A frame with its header, and the header of the next one: received with one call where the kernel
// has them.
constexpr size_t kBufferSize = proto::kHeaderSize + proto::kDataMax + proto::kHeaderSize;
// How often a waiting call looks at its clock and at who cancelled.
constexpr absl::Duration kTick = absl::Milliseconds(250);
constexpr absl::Duration kAskAfter = absl::Seconds(1);
constexpr absl::Duration kSendTimeout = absl::Seconds(5);
constexpr absl::Duration kComplaintTimeout = absl::Milliseconds(100);

// A payload up to this is received with its header and copied; a larger one is received where it
// belongs, with a call of its own.
constexpr size_t kCopiedMax = 16 * 1024;
constexpr size_t kIdMax = 256;

absl::Status CheckWelcome(const proto::Welcome& welcome) {
  if (welcome.worker.empty() || welcome.worker.size() > kIdMax) {
    return absl::InvalidArgumentError("a worker without a usable id");
  }
  if (welcome.extent_size == 0 || welcome.extent_size % proto::kDataMax != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a worker whose extents have ", welcome.extent_size, " bytes"));
  }
  return absl::OkStatus();
}

Outcome Transport(absl::Status status) { return {End::kTransport, std::move(status)}; }

}  // namespace

Connection::Connection(std::unique_ptr<net::Stream> stream, base::Clock* clock)
    : stream_(std::move(stream)), clock_(clock), buffer_(new char[kBufferSize]) {}

absl::StatusOr<std::unique_ptr<Connection>> Connection::Greet(std::unique_ptr<net::Stream> stream,
                                                              const proto::Hello& hello,
                                                              base::Clock* clock,
                                                              absl::Duration timeout,
                                                              proto::Welcome* welcome) {
  std::unique_ptr<Connection> connection(new Connection(std::move(stream), clock));
  const uint64_t request = connection->next_request_++;
  const Patience patience = {.deadline = clock->Monotonic() + timeout, .silence = timeout};
  Outcome outcome = connection->Send(proto::Encode(request, hello));
  absl::string_view payload;
  if (outcome.end == End::kDone) {
    outcome = connection->ReadAnswer(request, proto::FrameType::kWelcome, patience, &payload);
  }
  if (outcome.end == End::kCaller) return absl::DeadlineExceededError("no answer to HELLO");
  if (outcome.end != End::kDone) return outcome.status;
  ASSIGN_OR_RETURN(*welcome, proto::DecodeWelcome(payload));
  if (welcome->cluster != hello.cluster) {
    return absl::FailedPreconditionError(absl::StrCat("a worker of another cluster, \"",
                                                      welcome->cluster, "\" instead of \"",
                                                      hello.cluster, "\""));
  }
  RETURN_IF_ERROR(CheckWelcome(*welcome));
  return connection;
}

Outcome Connection::Send(absl::string_view frame) {
  if (frame.empty())
    return {End::kCaller, absl::InvalidArgumentError("a request that is too long")};
  absl::Status sent = stream_->Write(frame, kSendTimeout);
  if (sent.ok()) return {};
  usable_ = false;
  return Transport(std::move(sent));
}

Outcome Connection::Receive(char* to, size_t size, bool beyond, const Patience& patience,
                            base::UniqueFd* descriptor, size_t* received) {
  absl::Duration began;  // Looked up when the first tick has passed.
  absl::Duration asked;
  for (bool first = true;; first = false) {
    const absl::StatusOr<size_t> got =
        descriptor != nullptr ? stream_->ReadWithDescriptor(to, size, descriptor, kTick)
        : beyond ? stream_->ReadTwo({to, size}, {buffer_.get(), proto::kHeaderSize}, kTick)
                 : stream_->Read(to, size, kTick);
    if (got.ok() && *got > 0) {
      *received = std::min(*got, size);
      if (*got > size) {
        begin_ = 0;
        end_ = *got - size;
      }
      return {};
    }
    usable_ = false;
    if (got.ok()) return Transport(absl::UnavailableError("the worker closed the connection"));
    if (!absl::IsDeadlineExceeded(got.status())) return Transport(got.status());
    const absl::Duration now = clock_->Monotonic();
    if (patience.cancelled != nullptr && patience.cancelled->load(std::memory_order_relaxed)) {
      return {End::kCaller, absl::CancelledError("cancelled while a worker was asked")};
    }
    if (now >= patience.deadline) {
      return {End::kCaller, absl::DeadlineExceededError("no time left to wait for a worker")};
    }
    if (first) began = asked = now - kTick;
    if (now - began >= patience.silence) {
      return Transport(absl::DeadlineExceededError(
          absl::StrCat("no byte of an answer in ", absl::FormatDuration(patience.silence))));
    }
    if (patience.alive != nullptr && now - asked >= kAskAfter) {
      if (!(*patience.alive)()) {
        return Transport(absl::DeadlineExceededError("the worker does not answer any more"));
      }
      asked = clock_->Monotonic();
    }
    usable_ = true;
  }
}

Outcome Connection::Fill(size_t size, size_t more, const Patience& patience,
                         base::UniqueFd* descriptor) {
  if (begin_ == end_) {
    begin_ = end_ = 0;
  } else if (begin_ + size + more > kBufferSize) {
    // A header at most, but for workers whose frames are of odd sizes.
    std::memmove(buffer_.get(), buffer_.get() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  while (end_ - begin_ < size) {
    const size_t wanted = std::min(size + more - (end_ - begin_), kBufferSize - end_);
    size_t received = 0;
    Outcome outcome =
        Receive(buffer_.get() + end_, wanted, /*beyond=*/false, patience, descriptor, &received);
    if (outcome.end != End::kDone) return outcome;
    end_ += received;
  }
  return {};
}

Outcome Connection::Damaged(absl::string_view what) {
  usable_ = false;
  return {End::kDamaged, absl::DataLossError(what)};
}

Outcome Connection::AnsweredError(absl::string_view payload) {
  const absl::StatusOr<proto::Error> error = proto::DecodeError(payload);
  if (!error.ok()) return Damaged(error.status().message());
  return {End::kAnswered, proto::ToStatus(*error)};
}

Outcome Connection::ReadHeader(size_t more, const Patience& patience, proto::Header* header,
                               base::UniqueFd* descriptor) {
  Outcome outcome = Fill(proto::kHeaderSize, more, patience, descriptor);
  if (outcome.end != End::kDone) return outcome;
  const absl::StatusOr<proto::Header> decoded =
      proto::DecodeHeader({buffer_.get() + begin_, proto::kHeaderSize});
  if (!decoded.ok()) return Damaged(decoded.status().message());
  *header = *decoded;
  begin_ += proto::kHeaderSize;
  return {};
}

Outcome Connection::ReadPayload(const proto::Header& header, const store::BodyRoom* room,
                                const Patience& patience, absl::string_view* payload,
                                base::UniqueFd* descriptor) {
  // The next header comes with the payload, unless this frame is the last one.
  const bool ahead = header.type == proto::FrameType::kData && (header.flags & proto::kLast) == 0;
  absl::Span<char> direct;
  if (room != nullptr && header.length > kCopiedMax) direct = (*room)();
  if (direct.size() >= header.length && header.length > 0) {
    size_t have = std::min<size_t>(header.length, end_ - begin_);
    std::memcpy(direct.data(), buffer_.get() + begin_, have);
    begin_ += have;
    while (have < header.length) {
      size_t received = 0;
      Outcome outcome = Receive(direct.data() + have, header.length - have, ahead, patience,
                                descriptor, &received);
      if (outcome.end != End::kDone) return outcome;
      have += received;
    }
    *payload = {direct.data(), header.length};
  } else {
    Outcome outcome = Fill(header.length, ahead ? proto::kHeaderSize : 0, patience, descriptor);
    if (outcome.end != End::kDone) return outcome;
    *payload = {buffer_.get() + begin_, header.length};
    begin_ += header.length;
  }
  if (absl::Status whole = proto::CheckPayload(header, *payload); !whole.ok()) {
    // The worker looks at its block again. It may not hear it: then somebody else will tell.
    static_cast<void>(
        stream_->Write(proto::Encode(header.request, proto::ToError(whole)), kComplaintTimeout));
    return Damaged(whole.message());
  }
  return {};
}

Outcome Connection::ReadAnswer(uint64_t request, proto::FrameType type, const Patience& patience,
                               absl::string_view* payload, base::UniqueFd* descriptor) {
  proto::Header header;
  Outcome outcome = ReadHeader(/*more=*/0, patience, &header, descriptor);
  if (outcome.end == End::kDone) {
    outcome = ReadPayload(header, nullptr, patience, payload, descriptor);
  }
  if (outcome.end != End::kDone) return outcome;
  if (header.type == proto::FrameType::kError) {
    outcome = AnsweredError(*payload);
    // An error of the connection itself: the worker closes.
    if (header.request != request) usable_ = false;
    return outcome;
  }
  if (header.type != type || header.request != request) return Damaged("not the answer to this");
  return {};
}

Outcome Connection::ReadData(uint64_t request, uint64_t offset, uint64_t size, bool exact,
                             const store::BodyRoom* room, FrameSink sink,
                             const Patience& patience) {
  while (true) {
    proto::Header header;
    absl::string_view payload;
    const size_t expected = std::min<uint64_t>(size, proto::kDataMax);
    // What goes to a reader's room at once must not be in the buffer before.
    const size_t more = room != nullptr && expected > kCopiedMax
                            ? 0
                            : expected + (size > expected ? proto::kHeaderSize : 0);
    Outcome outcome = ReadHeader(more, patience, &header, nullptr);
    if (outcome.end != End::kDone) return outcome;
    // Looked at before anything is put into the reader's room.
    if (header.type == proto::FrameType::kData &&
        (header.request != request || header.offset != offset || header.length > size)) {
      return Damaged("bytes that were not asked for");
    }
    outcome = ReadPayload(header, header.type == proto::FrameType::kData ? room : nullptr, patience,
                          &payload, nullptr);
    if (outcome.end != End::kDone) return outcome;
    if (header.type == proto::FrameType::kError) {
      outcome = AnsweredError(payload);
      if (header.request != request) usable_ = false;
      return outcome;
    }
    const bool last = (header.flags & proto::kLast) != 0;
    if (header.type != proto::FrameType::kData) return Damaged("not the answer to this");
    offset += header.length;
    size -= header.length;
    if (exact && last != (size == 0)) return Damaged("not as many bytes as were asked for");
    if (header.length > 0 && !sink(payload, header.flags)) {
      usable_ = usable_ && last;
      return {End::kCaller, absl::CancelledError("the reader stopped the transfer")};
    }
    if (last) return {};
    // A worker that trickles is not silent.
    if (patience.cancelled != nullptr && patience.cancelled->load(std::memory_order_relaxed)) {
      usable_ = false;
      return {End::kCaller, absl::CancelledError("cancelled while a worker answered")};
    }
    if (clock_->Monotonic() >= patience.deadline) {
      usable_ = false;
      return {End::kCaller, absl::DeadlineExceededError("no time left to wait for a worker")};
    }
  }
}

Outcome Connection::Get(const proto::Get& get, const store::BodyRoom* room, FrameSink sink,
                        const Patience& patience) {
  const uint64_t request = next_request_++;
  Outcome outcome = Send(proto::Encode(request, get));
  if (outcome.end != End::kDone) return outcome;
  return ReadData(request, get.offset, get.length, /*exact=*/true, room, sink, patience);
}

Outcome Connection::Index(const proto::IndexGet& get, uint64_t size_max, FrameSink sink,
                          const Patience& patience) {
  const uint64_t request = next_request_++;
  Outcome outcome = Send(proto::Encode(request, get));
  if (outcome.end != End::kDone) return outcome;
  return ReadData(request, 0, size_max, /*exact=*/false, nullptr, sink, patience);
}

Outcome Connection::Load(const proto::Get& get, const Patience& patience, proto::Done* done) {
  const uint64_t request = next_request_++;
  Outcome outcome = Send(proto::Encode(request, get, proto::FrameType::kLoad));
  absl::string_view payload;
  if (outcome.end == End::kDone) {
    outcome = ReadAnswer(request, proto::FrameType::kDone, patience, &payload);
  }
  if (outcome.end != End::kDone) return outcome;
  absl::StatusOr<proto::Done> decoded = proto::DecodeDone(payload);
  if (!decoded.ok()) return Damaged(decoded.status().message());
  *done = *decoded;
  return {};
}

Outcome Connection::Open(const proto::FileName& file, const Patience& patience,
                         proto::Opened* opened, base::UniqueFd* descriptor) {
  const uint64_t request = next_request_++;
  Outcome outcome = Send(proto::Encode(request, proto::Open{file}));
  absl::string_view payload;
  if (outcome.end == End::kDone) {
    outcome = ReadAnswer(request, proto::FrameType::kOpened, patience, &payload, descriptor);
  }
  if (outcome.end != End::kDone) return outcome;
  absl::StatusOr<proto::Opened> decoded = proto::DecodeOpened(payload);
  if (!decoded.ok()) return Damaged(decoded.status().message());
  if (!descriptor->valid()) return Damaged("OPENED without a descriptor");
  *opened = *decoded;
  return {};
}

Outcome Connection::Ping(const Patience& patience, proto::Welcome* welcome) {
  const uint64_t request = next_request_++;
  Outcome outcome = Send(proto::EncodeEmpty(request, proto::FrameType::kPing));
  absl::string_view payload;
  if (outcome.end == End::kDone) {
    outcome = ReadAnswer(request, proto::FrameType::kPong, patience, &payload);
  }
  if (outcome.end != End::kDone) return outcome;
  absl::StatusOr<proto::Welcome> decoded = proto::DecodeWelcome(payload);
  if (!decoded.ok()) return Damaged(decoded.status().message());
  if (absl::Status checked = CheckWelcome(*decoded); !checked.ok()) {
    return Damaged(checked.message());
  }
  *welcome = *std::move(decoded);
  return {};
}

absl::Status Connection::Release(uint64_t lease) {
  return Send(proto::Encode(next_request_++, proto::Release{lease})).status;
}

}  // namespace millrace::pool
