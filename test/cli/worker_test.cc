// Tests of `millrace worker`: the commands against a control port whose worker only pretends, and
// how they show it.
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cache/worker/control_service.h"
#include "cli/progress_bar.h"
#include "cli/worker/connection.h"
#include "cli/worker/worker_commands.h"
#include "cli/worker/worker_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/fake_worker.h"

namespace millrace::cli {
namespace {

using millrace::testing::FakeWorker;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::internal::CaptureStderr;
using ::testing::internal::CaptureStdout;
using ::testing::internal::GetCapturedStderr;
using ::testing::internal::GetCapturedStdout;

proto::WorkerReport Report() {
  proto::WorkerReport report;
  report.id = "worker-0";
  report.cluster = "c";
  report.version = "1.2";
  report.started_unix = 1000;
  report.extent_size = 64 << 20;
  report.replicas = 2;
  report.tiers = {{"ssd", "/cache", 3 << 20, 6 << 20, 1234, 1000}};
  report.sources = {{"s3://bucket", "s3://bucket"}};
  report.hits = {{"local", 30 << 20, 300}, {"remote", 6 << 20, 60}, {"store", 4 << 20, 4}};
  report.members = {{"h1:7451", "worker-1", 5 << 20, false, true, ""},
                    {"h2:7451", "worker-2", 5 << 20, true, true, ""},
                    {"h3:7451", "", 0, false, false, "refused\033[2J"}};
  report.connections = 1;
  return report;
}

class WorkerCommandTest : public ::testing::Test {
 protected:
  WorkerCommandTest() {
    worker_.SetReport(Report());
    worker::ControlOptions options;
    options.address = "localhost:0";
    absl::StatusOr<std::unique_ptr<worker::ControlService>> started =
        worker::ControlService::Start(options, &worker_);
    EXPECT_TRUE(started.ok()) << started.status();
    service_ = *std::move(started);
    address_ = absl::StrCat("localhost:", service_->port());
  }

  struct Outcome {
    int exit_code;
    std::string out;
    std::string error;
  };

  static Outcome Run(const Arguments& arguments) {
    CaptureStdout();
    CaptureStderr();
    const int exit_code = WorkerCtlMain(arguments);
    fflush(stdout);
    const std::string out = GetCapturedStdout();
    return {exit_code, out, GetCapturedStderr()};
  }

  FakeWorker worker_;
  std::unique_ptr<worker::ControlService> service_;
  std::string address_;
};

TEST_F(WorkerCommandTest, StatusShowsOneInFull) {
  const Outcome outcome = Run({"status", address_});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.error;
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("worker-0 at localhost:"), HasSubstr(": serving, up "),
                    HasSubstr("extents of 64 MiB, 2 copies"), HasSubstr("s3://bucket"),
                    HasSubstr("1,234"), HasSubstr("worker-2"), HasSubstr("unreachable")));
  EXPECT_THAT(outcome.out, Not(HasSubstr("\033")));
}

TEST_F(WorkerCommandTest, StatusShowsALineForEachOfSeveral) {
  const Outcome outcome = Run({"status", absl::StrCat(address_, ",localhost:1"), "--timeout=2s"});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.error, HasSubstr("1 of 2 workers did not answer"));
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("worker-0"), HasSubstr("90.0%"), HasSubstr("2/3"),
                    HasSubstr("no answer"), HasSubstr("no worker answers at localhost:1")));
}

TEST_F(WorkerCommandTest, StatusInJson) {
  worker_.StartDrain();
  const Outcome outcome = Run({"status", "--json", address_, "localhost:1"});
  EXPECT_EQ(outcome.exit_code, 1);
  const absl::StatusOr<base::Json> json = base::ParseJson(outcome.out);
  ASSERT_TRUE(json.ok()) << outcome.out;
  const base::Json& workers = base::JsonField(*json, "workers");
  ASSERT_EQ(workers.size(), 2);
  EXPECT_EQ(workers[0]["state"], "draining");
  EXPECT_EQ(workers[0]["drain"]["extents_total"], 4);
  EXPECT_EQ(workers[0]["hits"]["store"]["bytes"], 4 << 20);
  EXPECT_EQ(workers[0]["members"][1]["draining"], true);
  EXPECT_EQ(workers[1]["state"], "no answer");
  EXPECT_EQ(workers[1]["address"], "localhost:1");
}

TEST_F(WorkerCommandTest, StatusOfOneThatDoesNotAnswer) {
  const Outcome outcome = Run({"status", "localhost:1"});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(outcome.out, "");
  EXPECT_THAT(outcome.error, HasSubstr("no worker answers at localhost:1"));
}

TEST_F(WorkerCommandTest, DrainWaitsUntilAllIsHandedOver) {
  std::thread successor([this] {
    worker_.AwaitWatchers(1);
    worker_.SetDrain({.done = true,
                      .extents_done = 4,
                      .extents_total = 4,
                      .bytes_done = 256 << 20,
                      .bytes_total = 256 << 20,
                      .total_known = true});
  });
  const Outcome outcome = Run({"drain", address_});
  successor.join();
  EXPECT_EQ(outcome.exit_code, 0) << outcome.error;
  EXPECT_THAT(outcome.out, HasSubstr("handed over 256 MiB in 4 extents"));
}

TEST_F(WorkerCommandTest, DrainTellsWhatNobodyTook) {
  worker_.SetDrain({.done = true,
                    .extents_done = 3,
                    .extents_total = 4,
                    .extents_failed = 1,
                    .last_error = "worker-1 is full"});
  const Outcome outcome = Run({"drain", "--json", address_});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.error, AllOf(HasSubstr("1 of 4 extents"), HasSubstr("worker-1 is full")));
  const absl::StatusOr<base::Json> json = base::ParseJson(outcome.out);
  ASSERT_TRUE(json.ok()) << outcome.out;
  EXPECT_EQ(base::JsonUnsigned(*json, "extents_failed"), 1);
}

TEST_F(WorkerCommandTest, DrainWithoutWaitingReturnsAtOnce) {
  const Outcome outcome = Run({"drain", "--no-wait", address_});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.error;
  EXPECT_THAT(outcome.out, HasSubstr("is being drained"));
  EXPECT_TRUE(worker_.draining());
}

TEST_F(WorkerCommandTest, LoadAsksAllAndSumsTheirShares) {
  worker_.LetLoadsEnd();
  const Outcome outcome = Run({"load", address_ + "," + address_, FakeWorker::kSource, "a/"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.error;
  EXPECT_THAT(outcome.out, HasSubstr("60 B are in the caches of 2 workers"));
  const Outcome half = Run({"load", "--json", address_ + ",localhost:1", FakeWorker::kSource});
  EXPECT_EQ(half.exit_code, 1);
  EXPECT_THAT(half.error, HasSubstr("no worker answers at localhost:1"));
}

TEST_F(WorkerCommandTest, EvictSumsWhatWasFreed) {
  const Outcome outcome =
      Run({"evict", address_ + "," + address_, FakeWorker::kSource, "ab", "c/"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.error;
  EXPECT_EQ(outcome.out, "3.9 KiB freed\n");
  const Outcome unknown = Run({"evict", address_, "s3://other"});
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_THAT(unknown.error, HasSubstr("no source s3://other"));
}

TEST_F(WorkerCommandTest, WrongUsageIsToldApart) {
  for (const Arguments& arguments :
       {Arguments{"drain"}, Arguments{"drain", "a", "b"}, Arguments{"drain", "a,b"},
        Arguments{"evict", address_}, Arguments{"load", address_}, Arguments{"status", "unix:/x"},
        Arguments{"status", "http://x"}, Arguments{"status", "x:0"}, Arguments{"statsu"},
        Arguments{"status", "--certificate=/x"}, Arguments{"status", "--interval=1ms"},
        Arguments{"status", "--timeout=0s"}}) {
    EXPECT_EQ(Run(arguments).exit_code, 2) << ::testing::PrintToString(arguments);
  }
  EXPECT_EQ(Run({}).exit_code, 2);
  for (const char* command : {"status", "drain", "load", "evict"}) {
    const Outcome outcome = Run({command, "--help"});
    EXPECT_EQ(outcome.exit_code, 0);
    EXPECT_THAT(outcome.out, HasSubstr(absl::StrCat("Usage: millrace worker ", command)));
  }
}

TEST(FindWorkersTest, TakesListsNamesAndPorts) {
  const auto addresses = [](const std::vector<std::string>& words) {
    std::string text;
    const auto found = FindWorkers(words, {});
    for (const proto::WorkerClientOptions& options : *found) {
      absl::StrAppend(&text, options.address, " ");
    }
    return text;
  };
  EXPECT_EQ(addresses({}), "localhost:7450 ");
  EXPECT_EQ(addresses({"a", "b:1,c", "10.0.0.1"}), "a:7450 b:1 c:7450 10.0.0.1:7450 ");
  EXPECT_EQ(addresses({"[::1]", "[::1]:9"}), "[::1]:7450 [::1]:9 ");
  const auto named = FindWorkers({"dns:localhost:99"}, {});
  ASSERT_TRUE(named.ok()) << named.status();
  ASSERT_FALSE(named->empty());
  for (const proto::WorkerClientOptions& options : *named) {
    EXPECT_TRUE(options.address == "127.0.0.1:99" || options.address == "[::1]:99")
        << options.address;
    EXPECT_EQ(options.server_name, "localhost");
  }
}

TEST(WorkerViewTest, TheBarCountsExtents) {
  proto::DrainProgress progress;
  progress.bytes_done = 1 << 20;
  progress.bytes_total = 4 << 20;
  progress.extents_done = 1;
  progress.extents_total = 4;
  progress.total_known = true;
  progress.bytes_per_second = 1 << 20;
  EXPECT_EQ(
      ProgressLine(BarOf(progress), "extents", 100),
      "[=========>                          ]  25%  1.0 MiB of 4.0 MiB  1 of 4 extents  1.0 MiB/s  "
      "3s left");
}

TEST(WorkerViewTest, SaysHowFarADrainIs) {
  AskedWorker worker{"h:7450", Report()};
  worker.report->draining = true;
  worker.report->drain = proto::DrainProgress{};
  worker.report->drain->extents_done = 1;
  worker.report->drain->extents_total = 4;
  worker.report->drain->extents_failed = 2;
  worker.report->drain->last_error = "full";
  const std::string text = RenderWorker(worker, absl::FromUnixSeconds(1060));
  EXPECT_THAT(text, AllOf(HasSubstr("draining, up 1m 0s"), HasSubstr("1 of 4 extents"),
                          HasSubstr("2 failed (the last: full)")));
  worker.report->drain->done = true;
  EXPECT_THAT(RenderWorker(worker, absl::Now()), HasSubstr("drained"));
}

}  // namespace
}  // namespace millrace::cli
