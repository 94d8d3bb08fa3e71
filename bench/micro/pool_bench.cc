// What asking a worker costs its client, beside the least that the same bytes cost over loopback:
// a ping-pong of the same sizes, and a sendfile/recv pair. The worker is a thread that sends frames
// made before, so that nothing but the client is measured. And what placement costs.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "cache/pool/placement.h"
#include "cache/pool/pool.h"
#include "common/base/crc32c.h"
#include "common/net/socket.h"
#include "common/net/stream.h"
#include "common/proto/data_protocol.h"

namespace millrace {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr uint64_t kFileSize = uint64_t{1} << 40;
constexpr uint64_t kStreamBytes = 16 << 20;

void BM_Rank(benchmark::State& state) {
  std::vector<pool::PlacedMember> members;
  for (int64_t i = 0; i < state.range(0); ++i) {
    members.push_back({absl::StrCat("worker-", i), 1 << 30});
  }
  uint64_t extent = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        pool::Rank(members, "s3://bucket", "some/directory/object.tar", ++extent));
  }
}
BENCHMARK(BM_Rank)->Arg(1)->Arg(3)->Arg(10)->Arg(100);

// Serves one connection after the other, each on a thread, with `serve`.
class Server {
 public:
  explicit Server(void (*serve)(net::Stream&, int file))
      : listener_(*net::Listen({"127.0.0.1", 0, ""}, {})), file_(memfd_create("pool_bench", 0)) {
    const std::string block(proto::kDataMax, 'x');
    if (write(file_.get(), block.data(), block.size()) < 0) std::abort();
    thread_ = std::thread([this, serve] {
      while (!stopping_) {
        absl::StatusOr<std::optional<base::UniqueFd>> socket = net::Accept(listener_.get());
        if (!socket.ok()) return;
        if (!socket->has_value()) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
          continue;
        }
        serving_.emplace_back([this, serve, fd = std::move(**socket)]() mutable {
          const std::unique_ptr<net::Stream> stream = net::PlainStream(std::move(fd));
          serve(*stream, file_.get());
        });
      }
    });
  }
  ~Server() {
    stopping_ = true;
    thread_.join();
    for (std::thread& each : serving_) each.join();
  }
  std::string address() const { return net::LocalAddress(listener_.get())->ToString(); }

 private:
  const base::UniqueFd listener_;
  const base::UniqueFd file_;
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> serving_;  // The acceptor's, until it ended.
  std::thread thread_;
};

uint32_t ChecksumOf(uint32_t size) {
  static const uint32_t whole = base::Crc32c(0, std::string(proto::kDataMax, 'x'));
  return size == proto::kDataMax ? whole : base::Crc32c(0, std::string(size, 'x'));
}

void ServeFrames(net::Stream& stream, int file) {
  std::string bytes(proto::kHeaderSize, '\0');
  const std::string small(4096, 'x');
  const uint32_t small_crc = ChecksumOf(4096);
  while (stream.ReadFully(bytes.data(), bytes.size(), kPatience).ok()) {
    const proto::Header header = *proto::DecodeHeader(bytes);
    std::string payload(header.length, '\0');
    if (!stream.ReadFully(payload.data(), payload.size(), kPatience).ok()) return;
    if (header.type != proto::FrameType::kGet) {
      proto::Welcome welcome;
      welcome.cluster = "millrace";
      welcome.worker = "bench";
      welcome.extent_size = kFileSize;
      const bool ping = header.type == proto::FrameType::kPing;
      const auto type = ping ? proto::FrameType::kPong : proto::FrameType::kWelcome;
      if (!stream.Write(proto::Encode(header.request, welcome, type), kPatience).ok()) return;
      continue;
    }
    const proto::Get get = *proto::DecodeGet(payload);
    for (uint64_t sent = 0; sent < get.length;) {
      proto::Header data;
      data.type = proto::FrameType::kData;
      data.request = header.request;
      data.offset = get.offset + sent;
      data.length = static_cast<uint32_t>(std::min<uint64_t>(get.length - sent, proto::kDataMax));
      data.payload_crc = data.length == 4096 ? small_crc : ChecksumOf(data.length);
      sent += data.length;
      if (sent == get.length) data.flags = proto::kLast;
      const std::string head = proto::EncodeHeader(data);
      const bool done = data.length == 4096
                            ? stream.WriteParts({head, small}, false, kPatience).ok()
                            : stream.WriteParts({head}, true, kPatience).ok() &&
                                  stream.SendFile(file, 0, data.length, false, kPatience).ok();
      if (!done) return;
    }
  }
}

// Answers 8 bytes, how many, with so many.
void ServeRaw(net::Stream& stream, int file) {
  const std::string small(4096 + proto::kHeaderSize, 'x');
  uint64_t wanted = 0;
  while (stream.ReadFully(reinterpret_cast<char*>(&wanted), sizeof(wanted), kPatience).ok()) {
    if (wanted == small.size()) {
      if (!stream.Write(small, kPatience).ok()) return;
      continue;
    }
    for (uint64_t sent = 0; sent < wanted; sent += proto::kDataMax) {
      if (!stream.SendFile(file, 0, proto::kDataMax, false, kPatience).ok()) return;
    }
  }
}

class NoStore final : public store::Store {
 public:
  absl::string_view kind() const override { return "none"; }
  absl::StatusOr<store::ListPage> List(const std::string&, const std::string&, size_t,
                                       const store::CallOptions&) override {
    return absl::UnimplementedError("none");
  }
  absl::StatusOr<store::Entry> Stat(const std::string&, const store::CallOptions&) override {
    return absl::UnimplementedError("none");
  }
  absl::StatusOr<std::vector<store::Entry>> Sample(size_t, const store::CallOptions&) override {
    return absl::UnimplementedError("none");
  }
  absl::Status Get(const store::GetRequest&, store::BodySink, const store::CallOptions&) override {
    return absl::UnimplementedError("none");
  }
};

void GetThroughPool(benchmark::State& state, uint64_t size) {
  Server server(&ServeFrames);
  {
    pool::PoolOptions options;
    options.workers = {server.address()};
    const std::unique_ptr<pool::Pool> pool = *pool::Pool::Create(options);
    const std::shared_ptr<store::Store> source =
        pool->Wrap("bench://", std::make_shared<NoStore>());
    std::string block(proto::kDataMax, '\0');
    const auto room = [&] { return absl::MakeSpan(block.data(), block.size()); };
    const store::BodyRoom room_ref = room;
    store::GetRequest request;
    request.path = "some/directory/object.tar";
    request.version = "v1";
    request.file_size = kFileSize;
    request.length = size;
    request.room = &room_ref;
    for (auto _ : state) {
      const absl::Status got = source->Get(request, [](absl::string_view) { return true; }, {});
      if (!got.ok()) state.SkipWithError(std::string(got.message()).c_str());
    }
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(size));
}

void ReceiveRaw(benchmark::State& state, uint64_t size) {
  Server server(&ServeRaw);
  {
    const std::unique_ptr<net::Stream> stream =
        net::PlainStream(*net::Connect(*net::ParseAddress(server.address()), kPatience));
    std::string buffer(proto::kDataMax, '\0');
    for (auto _ : state) {
      const absl::string_view ask(reinterpret_cast<const char*>(&size), sizeof(size));
      bool well = stream->Write(ask, kPatience).ok();
      for (uint64_t left = size; left > 0 && well;) {
        const absl::StatusOr<size_t> got =
            stream->Read(buffer.data(), std::min<uint64_t>(left, buffer.size()), kPatience);
        well = got.ok() && *got > 0;
        if (well) left -= *got;
      }
      if (!well) state.SkipWithError("the connection broke");
    }
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(size));
}

void BM_Get4KiB(benchmark::State& state) { GetThroughPool(state, 4096); }
BENCHMARK(BM_Get4KiB)->UseRealTime();
void BM_PingPong4KiB(benchmark::State& state) { ReceiveRaw(state, 4096 + proto::kHeaderSize); }
BENCHMARK(BM_PingPong4KiB)->UseRealTime();
void BM_GetStream(benchmark::State& state) { GetThroughPool(state, kStreamBytes); }
BENCHMARK(BM_GetStream)->UseRealTime();
void BM_SendFilePair(benchmark::State& state) { ReceiveRaw(state, kStreamBytes); }
BENCHMARK(BM_SendFilePair)->UseRealTime();

}  // namespace
}  // namespace millrace
