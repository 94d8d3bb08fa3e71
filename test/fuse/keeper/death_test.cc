// Unit tests of what a daemon died of, and of the mount's text for fusermount3.
#include "fuse/keeper/death.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/unique_fd.h"
#include "fuse/keeper/mounting.h"
#include "gtest/gtest.h"

namespace millrace::keeper {
namespace {

const Exit kKilled = {Exit::How::kSignal, SIGKILL};

TEST(KilledForMemoryTest, ByTheCountOfTheCgroup) {
  const OomKills before = {"/cgroup/file", 3, 10};
  EXPECT_TRUE(KilledForMemory(kKilled, before, {"/cgroup/file", 4, 11}));
  // Somebody else's, in another cgroup.
  EXPECT_FALSE(KilledForMemory(kKilled, before, {"/cgroup/file", 3, 11}));
  // Whoever ends by itself was not killed.
  EXPECT_FALSE(KilledForMemory({Exit::How::kStatus, 1}, before, {"/cgroup/file", 4, 11}));
  EXPECT_FALSE(KilledForMemory({Exit::How::kSignal, SIGSEGV}, before, {"/cgroup/file", 4, 11}));
}

TEST(KilledForMemoryTest, ByTheMachinesWhereThereIsNoOther) {
  EXPECT_TRUE(KilledForMemory(kKilled, {"", 0, 10}, {"", 0, 11}));
  EXPECT_FALSE(KilledForMemory(kKilled, {"", 0, 10}, {"", 0, 10}));
  // Moved to another cgroup between the looks.
  EXPECT_TRUE(KilledForMemory(kKilled, {"/a", 0, 10}, {"/b", 1, 11}));
  EXPECT_FALSE(KilledForMemory(kKilled, {"/a", 0, 10}, {"/b", 1, 10}));
}

TEST(OomKillsTest, AreReadFromBothVersionsOfCgroups) {
  EXPECT_EQ(ParseOomKills("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), 7u);
  EXPECT_EQ(ParseOomKills("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"), 2u);
  EXPECT_EQ(ParseOomKills(""), 0u);
  EXPECT_EQ(ParseOomKills("oom_kill many\n"), 0u);
  EXPECT_EQ(OomFileOf("1:cpu:/\nnonsense\n"), "");
}

Exit EndOf(void (*child)()) {
  const pid_t pid = fork();
  if (pid == 0) {
    child();
    _exit(0);
  }
  const base::UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  Exit exit;
  while ((exit = ReapExit(pidfd.get())).how == Exit::How::kUnknown) {
  }
  return exit;
}

TEST(ReapExitTest, TellsStatusAndSignal) {
  EXPECT_TRUE(EndOf([] { _exit(75); }).IsStatus(75));
  const Exit killed = EndOf([] { raise(SIGKILL); });
  EXPECT_EQ(killed.how, Exit::How::kSignal);
  EXPECT_EQ(DescribeExit(killed), "killed by signal 9 (Killed)");
  EXPECT_EQ(DescribeExit(EndOf([] {})), "exited with status 0");
}

TEST(FusermountOptionsTest, AHostileSourceStaysOneOption) {
  EXPECT_EQ(FusermountOptions({.mountpoint = "/m", .source_text = "s3://b/a,suid\\"}),
            "ro,nosuid,nodev,subtype=millrace,fsname=s3://b/a\\,suid\\\\,default_permissions");
  EXPECT_EQ(FusermountOptions({.mountpoint = "/m", .source_text = "x", .allow_other = true}),
            "ro,nosuid,nodev,subtype=millrace,fsname=x,default_permissions,allow_other");
  EXPECT_EQ(FusermountOptions({.mountpoint = "/m", .source_text = "x", .check_permissions = false}),
            "ro,nosuid,nodev,subtype=millrace,fsname=x");
}

}  // namespace
}  // namespace millrace::keeper
