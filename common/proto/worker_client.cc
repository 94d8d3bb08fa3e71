#include "common/proto/worker_client.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/status_macros.h"
#include "common/proto/grpc_transport.h"
#include "common/proto/worker.grpc.pb.h"
#include "common/proto/worker_messages.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace millrace::proto {
namespace {

constexpr absl::Duration kLookEvery = absl::Milliseconds(100);
// A dead peer is noticed within their sum, also while a stream is silent.
constexpr absl::Duration kKeepAliveEvery = absl::Seconds(20);
constexpr absl::Duration kKeepAliveTimeout = absl::Seconds(10);
// kEntriesMax entries of long names.
constexpr int kReceivedBytesMax = 64 << 20;

int Milliseconds(absl::Duration duration) {
  return static_cast<int>(absl::ToInt64Milliseconds(duration));
}

grpc::ChannelArguments ArgumentsOf(const WorkerClientOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(kKeepAliveEvery));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(kKeepAliveTimeout));
  // Despite its name it is also how long one try to connect may take.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, Milliseconds(options.connect_timeout));
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // An http_proxy of the environment is for the stores, not for the cluster's own traffic.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // Two clients share no connection: one with other certificates must not use this one's.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(kReceivedBytesMax);
  if (!options.server_name.empty()) arguments.SetSslTargetNameOverride(options.server_name);
  return arguments;
}

// One call's events, and why it was ended from this side.
class CallEvents {
 public:
  CallEvents(const WorkerClientOptions& options, grpc::ClientContext* context)
      : options_(options), context_(context) {}
  // REQUIRES: every operation that was started has been waited for.
  ~CallEvents() {
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  grpc::CompletionQueue* queue() { return &queue_; }
  // Null tags: there is one operation at a time.
  static void* tag() { return nullptr; }

  // Waits for the operation that was started; ends the call meanwhile if its time is over or the
  // caller wants no more. Whether it succeeded.
  bool Wait() {
    base::Clock* const clock = base::RealClock();
    const absl::Duration end = clock->Monotonic() + options_.answer_timeout;
    void* tag = nullptr;
    bool ok = false;
    while (
        queue_.AsyncNext(
            &tag, &ok, std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kLookEvery)) ==
        grpc::CompletionQueue::TIMEOUT) {
      if (options_.cancelled != nullptr && options_.cancelled->load(std::memory_order_relaxed)) {
        End(absl::CancelledError("cancelled"));
      } else if (clock->Monotonic() > end) {
        End(absl::DeadlineExceededError(
            absl::StrCat("said nothing for ", absl::FormatDuration(options_.answer_timeout))));
      }
    }
    return ok;
  }

  void End(absl::Status cause) {
    if (ended_.ok()) ended_ = std::move(cause);
    context_->TryCancel();
  }

  // Why this side ended the call, else what the call itself came to.
  absl::Status Verdict(const grpc::Status& status) const {
    if (status.ok() || ended_.ok()) return FromGrpc(status);
    return ended_;
  }

 private:
  const WorkerClientOptions& options_;
  grpc::ClientContext* const context_;
  grpc::CompletionQueue queue_;
  absl::Status ended_;
};

class GrpcWorkerClient : public WorkerClient {
 public:
  GrpcWorkerClient(WorkerClientOptions options, const std::shared_ptr<grpc::Channel>& channel)
      : options_(std::move(options)), stub_(wire::Worker::NewStub(channel)) {}

  absl::StatusOr<LocateReply> Locate(const LocateRequest& request) override {
    return FromWireOr(Ask(&wire::Worker::Stub::PrepareAsyncLocate, ToWire(request)));
  }
  absl::StatusOr<StatReply> Stat(const StatRequest& request) override {
    return FromWireOr(Ask(&wire::Worker::Stub::PrepareAsyncStat, ToWire(request)));
  }
  absl::StatusOr<ListReply> List(const ListRequest& request) override {
    return FromWireOr(Ask(&wire::Worker::Stub::PrepareAsyncList, ToWire(request)));
  }
  absl::StatusOr<WorkerReport> Report() override {
    return FromWireOr(Ask(&wire::Worker::Stub::PrepareAsyncReport, wire::ReportRequest()));
  }
  absl::StatusOr<uint64_t> Evict(const EvictRequest& request) override {
    ASSIGN_OR_RETURN(const wire::EvictReply reply,
                     Ask(&wire::Worker::Stub::PrepareAsyncEvict, ToWire(request)));
    return reply.bytes_freed();
  }

  absl::StatusOr<LoadProgress> Load(const LoadRequest& request,
                                    absl::FunctionRef<bool(const LoadProgress&)> report) override {
    return Follow<LoadProgress>(&wire::Worker::Stub::PrepareAsyncLoad, ToWire(request), report);
  }
  absl::StatusOr<DrainProgress> Drain(
      bool watch_only, absl::FunctionRef<bool(const DrainProgress&)> report) override {
    wire::DrainRequest request;
    request.set_watch_only(watch_only);
    return Follow<DrainProgress>(&wire::Worker::Stub::PrepareAsyncDrain, request, report);
  }

 private:
  template <typename Message>
  static auto FromWireOr(const absl::StatusOr<Message>& message)
      -> absl::StatusOr<decltype(FromWire(*message))> {
    if (!message.ok()) return message.status();
    return FromWire(*message);
  }

  template <typename Request, typename Reply>
  absl::StatusOr<Reply> Ask(std::unique_ptr<grpc::ClientAsyncResponseReader<Reply>> (
                                wire::Worker::Stub::*prepare)(grpc::ClientContext*, const Request&,
                                                              grpc::CompletionQueue*),
                            const Request& request) {
    grpc::ClientContext context;
    // The worker, too, stops when nobody waits any more.
    context.set_deadline(std::chrono::system_clock::now() +
                         absl::ToChronoMilliseconds(options_.answer_timeout));
    CallEvents events(options_, &context);
    const auto call = (stub_.get()->*prepare)(&context, request, events.queue());
    call->StartCall();
    Reply reply;
    grpc::Status status;
    call->Finish(&reply, &status, CallEvents::tag());
    events.Wait();
    RETURN_IF_ERROR(Explain(events.Verdict(status)));
    return reply;
  }

  template <typename Progress, typename Request, typename Message>
  absl::StatusOr<Progress> Follow(
      std::unique_ptr<grpc::ClientAsyncReader<Message>> (wire::Worker::Stub::*prepare)(
          grpc::ClientContext*, const Request&, grpc::CompletionQueue*),
      const Request& request, absl::FunctionRef<bool(const Progress&)> report) {
    grpc::ClientContext context;
    CallEvents events(options_, &context);
    const auto call = (stub_.get()->*prepare)(&context, request, events.queue());
    Progress last;
    call->StartCall(CallEvents::tag());
    bool more = events.Wait();
    while (more) {
      Message message;
      call->Read(&message, CallEvents::tag());
      more = events.Wait();
      if (!more) break;
      last = FromWire(message);
      if (!report(last)) events.End(absl::CancelledError("cancelled"));
    }
    grpc::Status status;
    call->Finish(&status, CallEvents::tag());
    events.Wait();
    RETURN_IF_ERROR(Explain(events.Verdict(status)));
    return last;
  }

  // Says who, and for a connection that was never made, what to look at.
  absl::Status Explain(const absl::Status& status) const {
    if (status.ok()) return status;
    absl::string_view cause = status.message();
    if (absl::IsUnavailable(status) && absl::StrContains(cause, "failed to connect")) {
      // "failed to connect to all addresses; last error: UNKNOWN: ipv4:…: Connection refused"
      cause =
          cause.substr(cause.rfind(": ") == absl::string_view::npos ? 0 : cause.rfind(": ") + 2);
      return absl::UnavailableError(absl::StrCat(
          "no worker answers at ", options_.address, " (", cause,
          "); is it running, is this its control port, ",
          options_.authority.empty() ? "and does it want --certificate, --key and --authority?"
                                     : "and do both sides' certificates fit?"));
    }
    return {status.code(), absl::StrCat("worker ", options_.address, ": ", cause)};
  }

  const WorkerClientOptions options_;
  const std::unique_ptr<wire::Worker::Stub> stub_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerClient>> WorkerClient::Create(
    const WorkerClientOptions& options) {
  UseOurLog();
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ChannelCredentials> credentials,
                   ClientCredentials({options.certificate, options.key, options.authority}));
  return std::make_unique<GrpcWorkerClient>(
      options, grpc::CreateCustomChannel(options.address, credentials, ArgumentsOf(options)));
}

}  // namespace millrace::proto
