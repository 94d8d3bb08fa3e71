// Unit tests of cache/config: what one runtime.json says to each component. What it means for a
// mount is tested with the mount's options.
#include "cache/config/runtime_config.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::config {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr char kConfig[] = R"({
  "mounts": [{"mountPoint": "s3://bucket/dir", "name": "train"}],
  "client": {"options": {"memory-limit": "1Gi"},
             "tieredStoreLevels": [{"mountPaths": ["/dev/shm"], "mediumType": "MEM",
                                    "quotas": ["2Gi"]}]},
  "worker": {"options": {"replicas": 2},
             "tieredStoreLevels": [{"mountPaths": ["/a", "/b"], "mediumType": "SSD",
                                    "quotas": ["1Ti", "2Ti"], "high": 0.9}]}
})";

TEST(RuntimeConfigTest, EachComponentTakesItsPart) {
  const absl::StatusOr<RuntimeConfig> worker = ParseRuntimeConfig(kConfig, "worker");
  ASSERT_TRUE(worker.ok()) << worker.status();
  EXPECT_THAT(worker->sources, ElementsAre("train=s3://bucket/dir"));
  EXPECT_THAT(worker->options, ElementsAre(Pair("replicas", "2")));
  ASSERT_EQ(worker->tiers.size(), 2);
  EXPECT_EQ(worker->tiers[1].path, "/b");
  EXPECT_EQ(worker->tiers[1].quota_bytes, uint64_t{2} << 40);
  EXPECT_EQ(worker->tiers[0].high_water, 0.9);

  const absl::StatusOr<RuntimeConfig> client = ParseRuntimeConfig(kConfig, "client");
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_THAT(client->sources, ElementsAre("train=s3://bucket/dir"));
  EXPECT_THAT(client->options, ElementsAre(Pair("memory-limit", "1Gi")));
  ASSERT_EQ(client->tiers.size(), 1);
  EXPECT_EQ(client->tiers[0].medium, tier::Medium::kMem);
}

TEST(RuntimeConfigTest, AComponentThatIsNotThereHasDefaults) {
  const absl::StatusOr<RuntimeConfig> config = ParseRuntimeConfig(R"({"mounts": []})", "worker");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->tiers.empty());
  EXPECT_TRUE(config->options.empty());
}

TEST(RuntimeConfigTest, ErrorsNameTheComponent) {
  EXPECT_THAT(std::string(ParseRuntimeConfig(R"({"worker": []})", "worker").status().message()),
              HasSubstr("worker must be an object"));
  const absl::Status status =
      ParseRuntimeConfig(R"({"worker": {"tieredStoreLevels": [{"mediumType": "TAPE"}]}})", "worker")
          .status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("worker.tieredStoreLevels[0].mediumType"));
}

}  // namespace
}  // namespace millrace::config
