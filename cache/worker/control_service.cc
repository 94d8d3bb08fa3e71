#include "cache/worker/control_service.h"

#include <atomic>
#include <chrono>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/proto/grpc_transport.h"
#include "common/proto/worker.grpc.pb.h"
#include "common/proto/worker_messages.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/server_context.h"

namespace millrace::worker {
namespace {

namespace wire = proto::wire;

// A request has no more than some paths in it.
constexpr int kRequestBytesMax = 1 << 20;
constexpr size_t kMemoryMax = 32 << 20;  // gRPC's own, for all connections.
constexpr int kStreamsOfConnectionMax = 64;
constexpr int kThreadsBesideStreams = 32;
constexpr absl::Duration kKeepAliveEvery = absl::Seconds(30);
constexpr absl::Duration kKeepAliveTimeout = absl::Seconds(10);
constexpr absl::Duration kPingsApart = absl::Seconds(10);  // A client that is faster is sent away.
constexpr absl::Duration kConnectionIdleMax = absl::Minutes(5);

int Milliseconds(absl::Duration duration) {
  return static_cast<int>(absl::ToInt64Milliseconds(duration));
}

class GrpcControlService final : public ControlService, private wire::Worker::Service {
 public:
  GrpcControlService(const ControlOptions& options, Worker* worker)
      : options_(options), worker_(worker) {}

  ~GrpcControlService() override {
    stopping_.store(true, std::memory_order_relaxed);
    // A deadline in the past: calls are cancelled at once, not waited for first.
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }

  absl::Status Listen() {
    proto::UseOurLog();
    ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials,
                     proto::ServerCredentials({options_.certificate, options_.key,
                                               options_.authority, options_.look_every}));
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    const std::string address = absl::StartsWith(options_.address, ":")
                                    ? absl::StrCat("[::]", options_.address)
                                    : options_.address;
    builder.AddListeningPort(address, credentials, &port_);
    builder.RegisterService(static_cast<wire::Worker::Service*>(this));
    // Without it a second worker would listen at the same port, and get every other connection.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kStreamsOfConnectionMax);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(kKeepAliveEvery));
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(kKeepAliveTimeout));
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                               Milliseconds(kPingsApart));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, Milliseconds(kConnectionIdleMax));
    builder.SetMaxReceiveMessageSize(kRequestBytesMax);
    grpc::ResourceQuota quota("control");
    quota.Resize(kMemoryMax);
    quota.SetMaxThreads(options_.streams_max + kThreadsBesideStreams);
    builder.SetResourceQuota(quota);
    // Few and rare calls: one queue and one thread that waits for them.
    builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen at ", options_.address,
                       " for control; is the port taken, or the address not this machine's?"));
    }
    return absl::OkStatus();
  }

  int port() const override { return port_; }

 private:
  // One of streams_max.
  class Stream {
   public:
    explicit Stream(GrpcControlService* service)
        : service_(service), admitted_(++service->streams_ <= service->options_.streams_max) {}
    ~Stream() { --service_->streams_; }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    absl::Status Admitted() const {
      if (admitted_) return absl::OkStatus();
      return absl::ResourceExhaustedError(
          absl::StrCat(service_->options_.streams_max,
                       " loads and drains are followed at once already; try again later"));
    }

   private:
    GrpcControlService* const service_;
    const bool admitted_;
  };

  // What all calls have in common: the request is checked, `answer` makes a value or a status of
  // it, and the value goes into the reply.
  template <typename Message, typename Reply, typename Answer>
  grpc::Status Serve(const Message* message, Reply* reply, Answer answer) {
    const auto request = proto::FromWire(*message);
    if (!request.ok()) return proto::ToGrpc(request.status());
    auto value = answer(*request);
    if (!value.ok()) return proto::ToGrpc(value.status());
    *reply = proto::ToWire(*value);
    return grpc::Status::OK;
  }

  grpc::Status Locate(grpc::ServerContext* /*context*/, const wire::LocateRequest* request,
                      wire::LocateReply* reply) override {
    return Serve(request, reply,
                 [&](const proto::LocateRequest& checked) { return worker_->Locate(checked); });
  }

  grpc::Status Stat(grpc::ServerContext* /*context*/, const wire::StatRequest* request,
                    wire::StatReply* reply) override {
    return Serve(request, reply,
                 [&](const proto::StatRequest& checked) { return worker_->Stat(checked); });
  }

  grpc::Status List(grpc::ServerContext* /*context*/, const wire::ListRequest* request,
                    wire::ListReply* reply) override {
    return Serve(request, reply,
                 [&](const proto::ListRequest& checked) { return worker_->List(checked); });
  }

  grpc::Status Evict(grpc::ServerContext* /*context*/, const wire::EvictRequest* message,
                     wire::EvictReply* reply) override {
    const absl::StatusOr<proto::EvictRequest> request = proto::FromWire(*message);
    if (!request.ok()) return proto::ToGrpc(request.status());
    const absl::StatusOr<uint64_t> freed = worker_->Evict(*request);
    if (!freed.ok()) return proto::ToGrpc(freed.status());
    reply->set_bytes_freed(*freed);
    return grpc::Status::OK;
  }

  grpc::Status Report(grpc::ServerContext* /*context*/, const wire::ReportRequest* /*request*/,
                      wire::ReportReply* reply) override {
    *reply = proto::ToWire(worker_->Report());
    return grpc::Status::OK;
  }

  grpc::Status Load(grpc::ServerContext* context, const wire::LoadRequest* message,
                    grpc::ServerWriter<wire::LoadProgress>* writer) override {
    const absl::StatusOr<proto::LoadRequest> request = proto::FromWire(*message);
    if (!request.ok()) return proto::ToGrpc(request.status());
    const Stream stream(this);
    if (const absl::Status admitted = stream.Admitted(); !admitted.ok()) {
      return proto::ToGrpc(admitted);
    }
    return proto::ToGrpc(worker_->Load(*request, [&](const proto::LoadProgress& progress) {
      return Wanted(*context) && writer->Write(proto::ToWire(progress));
    }));
  }

  grpc::Status Drain(grpc::ServerContext* context, const wire::DrainRequest* request,
                     grpc::ServerWriter<wire::DrainProgress>* writer) override {
    const Stream stream(this);
    if (const absl::Status admitted = stream.Admitted(); !admitted.ok()) {
      return proto::ToGrpc(admitted);
    }
    if (!request->watch_only()) worker_->StartDrain();
    return proto::ToGrpc(worker_->WatchDrain([&](const proto::DrainProgress& progress) {
      return Wanted(*context) && writer->Write(proto::ToWire(progress));
    }));
  }

  // Whether there is still somebody who waits for a stream.
  bool Wanted(const grpc::ServerContext& context) const {
    return !stopping_.load(std::memory_order_relaxed) && !context.IsCancelled();
  }

  const ControlOptions options_;
  Worker* const worker_;
  int port_ = 0;
  std::atomic<int> streams_{0};
  std::atomic<bool> stopping_{false};
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ControlService>> ControlService::Start(const ControlOptions& options,
                                                                      Worker* worker) {
  auto service = std::make_unique<GrpcControlService>(options, worker);
  RETURN_IF_ERROR(service->Listen());
  return service;
}

}  // namespace millrace::worker
