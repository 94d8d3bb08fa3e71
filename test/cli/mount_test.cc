// Tests of `millrace mount` against daemons that are shell scripts: what the command makes of each
// way a start can end.
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "common/base/file_text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::CaptureStdout;
using ::testing::internal::GetCapturedStderr;
using ::testing::internal::GetCapturedStdout;

class MountTest : public ::testing::Test {
 protected:
  MountTest() {
    std::string name = ::testing::TempDir() + "mount_test.XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }

  struct Outcome {
    int exit_code;
    std::string out;
    std::string error;
  };

  // Runs the command with a daemon whose body is `script`.
  Outcome Mount(const std::string& script, const Arguments& arguments = {"s3://b", "/m"}) {
    const std::string program = directory_ + "/daemon";
    EXPECT_TRUE(base::WriteTextFile(program, "#!/bin/sh\n" + script, 0700).ok());
    CaptureStdout();
    CaptureStderr();
    const int exit_code = MountInBackground(program, arguments);
    fflush(stdout);
    const std::string out = GetCapturedStdout();
    return {exit_code, out, GetCapturedStderr()};
  }

  std::string directory_;
};

TEST_F(MountTest, PrintsTheSummaryOfADaemonThatIsReady) {
  const Outcome outcome = Mount(
      R"(echo '{"log":"/nowhere"}' >&3
         echo '{"ready":true,"summary":{"mountpoint":"/m","facts":[["source","s3://b"]]}}' >&3)");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.error;
  EXPECT_EQ(outcome.out, "Mounted /m\n  source  s3://b\n");
  EXPECT_EQ(outcome.error, "");
}

TEST_F(MountTest, HandsItsArgumentsOver) {
  const Outcome outcome = Mount("for a in \"$@\"; do echo \"<$a>\" >> " + directory_ +
                                    "/args; done; " + R"(echo '{"ready":true}' >&3)",
                                {"--tier", "ssd:/a b:1Gi", "s3://b", "/m"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.error;
  EXPECT_EQ(*base::ReadTextFile(directory_ + "/args", 4096),
            "<--ready-fd=3>\n<--tier>\n<ssd:/a b:1Gi>\n<s3://b>\n</m>\n");
}

TEST_F(MountTest, PassesTheDaemonsErrorOn) {
  const Outcome outcome =
      Mount(R"(echo '{"ready":false,"exit_code":2,"error":"bad option; mend it"}' >&3; exit 2)");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(outcome.error, "millrace: bad option; mend it\n");
  EXPECT_EQ(outcome.out, "");
}

TEST_F(MountTest, ShowsTheLastWordsOfADaemonThatDied) {
  const Outcome early = Mount("echo 'cannot load libfuse' >&2; exit 127");
  EXPECT_EQ(early.exit_code, 1);
  EXPECT_THAT(early.error, HasSubstr("the daemon died before the mount answered"));
  EXPECT_THAT(early.error, HasSubstr("\n  cannot load libfuse\n"));

  const Outcome late = Mount("echo 'boom' > " + directory_ + R"(/log
      echo '{"log":")" + directory_ +
                             R"(/log"}' >&3
      kill -9 $$)");
  EXPECT_EQ(late.exit_code, 1);
  EXPECT_THAT(late.error, HasSubstr("its log is " + directory_ + "/log"));
  EXPECT_THAT(late.error, HasSubstr("\n  boom\n"));
}

TEST_F(MountTest, ADaemonThatTalksNonsenseIsStopped) {
  const Outcome outcome =
      Mount("echo $$ > " + directory_ + "/pid; echo nonsense >&3; exec tail -f /dev/null");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.error, HasSubstr("not valid JSON"));
  int pid = 0;
  std::string text = *base::ReadTextFile(directory_ + "/pid", 100);
  ASSERT_TRUE(absl::SimpleAtoi(text, &pid));
  EXPECT_NE(kill(pid, 0), 0);
  EXPECT_EQ(errno, ESRCH);
}

TEST_F(MountTest, SaysThatTheProgramCannotBeStarted) {
  CaptureStderr();
  EXPECT_EQ(MountInBackground(directory_ + "/none", {}), 1);
  EXPECT_THAT(GetCapturedStderr(), HasSubstr("cannot start " + directory_ + "/none"));
}

TEST(HelpTest, SuggestsTheNearestCommand) {
  EXPECT_THAT(UnknownCommand("umuont"), HasSubstr("did you mean umount?"));
  EXPECT_THAT(UnknownCommand("xyzzy"), HasSubstr("millrace help lists all commands"));
  EXPECT_EQ(WarmMain({}), 2);
  EXPECT_EQ(UmountMain({"--lasy", "/m"}), 2);
  EXPECT_EQ(StatusMain({"/a", "/b"}), 2);
}

}  // namespace
}  // namespace millrace::cli
