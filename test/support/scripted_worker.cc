#include "test/support/scripted_worker.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/crc32c.h"
#include "common/net/socket.h"
#include "test/support/pattern_store.h"

namespace millrace::test {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);

}  // namespace

struct ScriptedWorker::Served {
  base::UniqueFd socket;
  std::unique_ptr<net::Stream> stream;  // Guarded by mutex_ until it is set.
  std::thread thread;
};

proto::Welcome ScriptedWorker::WelcomeOf(const std::string& id, uint64_t extent_size) {
  proto::Welcome welcome;
  welcome.cluster = "millrace";
  welcome.worker = id;
  welcome.capacity_bytes = 1 << 30;
  welcome.extent_size = extent_size;
  return welcome;
}

ScriptedWorker::ScriptedWorker(Options options)
    : options_(std::move(options)), address_(options_.address), welcome_(options_.welcome) {
  Start();
}

ScriptedWorker::~ScriptedWorker() { Kill(); }

void ScriptedWorker::Start() {
  absl::StatusOr<base::UniqueFd> listener = net::Listen(address_, {});
  if (!listener.ok()) std::abort();
  listener_ = *std::move(listener);
  if (!address_.is_unix()) address_ = *net::LocalAddress(listener_.get());
  {
    base::MutexLock lock(&mutex_);
    stopping_ = false;
  }
  acceptor_ = std::thread([this] { Accept(); });
}

void ScriptedWorker::Kill() {
  if (!acceptor_.joinable()) return;
  std::vector<std::unique_ptr<Served>> served;
  {
    base::MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.NotifyAll();
    for (const auto& each : served_) {
      if (each->stream != nullptr) each->stream->Shutdown();
    }
  }
  shutdown(listener_.get(), SHUT_RDWR);  // Wakes poll.
  acceptor_.join();
  listener_.Reset();
  {
    base::MutexLock lock(&mutex_);
    served.swap(served_);
  }
  for (const auto& each : served) each->thread.join();
}

void ScriptedWorker::Accept() {
  while (true) {
    pollfd waited = {listener_.get(), POLLIN, 0};
    poll(&waited, 1, -1);
    absl::StatusOr<std::optional<base::UniqueFd>> socket = net::Accept(listener_.get());
    base::MutexLock lock(&mutex_);
    if (stopping_) return;
    if (!socket.ok() || !socket->has_value()) continue;
    connections_.fetch_add(1);
    served_.push_back(std::make_unique<Served>());
    Served* const mine = served_.back().get();
    mine->socket = *std::move(*socket);
    if (options_.tls == nullptr) mine->stream = net::PlainStream(std::move(mine->socket));
    mine->thread = std::thread([this, mine] { Serve(mine); });
  }
}

void ScriptedWorker::Serve(Served* served) {
  if (options_.tls != nullptr) {
    absl::StatusOr<std::unique_ptr<net::Stream>> stream =
        options_.tls->Accept(std::move(served->socket), absl::Seconds(5));
    if (!stream.ok()) return;
    base::MutexLock lock(&mutex_);
    served->stream = *std::move(stream);
    if (stopping_) return;
  }
  net::Stream& stream = *served->stream;
  std::string bytes(proto::kHeaderSize, '\0');
  std::string payload;
  while (true) {
    if (!stream.ReadFully(bytes.data(), bytes.size(), kPatience).ok()) break;
    const absl::StatusOr<proto::Header> header = proto::DecodeHeader(bytes);
    if (!header.ok()) break;
    payload.resize(header->length);
    if (!stream.ReadFully(payload.data(), payload.size(), kPatience).ok()) break;
    if (!proto::CheckPayload(*header, payload).ok()) break;
    if (mischief() == Mischief::kFrozen) continue;
    if (!Answer(stream, *header, payload)) break;
  }
  stream.Shutdown();
}

bool ScriptedWorker::Answer(net::Stream& stream, const proto::Header& header,
                            absl::string_view payload) {
  const uint64_t request = header.request;
  switch (header.type) {
    case proto::FrameType::kHello:
    case proto::FrameType::kPing: {
      base::MutexLock lock(&mutex_);
      const proto::FrameType type = header.type == proto::FrameType::kHello
                                        ? proto::FrameType::kWelcome
                                        : proto::FrameType::kPong;
      return stream.Write(proto::Encode(request, welcome_, type), kPatience).ok();
    }
    case proto::FrameType::kRelease: {
      base::MutexLock lock(&mutex_);
      released_.push_back(proto::DecodeRelease(payload)->lease);
      changed_.NotifyAll();
      return true;
    }
    case proto::FrameType::kError: {
      base::MutexLock lock(&mutex_);
      const absl::StatusOr<proto::Error> error = proto::DecodeError(payload);
      complaints_ += error.ok() && absl::IsDataLoss(proto::ToStatus(*error)) ? 1 : 0;
      changed_.NotifyAll();
      return false;
    }
    case proto::FrameType::kOpen:
      return AnswerOpen(stream, request);
    case proto::FrameType::kGet: {
      const absl::StatusOr<proto::Get> get = proto::DecodeGet(payload);
      if (!get.ok()) return false;
      {
        base::MutexLock lock(&mutex_);
        gets_.push_back(*get);
        changed_.NotifyAll();
      }
      return AnswerGet(stream, request, *get);
    }
    case proto::FrameType::kLoad: {
      const absl::StatusOr<proto::Get> get = proto::DecodeGet(payload);
      if (!get.ok()) return false;
      loads_.fetch_add(1);
      return stream
          .Write(proto::Encode(request, proto::Done{get->length, get->length / 2}), kPatience)
          .ok();
    }
    case proto::FrameType::kIndex: {
      const std::string text = absl::StrCat("index of ", proto::DecodeIndexGet(payload)->source);
      proto::Header data;
      data.type = proto::FrameType::kData;
      data.flags = proto::kLast;
      data.request = request;
      data.length = static_cast<uint32_t>(text.size());
      data.payload_crc = base::Crc32c(0, text);
      return stream.WriteParts({proto::EncodeHeader(data), text}, false, kPatience).ok();
    }
    default:
      return false;
  }
}

bool ScriptedWorker::AnswerOpen(net::Stream& stream, uint64_t request) {
  base::MutexLock lock(&mutex_);
  if (!file_.valid()) {
    return stream
        .Write(proto::Encode(request, proto::ToError(absl::NotFoundError("not complete"))),
               kPatience)
        .ok();
  }
  if (mischief() == Mischief::kSilent) return true;
  const std::string answer = proto::Encode(request, proto::Opened{request});
  if (mischief() == Mischief::kDescriptorMissing) return stream.Write(answer, kPatience).ok();
  return stream.WriteWithDescriptor(answer, file_.get(), kPatience).ok();
}

bool ScriptedWorker::AnswerGet(net::Stream& stream, uint64_t request, const proto::Get& get) {
  const Mischief mischief = this->mischief();
  absl::Status error;
  {
    base::MutexLock lock(&mutex_);
    error = error_;
  }
  const auto send_error = [&] {
    return stream.Write(proto::Encode(request, proto::ToError(error)), kPatience).ok();
  };
  if (mischief == Mischief::kSilent) return true;
  if (mischief == Mischief::kError) return send_error();
  if (mischief == Mischief::kGarbage) {
    return stream.Write(std::string(4096, '\xa5'), kPatience).ok();
  }
  uint64_t length = get.length;
  if (mischief == Mischief::kTooMuch) ++length;
  if (mischief == Mischief::kTooLittle) --length;
  const uint64_t half = (length + 1) / 2;
  const uint64_t frame_max = mischief == Mischief::kTrickle ? 1000 : proto::kDataMax;
  for (uint64_t sent = 0; sent < length;) {
    uint64_t size = std::min(length - sent, frame_max);
    const bool halfway = mischief == Mischief::kClosesEarly || mischief == Mischief::kErrorMidway;
    if (halfway) size = std::min(size, half - sent);
    const bool last = sent + size == length;
    std::string bytes = PatternBytes(get.file.path, get.file.version, get.offset + sent, size);
    proto::Header header;
    header.type = proto::FrameType::kData;
    header.flags = static_cast<uint8_t>(flags_.load() | (last ? proto::kLast : 0));
    header.request = request + (mischief == Mischief::kWrongRequest ? 1 : 0);
    header.offset = get.offset + sent + (mischief == Mischief::kWrongOffset ? 1 : 0);
    header.length = static_cast<uint32_t>(size);
    header.payload_crc = base::Crc32c(0, bytes);
    if (mischief == Mischief::kUnknownFrame) header.type = proto::FrameType::kPong;
    if (mischief == Mischief::kDamagedPayload && last) bytes.back() ^= 1;
    std::string head = proto::EncodeHeader(header);
    if (mischief == Mischief::kDamagedHeader) head[9] ^= 1;
    if (!stream.WriteParts({head, bytes}, false, kPatience).ok()) return false;
    sent += size;
    if (halfway && sent == half) {
      return mischief == Mischief::kErrorMidway && send_error();
    }
  }
  return true;
}

void ScriptedWorker::Do(Mischief mischief, absl::Status error) {
  base::MutexLock lock(&mutex_);
  error_ = std::move(error);
  mischief_.store(mischief);
}

void ScriptedWorker::SetWelcome(const proto::Welcome& welcome) {
  base::MutexLock lock(&mutex_);
  welcome_ = welcome;
}

void ScriptedWorker::SetFile(base::UniqueFd file) {
  base::MutexLock lock(&mutex_);
  file_ = std::move(file);
}

std::vector<proto::Get> ScriptedWorker::requests() const {
  base::MutexLock lock(&mutex_);
  return gets_;
}

std::vector<uint64_t> ScriptedWorker::released() const {
  base::MutexLock lock(&mutex_);
  return released_;
}

bool ScriptedWorker::AwaitComplaint() const {
  base::MutexLock lock(&mutex_);
  for (int i = 0; i < 2000 && complaints_ == 0; ++i) {
    changed_.WaitFor(&mutex_, absl::Milliseconds(10));
  }
  return complaints_ > 0;
}

bool ScriptedWorker::AwaitReleased(size_t count) const {
  base::MutexLock lock(&mutex_);
  for (int i = 0; i < 2000 && released_.size() < count; ++i) {
    changed_.WaitFor(&mutex_, absl::Milliseconds(10));
  }
  return released_.size() >= count;
}

}  // namespace millrace::test
