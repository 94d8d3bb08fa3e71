// Unit tests of common/metrics: the page is what Prometheus' own tool accepts.
#include "common/metrics/metrics.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>
#include <string>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/file_text.h"
#include "common/base/unique_fd.h"
#include "common/metrics/rate_sampler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

extern char** environ;

namespace millrace::metrics {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// Every metric once, as a running mount has them.
CollectorHandle Fill(Metrics* metrics) {
  for (const char* tier : {kTierPage, kTierLocal, kTierShortCircuit, kTierRemote, kTierStore}) {
    metrics->Read("train", tier).Record(1000, absl::Microseconds(70));
  }
  metrics->Read("never \"read\"\n", kTierStore);
  metrics->GetCounter(kPassthroughOpens, {"train"})->Add(3);
  metrics->GetCounter(kPassthroughBytes, {"train"})->Add(3000);
  metrics->GetCounter(kStoreRequests, {"train", "get", "206"})->Add();
  metrics->GetCounter(kStoreBytes, {"train", "read"})->Add(1000);
  metrics->GetCounter(kTakeovers, {"signal"});
  metrics->GetCounter(kFuseRequests, {"lookup"})->Add();
  metrics->CountError("tier", "disk");
  return metrics->AddCollector([](SampleSink& sink) {
    for (const MetricInfo* metric :
         {&kCacheUsed, &kCacheCapacity, &kCacheDemotions, &kCacheRefused}) {
      sink.Add(*metric, {"ssd:/c"}, 5);
    }
    sink.Add(kCacheEvictions, {"ssd:/c", "quota"}, 2);
    sink.Add(kWorkerConnections, {}, 4);
    sink.Add(kWorkerRefused, {"frame"}, 1);
    sink.Add(kWorkerLeases, {}, 2);
    sink.Add(kWorkerHandedOver, {"train"}, 9);
    sink.Add(kWorkerThreads, {}, 3);
    sink.Add(kPoolBytes, {"worker"}, 7);
    sink.Add(kPoolBypassed, {}, 1);
    sink.Add(kPoolNames, {"index"}, 1);
    sink.Add(kPoolFaults, {"call"}, 1);
    sink.Add(kPoolMembers, {"answers"}, 3);
    Histogram::Snapshot pauses = {};
    sink.AddHistogram(kTakeoverSeconds, {}, pauses);
    sink.Add(kSessionsLost, {}, 0);
    sink.Add(kNamesHidden, {}, 1);
    sink.Add(kNames, {"file"}, 10);
    sink.Add(kMemoryUsed, {}, 1);
    sink.Add(kMemoryLimit, {}, 2);
  });
}

TEST(MetricNamesTest, FollowTheRules) {
  std::set<absl::string_view> names;
  for (const MetricInfo* const metric : kAllMetrics) {
    EXPECT_TRUE(names.insert(metric->name).second) << metric->name;
    EXPECT_EQ(metric->kind == MetricKind::kCounter, absl::EndsWith(metric->name, "_total"))
        << metric->name;
    EXPECT_TRUE(absl::EndsWith(metric->help, ".")) << metric->name;
  }
}

TEST(MetricsTest, ShowsEveryMetric) {
  Metrics metrics("1.2.3");
  const CollectorHandle collector = Fill(&metrics);
  const std::string page = metrics.Page();
  for (const MetricInfo* const metric : kAllMetrics) {
    EXPECT_THAT(page, HasSubstr(absl::StrCat("# HELP ", std::string(metric->name))));
  }
  EXPECT_THAT(page,
              HasSubstr("millrace_read_bytes_total{dataset=\"train\",tier=\"local\"} 1000\n"));
  EXPECT_THAT(page, HasSubstr("millrace_store_requests_total{store=\"train\",op=\"get\","
                              "code=\"206\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("millrace_build_info{version=\"1.2.3\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("millrace_cache_hit_ratio{dataset=\"train\"} 0.8"));
}

TEST(MetricsTest, HasNoRatioOfNothing) {
  Metrics metrics("1");
  EXPECT_THAT(metrics.Page(), Not(HasSubstr("hit_ratio")));
  metrics.Read("train", kTierLocal);
  const std::string page = metrics.Page();
  EXPECT_THAT(page, Not(HasSubstr("hit_ratio")));
  EXPECT_THAT(absl::AsciiStrToLower(page), Not(HasSubstr("nan\n")));
}

TEST(MetricsTest, HandlesAreTheSameForTheSameLabels) {
  Metrics metrics("1");
  EXPECT_EQ(metrics.Read("a", "local").bytes, metrics.Read("a", "local").bytes);
  EXPECT_NE(metrics.Read("a", "local").bytes, metrics.Read("b", "local").bytes);
  metrics.CountError("tier", "disk");
  metrics.CountError("tier", "disk");
  const auto errors = metrics.Counters(kErrors);
  ASSERT_EQ(errors.size(), 1u);
  EXPECT_THAT(errors[0].first, ElementsAre("tier", "disk"));
  EXPECT_EQ(errors[0].second, 2u);
}

TEST(MetricsTest, HistogramBucketsAreInclusiveAndComplete) {
  Histogram histogram;
  histogram.Observe(absl::Microseconds(50));  // On the first bound.
  histogram.Observe(absl::Microseconds(51));
  histogram.Observe(absl::Hours(1));
  const Histogram::Snapshot snapshot = histogram.Take();
  EXPECT_EQ(snapshot.buckets[0], 1u);
  EXPECT_EQ(snapshot.buckets[1], 1u);
  EXPECT_EQ(snapshot.buckets.back(), 1u);
  EXPECT_EQ(snapshot.count, 3u);
  EXPECT_NEAR(snapshot.sum_seconds, 3600.000101, 1e-6);
}

TEST(MetricsTest, CollectorsEndWithTheirHandles) {
  Metrics metrics("1");
  int calls = 0;
  {
    const CollectorHandle handle = metrics.AddCollector([&](SampleSink&) { ++calls; });
    metrics.Page();
  }
  metrics.Page();
  EXPECT_EQ(calls, 1);
}

TEST(MetricsTest, CountsFromManyThreadsWhilePagesAreMade) {
  Metrics metrics("1");
  const ReadMetrics read = metrics.Read("train", kTierLocal);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 1000; ++j) read.Record(1, absl::Microseconds(j));
    });
  }
  for (int i = 0; i < 10; ++i) metrics.Page();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(read.bytes->value(), 4000u);
  EXPECT_EQ(read.seconds->Take().count, 4000u);
}

std::string Get(int port, const std::string& path) {
  const base::UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return "";
  const std::string request =
      absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL);
  std::string answer;
  char buffer[4096];
  for (ssize_t size; (size = read(fd.get(), buffer, sizeof(buffer))) > 0;) {
    answer.append(buffer, size);
  }
  return answer;
}

TEST(MetricsServerTest, ServesThePageAndItsHealth) {
  Metrics metrics("1");
  ASSERT_TRUE(metrics.Serve("127.0.0.1:0").ok());
  ASSERT_GT(metrics.port(), 0);
  metrics.Read("train", kTierStore).Record(10, absl::Milliseconds(1));
  const std::string page = Get(metrics.port(), "/metrics");
  EXPECT_THAT(page, HasSubstr("200 OK"));
  EXPECT_THAT(page, HasSubstr("millrace_cache_hit_ratio{dataset=\"train\"} 0\n"));
  EXPECT_THAT(Get(metrics.port(), "/healthz"), HasSubstr("200 OK"));
  EXPECT_THAT(Get(metrics.port(), "/other"), HasSubstr("404"));
}

TEST(MetricsServerTest, SaysWhyItCannotBind) {
  Metrics first("1");
  ASSERT_TRUE(first.Serve("127.0.0.1:0").ok());
  Metrics second("1");
  const std::string taken = absl::StrCat("127.0.0.1:", first.port());
  const absl::Status status = second.Serve(taken);
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("cannot serve metrics on ", taken,
                                     ": Address already in use; give --metrics another")));
  for (const char* bad : {"", "localhost", "localhost:x", "1.2.3.4:99999", "h:-1"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(second.Serve(bad))) << bad;
  }
  EXPECT_TRUE(absl::IsUnavailable(second.Serve("192.0.2.1:0")));  // TEST-NET: never ours.
}

// The page as the server sends it, past the linter of Prometheus.
TEST(MetricsServerTest, PleasesPromtool) {
  Metrics metrics("1");
  const CollectorHandle collector = Fill(&metrics);
  ASSERT_TRUE(metrics.Serve("127.0.0.1:0").ok());
  Get(metrics.port(), "/metrics");  // The server's own metrics appear with the second page.
  std::string page = Get(metrics.port(), "/metrics");
  page.erase(0, page.find("\r\n\r\n") + 4);
  std::string directory = ::testing::TempDir() + "metrics.XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  const std::string file = directory + "/page";
  const std::string output = directory + "/output";
  ASSERT_TRUE(base::WriteTextFile(file, page, 0600).ok());
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, file.c_str(), O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT, 0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  std::string words[] = {"promtool", "check", "metrics"};
  char* argv[] = {words[0].data(), words[1].data(), words[2].data(), nullptr};
  pid_t pid = 0;
  const int failed = posix_spawnp(&pid, "promtool", &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed == ENOENT) GTEST_SKIP() << "promtool is not installed (package prometheus)";
  ASSERT_EQ(failed, 0);
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_EQ(WEXITSTATUS(status), 0) << base::ReadTextFile(output, 1 << 20).value_or("") << page;
}

class HandClock : public base::Clock {
 public:
  absl::Time Now() override { return absl::UnixEpoch() + now_; }
  absl::Duration Monotonic() override { return now_; }
  void Sleep(absl::Duration duration) override { now_ += duration; }

 private:
  absl::Duration now_ = absl::Seconds(1);
};

TEST(RateSamplerTest, MeasuresOverItsWindow) {
  HandClock clock;
  uint64_t total = 0;
  RateSampler sampler(&clock, absl::Seconds(10), [&] { return std::vector<uint64_t>{total, 7}; });
  EXPECT_THAT(sampler.Rates(), ElementsAre(0, 0));
  for (int second = 0; second < 5; ++second) {
    clock.Sleep(absl::Seconds(1));
    total += 100;
    sampler.Tick();
  }
  EXPECT_THAT(sampler.Rates(), ElementsAre(100, 0));
  for (int second = 0; second < 10; ++second) {
    clock.Sleep(absl::Seconds(1));
    sampler.Tick();
  }
  EXPECT_THAT(sampler.Rates(), ElementsAre(0, 0));
}

TEST(RateSamplerTest, StopsItsThread) {
  RateSampler sampler(base::RealClock(), absl::Seconds(10),
                      [] { return std::vector<uint64_t>{1}; });
  sampler.Start();
  sampler.Stop();
  EXPECT_THAT(sampler.Rates(), ElementsAre(0));
}

}  // namespace
}  // namespace millrace::metrics
