// `millrace bench soak` on plain directories: it finds every kind of fault that it exists to find,
// and none where there is none.
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/bench/generators.h"
#include "cli/bench/random.h"
#include "common/base/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace millrace::bench {
namespace {

class SoakTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/soak.XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    uint64_t seed = 0;
    for (const char* directory : {"", "a/", "a/b/"}) {
      std::filesystem::create_directories(root_ + "/reference/" + directory);
      for (const uint64_t size : {uint64_t{0}, uint64_t{1}, uint64_t{70'000}, base::kMiB + 3}) {
        std::string content(size, '\0');
        Random(++seed).Fill(content.data(), size);
        std::ofstream(absl::StrCat(root_, "/reference/", directory, "f", size)) << content;
      }
    }
    std::filesystem::copy(root_ + "/reference", root_ + "/seen",
                          std::filesystem::copy_options::recursive);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::string Seen(const std::string& path) const { return root_ + "/seen/" + path; }

  // Runs for a moment with further options; the last line it printed.
  nlohmann::json Soak(std::vector<std::string> options) {
    std::vector<std::string> arguments = {
        "--against", root_ + "/reference", root_ + "/seen", "--for", "200ms", "--json"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    ::testing::internal::CaptureStdout();
    status_ = RunSoak(arguments);
    const std::string printed = ::testing::internal::GetCapturedStdout();
    const size_t second = printed.find('\n') + 1;
    EXPECT_EQ(printed.substr(0, second), "{\"ready\":true}\n");
    return nlohmann::json::parse(printed.substr(second), nullptr, false);
  }

  static bool HasProblem(const nlohmann::json& report, const std::string& call,
                         const std::string& path, const std::string& what) {
    return std::any_of(
        report["problems"].begin(), report["problems"].end(), [&](const nlohmann::json& problem) {
          return problem["call"] == call && problem["path"] == path && problem["what"] == what;
        });
  }

  std::string root_;
  absl::Status status_;
};

TEST_F(SoakTest, EqualTreesAreClean) {
  const nlohmann::json report = Soak({"--readers", "6", "--for", "1s"});
  EXPECT_TRUE(status_.ok()) << status_;
  EXPECT_EQ(report["problems"].size(), 0u) << report.dump();
  EXPECT_EQ(report["hung"], 0);
  EXPECT_EQ(report["files"], 12);
  ASSERT_EQ(report["readers"].size(), 6u);
  for (const nlohmann::json& reader : report["readers"]) {
    EXPECT_GT(reader["operations"], 0) << reader;
    EXPECT_EQ(reader["bytes"] > 0, reader["kind"] != "walk") << reader;
  }
}

TEST_F(SoakTest, EveryKindThatReadsFindsOneWrongByte) {
  for (const char* path :
       {"f70000", "a/f70000", "a/b/f70000", "f1048579", "a/f1048579", "a/b/f1048579"}) {
    std::fstream file(Seen(path), std::ios::in | std::ios::out);
    file.seekg(60'000);
    const char wrong = static_cast<char>(file.get() ^ 1);
    file.seekp(60'000);
    file.put(wrong);
  }
  for (const char* kind : {"buffered", "direct", "mapped", "held", "fresh"}) {
    const nlohmann::json report = Soak({"--readers", "1", "--kinds", kind});
    EXPECT_FALSE(status_.ok());
    EXPECT_GT(report["wrong_bytes"], 0) << kind;
    EXPECT_EQ(report["errors"], 0) << kind;
    EXPECT_EQ(report["problems"][0]["offset"], 60'000) << kind;
  }
}

TEST_F(SoakTest, MissingFileIsAnErrorAndAMissingName) {
  std::filesystem::remove(Seen("a/f70000"));
  const nlohmann::json report = Soak({"--kinds", "fresh,walk", "--readers", "2"});
  EXPECT_TRUE(HasProblem(report, "open", "a/f70000", "No such file or directory")) << report;
  EXPECT_TRUE(HasProblem(report, "stat", "a/f70000", "No such file or directory")) << report;
  EXPECT_TRUE(HasProblem(report, "readdir", "a", "changed")) << report;
}

TEST_F(SoakTest, NameTooManyIsAChange) {
  std::ofstream(Seen("a/extra")) << "x";
  const nlohmann::json report = Soak({"--kinds", "walk", "--readers", "1"});
  EXPECT_TRUE(HasProblem(report, "readdir", "a", "changed")) << report;
}

TEST_F(SoakTest, ShortFileIsAnErrorAlsoWhereItIsMapped) {
  std::filesystem::resize_file(Seen("f1048579"), 8192);
  EXPECT_GT(Soak({"--kinds", "fresh", "--readers", "1"})["changed"], 0);
  // The pages behind the end are SIGBUS, which must not end the reader.
  const nlohmann::json report = Soak({"--kinds", "mapped", "--readers", "1"});
  EXPECT_TRUE(HasProblem(report, "fault", "f1048579", "Input/output error")) << report;
}

TEST_F(SoakTest, InodeNumberThatChangesIsAChange) {
  // Somebody puts an equal file in the place of the old one, again and again.
  const pid_t mischief = fork();
  if (mischief == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
      std::filesystem::copy_file(Seen("f70000"), Seen("new"),
                                 std::filesystem::copy_options::overwrite_existing);
      std::filesystem::rename(Seen("new"), Seen("f70000"));
    }
  }
  const nlohmann::json report = Soak({"--kinds", "fresh", "--readers", "1"});
  kill(mischief, SIGKILL);
  waitpid(mischief, nullptr, 0);
  EXPECT_TRUE(HasProblem(report, "fstat", "f70000", "changed")) << report;
  EXPECT_EQ(report["wrong_bytes"], 0);
}

TEST_F(SoakTest, ReaderThatHangsIsReportedAndDoesNotKeepTheOthers) {
  // Opening a FIFO that nobody writes to waits for ever.
  std::filesystem::remove(Seen("f70000"));
  ASSERT_EQ(mkfifo(Seen("f70000").c_str(), 0600), 0);
  const nlohmann::json report =
      Soak({"--kinds", "fresh,held", "--readers", "2", "--patience", "200ms"});
  EXPECT_EQ(report["hung"], 1);
  EXPECT_GT(report["readers"][1]["bytes"], 0);
  const nlohmann::json& problem = report["problems"].back();
  EXPECT_EQ(problem["what"], "hangs");
  EXPECT_EQ(problem["call"], "open");
}

TEST_F(SoakTest, SlowOperationsAreListedWithTheirTimes) {
  const nlohmann::json report = Soak({"--kinds", "held", "--readers", "1", "--slow", "0s"});
  ASSERT_GT(report["slow"].size(), 0u);
  for (const nlohmann::json& slow : report["slow"]) EXPECT_LE(slow[0], slow[1]);
}

TEST_F(SoakTest, WrongArgumentsAreRefused) {
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(RunSoak({"/tmp"}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RunSoak({"--against", "/tmp"}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(RunSoak({"--against", "/tmp", "--kinds", "slow", "/tmp"}).message()),
              ::testing::HasSubstr("buffered, direct"));
  ::testing::internal::GetCapturedStdout();
}

}  // namespace
}  // namespace millrace::bench
