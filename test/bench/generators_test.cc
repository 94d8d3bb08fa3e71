// The load generators on directories of their own making.
#include "cli/bench/generators.h"

#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "cli/bench/bench.h"
#include "cli/bench/file_list.h"
#include "cli/bench/histogram.h"
#include "cli/bench/random.h"
#include "common/base/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace millrace::bench {
namespace {

class GeneratorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/generators.XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  absl::Status Make(const std::string& name, const std::string& seed) {
    ::testing::internal::CaptureStdout();
    absl::Status status =
        RunMake({directory_ + "/" + name, "--files", "20", "--size-min", "1Ki", "--size-max", "9Ki",
                 "--directories", "3", "--big", "100001", "--seed", seed});
    ::testing::internal::GetCapturedStdout();
    return status;
  }

  // Runs a generator with --json and returns what it printed.
  static nlohmann::json Report(absl::Status (*run)(const std::vector<std::string>&),
                               std::vector<std::string> arguments, absl::Status* status) {
    arguments.push_back("--json");
    ::testing::internal::CaptureStdout();
    *status = run(arguments);
    return nlohmann::json::parse(::testing::internal::GetCapturedStdout(), nullptr, false);
  }

  std::string directory_;
};

std::map<std::string, std::string> Contents(const std::string& root) {
  std::map<std::string, std::string> contents;
  const std::vector<std::string> paths = ListFiles(root).value();
  for (const std::string& path : paths) {
    std::ifstream file(path, std::ios::binary);
    contents[path.substr(root.size())] =
        std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return contents;
}

TEST_F(GeneratorsTest, MakeFollowsFromTheSeedAlone) {
  ASSERT_TRUE(Make("a", "7").ok());
  ASSERT_TRUE(Make("b", "7").ok());
  ASSERT_TRUE(Make("c", "8").ok());
  const auto a = Contents(directory_ + "/a");
  EXPECT_EQ(a.size(), 21u);
  EXPECT_EQ(a.at("/big.bin").size(), 100001u);
  EXPECT_TRUE(a == Contents(directory_ + "/b"));
  EXPECT_FALSE(a == Contents(directory_ + "/c"));
  for (const auto& [path, content] : a) {
    if (path == "/big.bin") continue;
    EXPECT_GE(content.size(), base::kKiB);
    EXPECT_LE(content.size(), 9 * base::kKiB);
  }
}

TEST_F(GeneratorsTest, EpochReadsEverythingAndItsDigestTellsTreesApart) {
  ASSERT_TRUE(Make("a", "7").ok());
  ASSERT_TRUE(Make("b", "7").ok());
  ASSERT_TRUE(Make("c", "8").ok());
  std::map<std::string, nlohmann::json> reports;
  for (const char* name : {"a", "b", "c"}) {
    absl::Status status;
    reports[name] =
        Report(RunEpoch, {directory_ + "/" + name, "--threads", "3", "--epochs", "2", "--verify"},
               &status);
    EXPECT_TRUE(status.ok()) << status;
  }
  const nlohmann::json& epochs = reports["a"]["epochs"];
  ASSERT_EQ(epochs.size(), 2u);
  uint64_t bytes = 0;
  for (const auto& [path, content] : Contents(directory_ + "/a")) bytes += content.size();
  for (const nlohmann::json& epoch : epochs) {
    EXPECT_EQ(epoch["files"], 21);
    EXPECT_EQ(epoch["bytes"], bytes);
    EXPECT_EQ(epoch["errors"], 0);
    EXPECT_EQ(epoch["digest"], reports["b"]["epochs"][0]["digest"]);
    EXPECT_NE(epoch["digest"], reports["c"]["epochs"][0]["digest"]);
  }
}

TEST_F(GeneratorsTest, ReadCoversTheFileOnceWhateverTheJobs) {
  ASSERT_TRUE(Make("a", "7").ok());
  const std::string big = directory_ + "/a/big.bin";
  for (const char* jobs : {"1", "3"}) {
    absl::Status status;
    const nlohmann::json report =
        Report(RunRead, {big, "--block", "4Ki", "--jobs", jobs, "--verify-against", big}, &status);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(report["bytes"], 100001);
    EXPECT_EQ(report["reads"], 25);
    EXPECT_EQ(report["mismatches"], 0);
  }
}

TEST_F(GeneratorsTest, ReadCountsRandomReadsOverManyFiles) {
  ASSERT_TRUE(Make("a", "7").ok());
  absl::Status status;
  const nlohmann::json report = Report(
      RunRead,
      {directory_ + "/a", "--pattern", "random", "--block", "512", "--jobs", "8", "--count", "100"},
      &status);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(report["files"], 21);
  EXPECT_EQ(report["reads"], 100);
}

TEST_F(GeneratorsTest, ReadFindsAWrongByte) {
  ASSERT_TRUE(Make("a", "7").ok());
  ASSERT_TRUE(Make("b", "7").ok());
  {
    std::fstream file(directory_ + "/b/big.bin", std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(70000);
    const char other = static_cast<char>(file.peek() ^ 1);
    file.seekp(70000);
    file.put(other);
  }
  absl::Status status;
  const nlohmann::json report = Report(
      RunRead,
      {directory_ + "/a/big.bin", "--verify-against", directory_ + "/b/big.bin", "--block", "4Ki"},
      &status);
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_EQ(report["mismatches"], 1);
}

TEST_F(GeneratorsTest, StatListAndDropCountFiles) {
  ASSERT_TRUE(Make("a", "7").ok());
  absl::Status status;
  EXPECT_EQ(Report(RunStat, {directory_ + "/a", "--passes", "3"}, &status)["passes"].size(), 3u);
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(Report(RunList, {directory_ + "/a/small"}, &status)["entries"], 3);
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(Report(RunDrop, {directory_ + "/a"}, &status)["files"], 21);
  EXPECT_TRUE(status.ok());
}

TEST_F(GeneratorsTest, ErrorsSayWhat) {
  EXPECT_TRUE(absl::IsNotFound(RunEpoch({directory_ + "/missing"})));
  EXPECT_TRUE(absl::IsFailedPrecondition(RunStat({directory_})));
  for (const std::vector<std::string>& wrong :
       std::vector<std::vector<std::string>>{{},
                                             {"a", "b"},
                                             {"a", "--threads"},
                                             {"a", "--threads", "0"},
                                             {"a", "--order", "up"},
                                             {"a", "--seed", "-1"},
                                             {"a", "--nonsense"},
                                             {"a", "-t"}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(RunEpoch(wrong)));
  }
}

TEST(BenchMainTest, ExitCodes) {
  const auto run = [](std::vector<std::string> words) {
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    return BenchMain(static_cast<int>(argv.size()), argv.data());
  };
  EXPECT_EQ(run({"bench"}), 2);
  EXPECT_EQ(run({"bench", "--help"}), 0);
  EXPECT_EQ(run({"bench", "epoch", "--help"}), 0);
  EXPECT_EQ(run({"bench", "nonsense"}), 2);
  EXPECT_EQ(run({"bench", "epoch"}), 2);
  EXPECT_EQ(run({"bench", "epoch", "/nonexistent/directory"}), 1);
}

TEST(HistogramTest, QuantilesAreCloseAndNeverLow) {
  Histogram low;
  Histogram high;
  for (uint64_t i = 1; i <= 50'000; ++i) low.Record(i * 1000);
  for (uint64_t i = 50'001; i <= 100'000; ++i) high.Record(i * 1000);
  low.Add(high);
  EXPECT_EQ(low.count(), 100'000u);
  EXPECT_EQ(low.max(), 100'000'000u);
  for (const double fraction : {0.01, 0.5, 0.99, 1.0}) {
    const double exact = fraction * 100'000'000;
    EXPECT_GE(low.Quantile(fraction), exact);
    EXPECT_LE(low.Quantile(fraction), exact * 1.009);
  }
  Histogram extreme;
  EXPECT_EQ(extreme.Quantile(0.5), 0u);
  extreme.Record(0);
  extreme.Record(UINT64_MAX);
  EXPECT_EQ(extreme.Quantile(0.5), 0u);
  EXPECT_EQ(extreme.max(), UINT64_MAX);
}

TEST(RandomTest, IsTheSameEverywhere) {
  // Data sets on two machines must be equal: these values may never change.
  Random random(1, 2);
  EXPECT_EQ(random.Next(), 0xd561b363f2d31b4cu);
  EXPECT_EQ(random.Next(), 0x29b4f1ca02cb30d3u);
  EXPECT_EQ(Random(1).Next(), 0xb3f2af6d0fc710c5u);
  std::vector<int> items = {1, 2, 3, 4, 5, 6, 7, 8};
  Random(1).Shuffle(&items);
  EXPECT_THAT(items, ::testing::UnorderedElementsAre(1, 2, 3, 4, 5, 6, 7, 8));
  for (int i = 0; i < 1000; ++i) EXPECT_LT(random.Below(7), 7u);
}

}  // namespace
}  // namespace millrace::bench
