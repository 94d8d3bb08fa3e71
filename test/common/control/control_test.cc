// Unit tests of common/control: server and client over a real socket, run directories, the pipe
// between command and daemon.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/base/file_text.h"
#include "common/base/mutex.h"
#include "common/control/control_client.h"
#include "common/control/control_server.h"
#include "common/control/line_socket.h"
#include "common/control/protocol.h"
#include "common/control/ready.h"
#include "common/control/run_directory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::control {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// One-way door between threads.
class Event {
 public:
  void Set() {
    base::MutexLock lock(&mutex_);
    set_ = true;
    changed_.NotifyAll();
  }
  void Wait() {
    base::MutexLock lock(&mutex_);
    while (!set_) changed_.Wait(&mutex_);
  }

 private:
  base::Mutex mutex_;
  base::CondVar changed_;
  bool set_ ABSL_GUARDED_BY(mutex_) = false;
};

class ControlTest : public ::testing::Test {
 protected:
  ControlTest() {
    std::string name = ::testing::TempDir() + "control.XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
    socket_ = directory_ + "/control.sock";
  }

  void Start(ControlServer::Handler handler, absl::Duration deadline = absl::Seconds(10)) {
    auto server = ControlServer::Start({.socket_path = socket_, .read_deadline = deadline},
                                       std::move(handler));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  // Sends raw bytes and returns the first line of the answer.
  std::string Exchange(absl::string_view bytes) {
    const auto fd = ConnectTo(socket_, SOCK_STREAM);
    if (!fd.ok()) return fd.status().ToString();
    send(fd->get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    LineReader reader(fd->get(), kResponseLineMax);
    const auto line = reader.ReadLine(absl::Seconds(10));
    return line.ok() && line->has_value() ? **line : "";
  }

  std::string directory_;
  std::string socket_;
  std::unique_ptr<ControlServer> server_;
};

absl::Status Echo(const base::Json& request, ResponseStream& stream) {
  stream.Result({{"echo", base::JsonString(request, "op")}});
  return absl::OkStatus();
}

TEST_F(ControlTest, AnswersOneRequest) {
  Start(Echo);
  const auto answer = Call(socket_, kOpPing);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(base::JsonString(*answer, "echo"), "ping");
  struct stat found;
  ASSERT_EQ(stat(socket_.c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0600u);
}

TEST_F(ControlTest, StreamsProgressBeforeTheResult) {
  Start([](const base::Json&, ResponseStream& stream) -> absl::Status {
    for (uint64_t i = 1; i <= 3; ++i) {
      WarmProgress progress;
      progress.bytes_done = i;
      if (absl::Status sent = stream.Progress(ToJson(progress)); !sent.ok()) return sent;
    }
    return absl::OkStatus();
  });
  std::vector<uint64_t> seen;
  const auto answer = Call(socket_, {{"op", kOpWarm}}, CallOptions(), [&](const base::Json& line) {
    seen.push_back(WarmProgressFromJson(line).bytes_done);
  });
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(seen, ElementsAre(1, 2, 3));
}

TEST_F(ControlTest, CarriesAnErrorWithItsCode) {
  Start([](const base::Json&, ResponseStream&) { return absl::NotFoundError("no such path"); });
  const auto answer = Call(socket_, kOpEvict);
  EXPECT_EQ(answer.status(), absl::NotFoundError("no such path"));
}

TEST_F(ControlTest, LetsNoExceptionOut) {
  Start([](const base::Json&, ResponseStream&) -> absl::Status {
    throw std::runtime_error("library trouble");
  });
  EXPECT_EQ(Call(socket_, kOpPing).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(Call(socket_, kOpPing).status().code(), absl::StatusCode::kInternal);
}

TEST_F(ControlTest, AnswersBadFramesWithOneErrorLine) {
  Start(Echo);
  EXPECT_THAT(Exchange("this is not JSON\n"), HasSubstr("not valid JSON"));
  EXPECT_THAT(Exchange("[1,2]\n"), HasSubstr("not a request"));
  EXPECT_THAT(Exchange("{\"op\":7}\n"), HasSubstr("not a request"));
  EXPECT_THAT(Exchange("\n"), HasSubstr("not valid JSON"));
  EXPECT_THAT(Exchange(std::string(kRequestSizeMax, 'x')), HasSubstr("longer than"));
  EXPECT_TRUE(Call(socket_, kOpPing).ok());
}

TEST_F(ControlTest, GivesUpOnASilentClient) {
  Start(Echo, absl::Milliseconds(20));
  EXPECT_THAT(Exchange(""), HasSubstr("no answer in time"));
}

TEST_F(ControlTest, RefusesMoreConnectionsThanItsLimit) {
  Event release;
  std::atomic<size_t> running{0};
  Event all_running;
  Start([&](const base::Json&, ResponseStream&) {
    if (running.fetch_add(1) + 1 == ControlServer::kConnectionsMax) all_running.Set();
    release.Wait();
    return absl::OkStatus();
  });
  std::vector<std::thread> clients;
  for (size_t i = 0; i < ControlServer::kConnectionsMax; ++i) {
    clients.emplace_back([&] { EXPECT_TRUE(Call(socket_, kOpPing).ok()); });
  }
  all_running.Wait();
  EXPECT_TRUE(absl::IsResourceExhausted(Call(socket_, kOpPing).status()));
  release.Set();
  for (std::thread& client : clients) client.join();
}

// Waits, as a handler does between two looks at its work, until nobody wants the answer.
absl::Status WaitForCancel(ResponseStream& stream) {
  base::Mutex mutex;
  base::CondVar never;
  base::MutexLock lock(&mutex);
  while (!stream.Cancelled()) never.WaitFor(&mutex, absl::Milliseconds(5));
  return absl::CancelledError("cancelled");
}

TEST_F(ControlTest, HandlerSeesThatTheClientLeft) {
  Event left;
  Start([&](const base::Json&, ResponseStream& stream) {
    const absl::Status status = WaitForCancel(stream);
    left.Set();
    return status;
  });
  {
    const auto fd = ConnectTo(socket_, SOCK_STREAM);
    ASSERT_TRUE(fd.ok());
    ASSERT_TRUE(WriteLine(fd->get(), R"({"op":"warm"})", absl::Seconds(5)).ok());
  }
  left.Wait();
}

TEST_F(ControlTest, ClientStopsWhenCancelled) {
  Start([&](const base::Json&, ResponseStream& stream) -> absl::Status {
    while (!stream.Cancelled()) {
      if (absl::Status sent = stream.Progress(base::Json::object()); !sent.ok()) return sent;
    }
    return absl::CancelledError("cancelled");
  });
  std::atomic<bool> cancelled{false};
  CallOptions options;
  options.cancelled = &cancelled;
  const auto answer =
      Call(socket_, {{"op", kOpWarm}}, options, [&](const base::Json&) { cancelled = true; });
  EXPECT_TRUE(absl::IsCancelled(answer.status()));
}

TEST_F(ControlTest, StopCancelsHandlersAndRemovesTheSocket) {
  Event running;
  Start([&](const base::Json&, ResponseStream& stream) {
    running.Set();
    return WaitForCancel(stream);
  });
  std::thread client([&] { EXPECT_FALSE(Call(socket_, kOpWarm).ok()); });
  running.Wait();
  server_->Stop();
  client.join();
  EXPECT_NE(access(socket_.c_str(), F_OK), 0);
  EXPECT_TRUE(absl::IsUnavailable(Call(socket_, kOpPing).status()));
}

TEST_F(ControlTest, ReachesSocketsWithLongPaths) {
  std::string deep = directory_;
  for (int i = 0; i < 3; ++i) {
    deep += "/" + std::string(60, 'd');
    ASSERT_EQ(mkdir(deep.c_str(), 0700), 0);
  }
  socket_ = deep + "/control.sock";
  Start(Echo);
  EXPECT_TRUE(Call(socket_, kOpPing).ok());
}

TEST_F(ControlTest, RefusesARequestTheDaemonWouldRefuse) {
  Start(Echo);
  const base::Json request = {{"op", kOpWarm}, {"paths", {std::string(kRequestSizeMax, 'x')}}};
  EXPECT_TRUE(absl::IsInvalidArgument(
      Call(socket_, request, CallOptions(), [](const base::Json&) {}).status()));
}

TEST(ProtocolTest, PathsStayInsideTheMount) {
  const auto parse = [](absl::string_view text) {
    return PathsRequestFromJson(*base::ParseJson(text));
  };
  EXPECT_THAT(parse(R"({"op":"warm","paths":["/a//b/","", "c"]})")->paths,
              ElementsAre("a/b", "", "c"));
  EXPECT_THAT(parse(R"({"op":"warm"})")->paths, ElementsAre());
  EXPECT_FALSE(parse(R"({"op":"warm","paths":["a/../../etc"]})").ok());
  EXPECT_FALSE(parse(R"({"op":"warm","paths":"a"})").ok());
  EXPECT_FALSE(parse(R"({"op":"warm","paths":[1]})").ok());
}

TEST(ProtocolTest, StatusSurvivesTheWire) {
  StatusReport report;
  report.mountpoint = "/data";
  report.features = {{"passthrough", true}, {"open_less", false}};
  report.runs_as = "nobody, without privileges";
  report.sources = {{"train", "s3://b/t", "s3"}};
  TierStatus tier;
  tier.medium = "ssd";
  tier.used_bytes = 7;
  tier.evictions = {{"quota", 3}};
  report.tiers = {tier};
  report.reads = {{"train", "local", 75, 3}, {"train", "store", 25, 1}, {"val", "local", 0, 0}};
  report.passthrough_opens = 3;
  report.passthrough_bytes = 30;
  report.passthrough_short_circuit_bytes = 20;
  report.pool.members = {{"h:7451", "w", true, true, 5, "why"}};
  report.pool.bytes_remote = 1;
  report.pool.bytes_through_store = 2;
  report.pool.bytes_short_circuit = 3;
  report.pool.bypassed = 4;
  report.pool.faults = 5;
  report.pool.damaged = 6;
  report.errors = {{"tier/disk", 2}};
  report.memory_limit_bytes = 512;
  const base::Json json = ToJson(report);
  EXPECT_EQ(json["hit_ratio"], base::Json({{"train", 0.75}}));  // Nothing of val was read.
  const StatusReport back = StatusReportFromJson(*base::ParseJson(base::JsonLine(json)));
  EXPECT_EQ(back.passthrough_short_circuit_bytes, 20u);
  EXPECT_EQ(ToJson(back), json);
  EXPECT_EQ(back.pool.members[0].last_error, "why");
  EXPECT_EQ(back.pool.damaged, 6u);
}

TEST(ProtocolTest, ReadsAnswersOfOtherVersions) {
  const StatusReport report = StatusReportFromJson(
      *base::ParseJson(R"({"tiers":[7,{"used_bytes":-1}],"features":[],"new":1,"pid":"x"})"));
  EXPECT_EQ(report.pid, 0u);
  EXPECT_EQ(report.tiers.size(), 2u);
  EXPECT_FALSE(ErrorFromLine(*base::ParseJson(R"({"error":{"code":0}})")).ok());
  EXPECT_FALSE(ErrorFromLine(*base::ParseJson(R"({"error":{"code":999,"message":"m"}})")).ok());
}

class RunDirectoryTest : public ::testing::Test {
 protected:
  RunDirectoryTest() {
    std::string name = ::testing::TempDir() + "run.XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    base_ = name;
    paths_.directory = base_ + "/millrace/" + MountHash("/data");
  }

  absl::StatusOr<RunDirectory> Create() {
    return RunDirectory::CreateBelow(base_ + "/millrace", "/data");
  }

  std::string base_;
  RunPaths paths_;
};

TEST_F(RunDirectoryTest, TellsTheLivingFromTheDead) {
  auto directory = Create();
  ASSERT_TRUE(directory.ok()) << directory.status();
  MountRecord record;
  record.mountpoint = "/data";
  record.pid = getpid();
  record.sources = {"train=s3://b/t"};
  record.started = absl::FromUnixSeconds(1700000000);
  record.version = "1";
  ASSERT_TRUE(directory->WriteRecord(record).ok());
  auto mounts = ListMountRecordsBelow(base_ + "/millrace");
  ASSERT_EQ(mounts.size(), 1u);
  EXPECT_TRUE(mounts[0].alive);
  EXPECT_EQ(mounts[0].record.mountpoint, "/data");
  EXPECT_EQ(mounts[0].record.started, record.started);
  EXPECT_THAT(mounts[0].record.sources, ElementsAre("train=s3://b/t"));

  RemoveStale(paths_);  // Lives: nothing happens.
  EXPECT_EQ(access(paths_.record().c_str(), F_OK), 0);
  {
    const auto second = Create();
    EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
    EXPECT_THAT(second.status().message(), HasSubstr("millrace umount /data"));
  }
  { const RunDirectory dies = *std::move(directory); }
  mounts = ListMountRecordsBelow(base_ + "/millrace");
  ASSERT_EQ(mounts.size(), 1u);
  EXPECT_FALSE(mounts[0].alive);
  RemoveStale(paths_);
  EXPECT_TRUE(ListMountRecordsBelow(base_ + "/millrace").empty());
  EXPECT_NE(access(paths_.directory.c_str(), F_OK), 0);
  EXPECT_TRUE(Create().ok());
}

TEST_F(RunDirectoryTest, ASuccessorTakesNothingFromAKilledDaemon) {
  ASSERT_TRUE(Create()->WriteRecord({.mountpoint = "/data", .pid = 1}).ok());
  const auto next = Create();
  ASSERT_TRUE(next.ok());
  EXPECT_NE(access(paths_.record().c_str(), F_OK), 0);
}

TEST_F(RunDirectoryTest, RefusesADirectoryOthersCanWriteTo) {
  ASSERT_EQ(mkdir((base_ + "/millrace").c_str(), 0700), 0);
  ASSERT_EQ(chmod((base_ + "/millrace").c_str(), 0777), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(Create().status()));
}

TEST_F(RunDirectoryTest, PassesOverDamagedRecords) {
  ASSERT_TRUE(Create().ok());
  ASSERT_TRUE(base::WriteTextFile(paths_.record(), "{", 0600).ok());
  EXPECT_TRUE(ListMountRecordsBelow(base_ + "/millrace").empty());
}

TEST_F(RunDirectoryTest, ShowsTheEndOfALog) {
  const std::string path = base_ + "/log";
  EXPECT_EQ(LogTail(path, 3), "");
  ASSERT_TRUE(base::WriteTextFile(path, "a\nb\nc\nd\n", 0600).ok());
  EXPECT_EQ(LogTail(path, 2), "  c\n  d\n");
  ASSERT_TRUE(base::WriteTextFile(path, std::string(200000, 'x') + "\nend", 0600).ok());
  EXPECT_EQ(LogTail(path, 1), "  end\n");
}

TEST(ReadyTest, TellsTheCommandThroughThePipe) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const base::UniqueFd read_end(ends[0]);
  ReadySummary summary;
  summary.mountpoint = "/data";
  summary.facts = {{"source", "s3://b"}, {"profile", "small files"}};
  summary.warnings = {"slow disk"};
  {
    ReadyNotifier notifier(ends[1]);
    notifier.Ready(summary);
    notifier.Failed(absl::InternalError("too late"));
  }
  char buffer[4096];
  const ssize_t size = read(read_end.get(), buffer, sizeof(buffer));
  ASSERT_GT(size, 0);
  const auto message = ParseReadyLine(absl::string_view(buffer, size - 1));
  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_EQ(message->kind, ReadyMessage::Kind::kReady);
  EXPECT_EQ(FormatSummary(message->summary),
            "Mounted /data\n  source   s3://b\n  profile  small files\n  warning: slow disk\n");
  EXPECT_EQ(read(read_end.get(), buffer, sizeof(buffer)), 0);
}

TEST(ReadyTest, CarriesAFailureWithItsExitCode) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const base::UniqueFd read_end(ends[0]);
  EXPECT_EQ(ReadyNotifier(ends[1]).Failed(absl::InvalidArgumentError("bad; mend it")), 2);
  char buffer[4096];
  const ssize_t size = read(read_end.get(), buffer, sizeof(buffer));
  const auto message = ParseReadyLine(absl::string_view(buffer, size - 1));
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->kind, ReadyMessage::Kind::kFailed);
  EXPECT_EQ(message->exit_code, 2);
  EXPECT_EQ(message->error, "bad; mend it");
}

}  // namespace
}  // namespace millrace::control
