// Tests of the control port over real connections: the service and its client, against a worker
// that only pretends.
#include "cache/worker/control_service.h"

#include <stdlib.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/proto/worker.grpc.pb.h"
#include "common/proto/worker_client.h"
#include "gmock/gmock.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/impl/codegen/client_unary_call.h"
#include "gtest/gtest.h"
#include "test/support/certificates.h"
#include "test/support/fake_worker.h"
#include "test/support/socket.h"

namespace millrace::worker {
namespace {

using ::testing::ElementsAre;
using testing::FakeWorker;
using ::testing::HasSubstr;
using testing::TestAuthority;

std::string Text(const absl::Status& status) { return std::string(status.message()); }

class ControlServiceTest : public ::testing::Test {
 protected:
  void Start(ControlOptions options = {}) {
    options.address = "localhost:0";
    absl::StatusOr<std::unique_ptr<ControlService>> started =
        ControlService::Start(options, &worker_);
    ASSERT_TRUE(started.ok()) << started.status();
    service_ = *std::move(started);
  }

  proto::WorkerClientOptions ClientOptions() const {
    proto::WorkerClientOptions options;
    options.address = absl::StrCat("localhost:", service_->port());
    return options;
  }

  static std::unique_ptr<proto::WorkerClient> Connect(const proto::WorkerClientOptions& options) {
    absl::StatusOr<std::unique_ptr<proto::WorkerClient>> client =
        proto::WorkerClient::Create(options);
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }
  std::unique_ptr<proto::WorkerClient> Connect() const { return Connect(ClientOptions()); }

  // Declared first: the worker outlives its service.
  FakeWorker worker_;
  std::unique_ptr<ControlService> service_;
};

TEST_F(ControlServiceTest, AnswersWhatTheWorkerSays) {
  Start();
  proto::WorkerReport report;
  report.id = "worker-0";
  report.tiers = {{"ssd", "/cache", 10, 20, 3, 2}};
  worker_.SetReport(report);
  const auto client = Connect();
  const absl::StatusOr<proto::WorkerReport> reported = client->Report();
  ASSERT_TRUE(reported.ok()) << reported.status();
  EXPECT_EQ(reported->id, "worker-0");
  ASSERT_EQ(reported->tiers.size(), 1);
  EXPECT_EQ(reported->tiers[0].used_bytes, 10);
  EXPECT_FALSE(reported->drain.has_value());

  const auto located = client->Locate({FakeWorker::kSource, "a/b", 0, 0});
  ASSERT_TRUE(located.ok()) << located.status();
  ASSERT_EQ(located->extents.size(), 2);
  EXPECT_THAT(located->extents[0].workers, ElementsAre("b", "a"));
  const auto entry = client->Stat({FakeWorker::kSource, "a/b"});
  ASSERT_TRUE(entry.ok()) << entry.status();
  EXPECT_EQ(entry->entry.mtime, absl::FromUnixNanos(1'600'000'000'123'456'789));
  EXPECT_EQ(entry->present_bytes, 7);
  const auto listed = client->List({FakeWorker::kSource, "", "t", 9});
  ASSERT_TRUE(listed.ok()) << listed.status();
  EXPECT_EQ(listed->entries[1].name, "caf\xe9");
  EXPECT_EQ(listed->next_token, "t+9");
  EXPECT_EQ(*client->Evict({FakeWorker::kSource, "ab"}), 1002);
}

TEST_F(ControlServiceTest, PassesOnWhatTheWorkerRefuses) {
  Start();
  const auto client = Connect();
  const absl::Status status = client->Stat({"s3://other", "a"}).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("this worker has no source s3://other"));
  EXPECT_THAT(Text(status), HasSubstr(ClientOptions().address));
  EXPECT_TRUE(absl::IsNotFound(client->Evict({"s3://other", "a"}).status()));
  const auto ignore = [](const proto::LoadProgress&) { return true; };
  EXPECT_TRUE(absl::IsNotFound(client->Load({"s3://other", {}}, ignore).status()));
}

TEST_F(ControlServiceTest, RefusesBadRequestsBeforeTheWorkerSeesThem) {
  Start();
  const auto client = Connect();
  const auto ignore = [](const proto::LoadProgress&) { return true; };
  for (const absl::Status& status :
       {client->Locate({FakeWorker::kSource, "../x", 0, 0}).status(),
        client->Stat({FakeWorker::kSource, "/x"}).status(),
        client->List({FakeWorker::kSource, "a//b", "", 0}).status(),
        client->List({FakeWorker::kSource, "a", "", 1 << 30}).status(),
        client->Evict({"", "a"}).status(),
        client->Load({FakeWorker::kSource, {"a", ".."}}, ignore).status()}) {
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  }
}

TEST_F(ControlServiceTest, RefusesARequestThatIsTooLarge) {
  Start();
  const auto ignore = [](const proto::LoadProgress&) { return true; };
  const std::vector<std::string> paths(900, std::string(4000, 'x'));
  const absl::Status status = Connect()->Load({FakeWorker::kSource, paths}, ignore).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_TRUE(Connect()->Report().ok());
}

TEST_F(ControlServiceTest, SurvivesWhatIsNoHttp) {
  Start();
  const base::UniqueFd socket = test::Connect("127.0.0.1", static_cast<uint16_t>(service_->port()));
  ASSERT_TRUE(socket.valid());
  // It may hang up before it has all.
  test::SendAll(socket.get(), std::string(100'000, '\xa5'));
  EXPECT_TRUE(Connect()->Report().ok());
}

TEST_F(ControlServiceTest, LoadTellsItsProgress) {
  Start();
  std::vector<uint64_t> seen;
  const absl::StatusOr<proto::LoadProgress> loaded =
      Connect()->Load({FakeWorker::kSource, {"a"}}, [&](const proto::LoadProgress& progress) {
        seen.push_back(progress.files_done);
        worker_.LetLoadsEnd();
        return true;
      });
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->files_done, 3);
  EXPECT_EQ(loaded->bytes_total, 30);
  EXPECT_EQ(seen.front(), 1);
  EXPECT_EQ(seen.back(), 3);
}

TEST_F(ControlServiceTest, ALoadEndsWithItsClient) {
  Start();
  const absl::Status status = Connect()
                                  ->Load({FakeWorker::kSource, {}},
                                         [&](const proto::LoadProgress&) {
                                           worker_.AwaitLoads(1);
                                           return false;
                                         })
                                  .status();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  worker_.AwaitLoads(0);
}

TEST_F(ControlServiceTest, ADrainGoesOnWithoutItsClient) {
  Start();
  const auto watch = [&](bool watch_only, bool go_on) {
    return Connect()->Drain(watch_only, [&](const proto::DrainProgress&) { return go_on; });
  };
  EXPECT_TRUE(absl::IsFailedPrecondition(watch(true, true).status()));
  EXPECT_FALSE(worker_.draining());
  EXPECT_TRUE(absl::IsCancelled(watch(false, false).status()));
  worker_.AwaitWatchers(0);
  EXPECT_TRUE(worker_.draining());
  EXPECT_TRUE(Connect()->Report()->draining);

  worker_.SetDrain({.done = true, .extents_done = 4, .extents_total = 4});
  const absl::StatusOr<proto::DrainProgress> watched = watch(true, true);
  ASSERT_TRUE(watched.ok()) << watched.status();
  EXPECT_TRUE(watched->done);
  EXPECT_EQ(watched->extents_done, 4);
}

TEST_F(ControlServiceTest, BoundsTheStreams) {
  ControlOptions options;
  options.streams_max = 2;
  Start(options);
  worker_.StartDrain();
  std::vector<std::thread> followers;
  for (int i = 0; i < 2; ++i) {
    followers.emplace_back(
        [this] { EXPECT_TRUE(Connect()->Drain(true, [](const auto&) { return true; }).ok()); });
  }
  worker_.AwaitWatchers(2);
  const absl::Status status = Connect()->Drain(true, [](const auto&) { return true; }).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  // Calls without streams still have room.
  EXPECT_TRUE(Connect()->Report().ok());
  worker_.SetDrain({.done = true});
  for (std::thread& follower : followers) follower.join();
  EXPECT_TRUE(Connect()->Drain(true, [](const auto&) { return true; }).ok());
}

TEST_F(ControlServiceTest, StopsUnderAStream) {
  Start();
  std::thread loader([client = Connect()] {
    const absl::Status status =
        client->Load({FakeWorker::kSource, {}}, [](const auto&) { return true; }).status();
    EXPECT_FALSE(status.ok());
  });
  worker_.AwaitLoads(1);
  service_.reset();
  worker_.AwaitLoads(0);
  loader.join();
}

TEST_F(ControlServiceTest, SaysThatThePortIsTaken) {
  Start();
  ControlOptions options;
  options.address = ClientOptions().address;
  const absl::Status status = ControlService::Start(options, &worker_).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr(options.address));
}

TEST_F(ControlServiceTest, AnswersTheHealthService) {
  Start();
  // The method by its name, with an empty request: no code is generated for it. The only field of
  // its answer is the status, 1: serving.
  const auto channel =
      grpc::CreateChannel(ClientOptions().address, grpc::InsecureChannelCredentials());
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check",
                                         grpc::internal::RpcMethod::NORMAL_RPC);
  grpc::ClientContext context;
  const v1::ReportRequest request;
  v1::DrainRequest answer;
  const grpc::Status status = grpc::internal::BlockingUnaryCall<v1::ReportRequest, v1::DrainRequest,
                                                                google::protobuf::MessageLite,
                                                                google::protobuf::MessageLite>(
      channel.get(), method, &context, request, &answer);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(answer.watch_only());
}

// --- A client without a worker ---

TEST_F(ControlServiceTest, SaysThatNobodyAnswers) {
  Start();
  const proto::WorkerClientOptions options = ClientOptions();
  service_.reset();
  const absl::Status status = Connect(options)->Report().status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("no worker answers at " + options.address));
  EXPECT_THAT(Text(status), HasSubstr("Connection refused"));
}

TEST_F(ControlServiceTest, GivesUpOnAPeerThatSaysNothing) {
  uint16_t port = 0;
  const base::UniqueFd listener = test::Listen(0, &port);
  proto::WorkerClientOptions options;
  options.address = absl::StrCat("127.0.0.1:", port);
  options.connect_timeout = absl::Milliseconds(200);
  const absl::Status status = Connect(options)->Report().status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
}

TEST_F(ControlServiceTest, GivesUpOnAWorkerThatHangs) {
  Start();
  worker_.HoldReport(true);
  proto::WorkerClientOptions options = ClientOptions();
  options.answer_timeout = absl::Milliseconds(200);
  const absl::Status status = Connect(options)->Report().status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  worker_.HoldReport(false);
}

TEST_F(ControlServiceTest, StopsWaitingWhenCancelled) {
  Start();
  worker_.HoldReport(true);
  const std::atomic<bool> cancelled{true};
  proto::WorkerClientOptions options = ClientOptions();
  options.cancelled = &cancelled;
  EXPECT_TRUE(absl::IsCancelled(Connect(options)->Report().status()));
  worker_.HoldReport(false);
}

// --- Certificates ---

class ControlTlsTest : public ControlServiceTest {
 protected:
  ControlTlsTest() {
    std::string name = ::testing::TempDir() + "control_tls_test.XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
    authority_ = std::make_unique<TestAuthority>(directory_, "authority");
  }
  ~ControlTlsTest() override { std::filesystem::remove_all(directory_); }

  void StartTls() {
    const net::TlsFiles files = authority_->Issue("worker", {"localhost"});
    ControlOptions options;
    options.certificate = files.certificate;
    options.key = files.key;
    options.authority = files.authority;
    options.look_every = absl::Seconds(1);
    Start(options);
  }

  proto::WorkerClientOptions ClientOptions(const net::TlsFiles& files) const {
    proto::WorkerClientOptions options = ControlServiceTest::ClientOptions();
    options.certificate = files.certificate;
    options.key = files.key;
    options.authority = files.authority;
    options.connect_timeout = absl::Seconds(2);
    return options;
  }
  absl::Status Report(const net::TlsFiles& files) const {
    return Connect(ClientOptions(files))->Report().status();
  }

  std::string directory_;
  std::unique_ptr<TestAuthority> authority_;
};

TEST_F(ControlTlsTest, TakesThoseWithACertificateOfItsAuthorityOnly) {
  StartTls();
  EXPECT_EQ(Report(authority_->Issue("client", {"me"})), absl::OkStatus());

  EXPECT_TRUE(absl::IsUnavailable(Report({}))) << "plain text";
  TestAuthority other(directory_, "other");
  net::TlsFiles stranger = other.Issue("stranger", {"me"});
  stranger.authority = authority_->file();  // Believes the worker; is not believed.
  EXPECT_TRUE(absl::IsUnavailable(Report(stranger)));
  net::TlsFiles careful = authority_->Issue("careful", {"me"});
  careful.authority = other.file();  // Would be believed; does not believe the worker.
  EXPECT_TRUE(absl::IsUnavailable(Report(careful)));
  EXPECT_EQ(Report(authority_->Issue("client", {"me"})), absl::OkStatus());
}

TEST_F(ControlTlsTest, TheWorkersCertificateMustBeForItsName) {
  StartTls();
  proto::WorkerClientOptions options = ClientOptions(authority_->Issue("client", {"me"}));
  options.server_name = "worker-7";
  EXPECT_TRUE(absl::IsUnavailable(Connect(options)->Report().status()));
  options.server_name = "localhost";
  options.address = absl::StrCat("127.0.0.1:", service_->port());
  EXPECT_EQ(Connect(options)->Report().status(), absl::OkStatus());
}

TEST_F(ControlTlsTest, ReadsItsFilesAgainWhenTheyChange) {
  StartTls();
  ASSERT_EQ(Report(authority_->Issue("client", {"me"})), absl::OkStatus());
  // The same files from another authority, as a secret that is rotated.
  authority_ = std::make_unique<TestAuthority>(directory_, "authority");
  authority_->Issue("worker", {"localhost"});
  const net::TlsFiles after = authority_->Issue("client", {"me"});
  absl::Status status;
  const absl::Time end = absl::Now() + absl::Seconds(60);
  do {
    status = Report(after);
  } while (!status.ok() && absl::Now() < end);
  EXPECT_EQ(status, absl::OkStatus());
}

TEST_F(ControlTlsTest, SaysWhichFileIsNoGood) {
  const net::TlsFiles files = authority_->Issue("worker", {"localhost"});
  ControlOptions options;
  options.address = "localhost:0";
  options.certificate = files.certificate;
  EXPECT_TRUE(absl::IsInvalidArgument(ControlService::Start(options, &worker_).status()));
  options.key = directory_ + "/missing";
  options.authority = files.authority;
  const absl::Status status = ControlService::Start(options, &worker_).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("/missing"));
}

}  // namespace
}  // namespace millrace::worker
