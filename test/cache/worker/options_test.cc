// Unit tests of cache/worker/options.
#include "cache/worker/options.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"

namespace millrace::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

WorkerOptions Parse(std::vector<std::string> arguments) {
  const absl::StatusOr<ParsedWorker> parsed = ParseWorkerOptions(arguments);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? parsed->options : WorkerOptions();
}

std::string ErrorOf(std::vector<std::string> arguments) {
  const absl::Status status = ParseWorkerOptions(arguments).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  return std::string(status.message());
}

TEST(WorkerOptionsTest, TakesWhatIsGiven) {
  const WorkerOptions options =
      Parse({"file:///a", "t=s3://b/c", "--tier",     "ssd:/cache:1Gi", "--id=w1", "--members",
             "a:1,b:2",   "--members",  "dns:w:7451", "--replicas",     "2",       "--extent-size",
             "1Mi",       "--listen",   "127.0.0.1",  "--data-port",    "0",       "--guest-share",
             "0.1",       "--dir",      "/run/m",     "--socket-group", "users"});
  EXPECT_THAT(options.sources, ElementsAre("file:///a", "t=s3://b/c"));
  ASSERT_EQ(options.tiers.size(), 1u);
  EXPECT_EQ(options.id, "w1");
  EXPECT_THAT(options.members, ElementsAre("a:1,b:2", "dns:w:7451"));
  EXPECT_EQ(options.replicas, 2u);
  EXPECT_EQ(options.extent_size, 1u << 20);
  EXPECT_EQ(options.data_port, 0);
  EXPECT_EQ(options.control_port, 7450);
  EXPECT_DOUBLE_EQ(options.guest_share, 0.1);
  EXPECT_EQ(options.socket_group, "users");
}

TEST(WorkerOptionsTest, HasDefaultsForAllButSourceAndTier) {
  const WorkerOptions options = Parse({"file:///a", "--tier", "ssd:/cache:1Gi"});
  EXPECT_FALSE(options.id.empty());
  EXPECT_EQ(options.extent_size, pool::kExtentSizeDefault);
  EXPECT_EQ(options.data_port, 7451);
  EXPECT_TRUE(options.directory.empty());
}

TEST(WorkerOptionsTest, NamesWhatIsWrong) {
  const std::string tier = "--tier=ssd:/cache:1Gi";
  EXPECT_THAT(ErrorOf({tier}), HasSubstr("no source"));
  EXPECT_THAT(ErrorOf({"file:///a"}), HasSubstr("no tier"));
  EXPECT_THAT(ErrorOf({"/a", tier}), HasSubstr("not a URL"));
  EXPECT_THAT(ErrorOf({"file:///a", "file:///a", tier}), HasSubstr("twice"));
  EXPECT_THAT(ErrorOf({"file:///a", tier, "--replicas", "0"}), HasSubstr("--replicas"));
  EXPECT_THAT(ErrorOf({"file:///a", tier, "--extent-size", "100Ki"}), HasSubstr("128Ki"));
  EXPECT_THAT(ErrorOf({"file:///a", tier, "--guest-share", "nan"}), HasSubstr("share"));
  EXPECT_THAT(ErrorOf({"file:///a", tier, "--data-port", "70000"}), HasSubstr("port"));
  EXPECT_THAT(ErrorOf({"file:///a", tier, "--key", "k"}), HasSubstr("--authority"));
  EXPECT_THAT(ErrorOf({"file:///a", tier, "--socket-group", "g"}), HasSubstr("--dir"));
  EXPECT_THAT(ErrorOf({"file:///a", tier, "--dir", "run"}), HasSubstr("absolute"));
  EXPECT_THAT(ErrorOf({"file:///a", tier, "--listen", "a b"}), HasSubstr("--listen"));
  EXPECT_THAT(ErrorOf({"file:///a", tier, "--id", ""}), HasSubstr("--id"));
  EXPECT_THAT(ErrorOf({"file:///a", tier, "--memmory-limit", "1Gi"}), HasSubstr("memory-limit"));
}

TEST(WorkerOptionsTest, TheCommandLineOverridesTheFile) {
  const testing::TemporaryDirectory directory;
  const std::string path = directory.path() + "/runtime.json";
  testing::WriteFile(path, R"({
    "mounts": [{"mountPoint": "file:///data", "name": "d", "path": "/"}],
    "worker": {"options": {"replicas": "3", "memory-limit": "1Gi", "members": "x:1",
                           "unknown": "1"},
               "tieredStoreLevels": [{"mountPaths": ["/c"], "mediumType": "SSD",
                                      "quotas": ["2Gi"]}]}})");
  const WorkerOptions options = Parse({"--config", path, "--replicas", "2", "--members", "y:2"});
  EXPECT_THAT(options.sources, ElementsAre("file:///data"));
  EXPECT_EQ(options.replicas, 2u);
  EXPECT_EQ(options.memory_limit_bytes, uint64_t{1} << 30);
  EXPECT_THAT(options.members, ElementsAre("y:2"));
  ASSERT_EQ(options.tiers.size(), 1u);
  EXPECT_EQ(options.tiers[0].path, "/c");
  EXPECT_THAT(options.notes, ElementsAre(HasSubstr("unknown")));
  EXPECT_THAT(ErrorOf({"--config", directory.path() + "/none"}), HasSubstr("--config"));
}

TEST(WorkerOptionsTest, HelpIsAskedForAndNothingElseMatters) {
  const absl::StatusOr<ParsedWorker> parsed = ParseWorkerOptions({"--help"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_TRUE(parsed->help);
  EXPECT_THAT(WorkerHelp(), HasSubstr("--guest-share"));
}

}  // namespace
}  // namespace millrace::worker
