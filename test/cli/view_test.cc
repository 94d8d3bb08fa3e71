// Unit tests of what the command shows: tables, progress, status; and of what it makes of paths.
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "cli/mount_lookup.h"
#include "cli/mount_users.h"
#include "cli/progress_bar.h"
#include "cli/status_view.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "common/base/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(TableTest, AlignsByCharacters) {
  EXPECT_EQ(RenderTable({{"NAME"}, {"SIZE", true}, {"NOTE"}},
                        {{"a", "1 B", "x"}, {"größer", "12 KiB"}, {}}, "  "),
            "  NAME      SIZE  NOTE\n"
            "  a          1 B  x\n"
            "  größer  12 KiB\n"
            "\n");
}

TEST(TableTest, FormatsNumbers) {
  EXPECT_EQ(GroupDigits(0), "0");
  EXPECT_EQ(GroupDigits(999), "999");
  EXPECT_EQ(GroupDigits(1000), "1,000");
  EXPECT_EQ(GroupDigits(UINT64_MAX), "18,446,744,073,709,551,615");
  EXPECT_EQ(ShortDuration(-5), "0s");
  EXPECT_EQ(ShortDuration(59), "59s");
  EXPECT_EQ(ShortDuration(3599), "59m 59s");
  EXPECT_EQ(ShortDuration(7260), "2h 1m");
  EXPECT_EQ(ShortDuration(90000), "1d 1h");
  EXPECT_EQ(Percent(0.9712), "97.1%");
  EXPECT_EQ(Percent(-1), "-");
}

control::WarmProgress Half() {
  control::WarmProgress progress;
  progress.bytes_done = base::kGiB;
  progress.bytes_total = 2 * base::kGiB;
  progress.files_done = 1203;
  progress.files_total = 2400;
  progress.total_known = true;
  progress.bytes_per_second = 256.0 * base::kMiB;
  return progress;
}

TEST(ProgressTest, FillsTheWidthWithABar) {
  EXPECT_EQ(ProgressLine(Half(), "files", 100),
            "[===============>              ]  50%  1.0 GiB of 2.0 GiB  1,203 of 2,400 files  "
            "256 MiB/s  4s left");
  const std::string facts = ProgressLine(Half(), "files", 10);  // No room for a bar.
  EXPECT_THAT(facts, Not(HasSubstr("[")));
  for (int columns = 1; columns < 200; ++columns) {
    const std::string line = ProgressLine(Half(), "files", columns);
    EXPECT_TRUE(line == facts || static_cast<int>(line.size()) <= columns) << line;
  }
}

TEST(ProgressTest, SaysWhatItDoesNotKnow) {
  control::WarmProgress progress = Half();
  progress.total_known = false;
  EXPECT_EQ(ProgressLine(progress, "files", 100),
            "1.0 GiB of at least 2.0 GiB  1,203 of 2,400 files  256 MiB/s");
  progress = control::WarmProgress();
  EXPECT_EQ(ProgressLine(progress, "files", 100), "0 B of at least 0 B  0 of 0 files");
}

TEST(ProgressTest, EndsAtAHundredPercentAndNoSooner) {
  control::WarmProgress progress = Half();
  progress.bytes_done = progress.bytes_total - 1;
  EXPECT_THAT(ProgressLine(progress, "files", 100), HasSubstr("]  99%"));
  progress.bytes_done = progress.bytes_total;
  EXPECT_THAT(ProgressLine(progress, "files", 100), HasSubstr("=] 100%"));
  progress.bytes_done = 2 * progress.bytes_total;  // Objects grew meanwhile.
  EXPECT_THAT(ProgressLine(progress, "files", 100), HasSubstr("=] 100%"));
  EXPECT_THAT(ProgressLine(progress, "files", 100), Not(HasSubstr("left")));
}

TEST(ProgressTest, SurvivesAbsurdNumbers) {
  control::WarmProgress progress = Half();
  progress.bytes_total = UINT64_MAX;
  progress.bytes_per_second = 1e-300;
  progress.files_failed = 3;
  const std::string text = ProgressText(progress, "files");
  EXPECT_THAT(text, HasSubstr("3 failed"));
  EXPECT_THAT(text, Not(HasSubstr("left")));
  progress.bytes_total = 0;
  progress.files_total = 0;
  EXPECT_THAT(ProgressLine(progress, "files", 100), HasSubstr("100%"));
}

control::StatusReport Report() {
  control::StatusReport report;
  report.mountpoint = "/data";
  report.version = "0.1.0";
  report.pid = 4711;
  report.started_unix = 1700000000;
  report.profile = "small-files";
  report.profile_reason = "98% of a sample is below 1 MiB";
  report.io = "uring";
  report.features = {{"open_less", true}, {"passthrough", false}};
  report.runs_as = "nobody, without privileges";
  report.sources = {{"train", "s3://bucket/train", "s3"}, {"val", "file:///srv/val", "file"}};
  control::TierStatus tier;
  tier.medium = "ssd";
  tier.path = "/var/cache/millrace/x";
  tier.used_bytes = base::kGiB;
  tier.capacity_bytes = 10 * base::kGiB;
  tier.files = 12345;
  tier.files_complete = 12000;
  tier.evictions = {{"quota", 3}, {"user", 0}, {"version", 1}};
  report.tiers = {tier};
  report.reads = {{"train", "local", 3 * base::kGiB, 3000}, {"train", "store", base::kGiB, 10}};
  report.read_bytes_per_second = 312.0 * base::kMiB;
  report.store_bytes = base::kGiB;
  report.store_requests = 77;
  report.errors = {{"fetch/store", 2}, {"fetch/cache", 0}};
  report.sessions_survived = 1203;
  report.keeper.pid = 4710;
  report.keeper.alive = true;
  report.keeper.takeovers = {{"signal", 1202}, {"oom", 1}, {"hang", 0}};
  report.keeper.last_pause_seconds = 0.0151;
  report.memory_used_bytes = 16 * base::kMiB;
  report.memory_limit_bytes = 512 * base::kMiB;
  report.resident_bytes = 48 * base::kMiB;
  report.files = 12345;
  report.directories = 12;
  return report;
}

TEST(StatusViewTest, TellsTheWorkersFilesApart) {
  control::StatusReport report = Report();
  report.tiers.clear();
  report.passthrough_opens = 2;
  report.passthrough_bytes = 3 * base::kGiB;
  report.passthrough_short_circuit_bytes = 2 * base::kGiB;
  report.reads.push_back({"train", "short_circuit", base::kMiB, 1});
  report.reads.push_back({"train", "remote", 2 * base::kMiB, 1});
  const std::string text = RenderStatus(report, absl::FromUnixSeconds(1700007380));
  EXPECT_THAT(text, HasSubstr("3.0 GiB in all, 2.0 GiB of them the worker's; the kernel"));
  EXPECT_THAT(text, HasSubstr("SHORT CIRCUIT"));
  EXPECT_THAT(text, HasSubstr("REMOTE"));
}

TEST(StatusViewTest, ShowsAMountInFull) {
  EXPECT_EQ(RenderStatus(Report(), absl::FromUnixSeconds(1700007380)),
            R"(/data  serving for 2h 3m  (process 4711, millrace 0.1.0)
  source      train = s3://bucket/train
  source      val = file:///srv/val
  profile     small-files, 98% of a sample is below 1 MiB
  features    uring, open_less yes, passthrough no
  runs as     nobody, without privileges
  throughput  312 MiB/s to readers, 0 B/s from the store
  hit ratio   75.0%
  passthrough 0 opens of files of 0 B in all; the kernel reads these by itself, uncounted
  store       1.0 GiB in 77 requests
  names       12,345 files, 12 directories, 0 hidden, 0 changed
  memory      16 MiB of 512 MiB budget, 48 MiB resident
  errors      fetch/store 2
  keeper      process 4710
  take-overs  1,203 survived (oom 1, signal 1,202), the last after 15 ms

  TIER     USED   QUOTA   FULL   FILES  COMPLETE  EVICTED  REFUSED  FAULTS  PATH
  ssd   1.0 GiB  10 GiB  10.0%  12,345    12,000        4        0       0  /var/cache/millrace/x

    HIT  REQUESTS    LOCAL    STORE  DATASET
  75.0%     3,010  3.0 GiB  1.0 GiB  train
)");
}

TEST(StatusViewTest, ShowsWorkers) {
  control::StatusReport report = Report();
  report.pool.members = {{"10.0.0.1:7451", "worker-0", true, false, 2 * base::kGiB, ""},
                         {"10.0.0.2:7451", "worker-1", true, true, base::kGiB, ""},
                         {"unix:/run/w.sock", "", false, false, 0, "cannot connect"}};
  report.pool.bytes_remote = 3 * base::kMiB;
  report.pool.bytes_through_store = 2 * base::kMiB;
  report.pool.bytes_short_circuit = base::kGiB;
  report.pool.bypassed = 4;
  report.pool.faults = 1234;
  report.pool.damaged = 5;
  const std::string text = RenderStatus(report, absl::FromUnixSeconds(1700007380));
  EXPECT_THAT(text, HasSubstr("  workers     3.0 MiB from them, 2.0 MiB that they fetched, 1.0 GiB "
                              "in files handed over; 4 by-passed, 1,234 faults (5 damaged)\n"));
  EXPECT_THAT(text, HasSubstr(R"(
  WORKER            ID        STATE     CAPACITY  LAST ERROR
  10.0.0.1:7451     worker-0  answers    2.0 GiB  -
  10.0.0.2:7451     worker-1  draining   1.0 GiB  -
  unix:/run/w.sock  -         away           0 B  cannot connect
)"));
}

TEST(StatusViewTest, SaysThatAKeeperIsGone) {
  control::StatusReport report = Report();
  report.keeper.alive = false;
  report.keeper.sessions_lost = 2;
  const std::string text = RenderStatus(report, absl::FromUnixSeconds(1700007380));
  EXPECT_THAT(text, HasSubstr("keeper      gone: adopt with millrace upgrade /data\n"));
  EXPECT_THAT(text, HasSubstr("15 ms, 2 mounts lost\n"));
}

TEST(StatusViewTest, ShowsACrashLoopAndItsRemedy) {
  control::StatusReport report;
  report.mountpoint = "/data";
  report.keeper = {.pid = 7, .alive = true, .crash_loop = "killed by signal 11"};
  EXPECT_EQ(RenderStatus(report, absl::FromUnixSeconds(1700007380)),
            R"(/data  crash loop: every read fails
  cause       killed by signal 11
  remedy      mend the cause, then: millrace upgrade /data
  keeper      process 7
  take-overs  0
)");
}

TEST(StatusViewTest, ListsMounts) {
  std::vector<MountLine> mounts(2);
  mounts[0] = {"/data", "serving", {"train=s3://b/t", "val=file:///v"}, Report()};
  mounts[1] = {"/dead", "dead", {"s3://b"}, {}};
  EXPECT_EQ(RenderMounts(mounts, absl::FromUnixSeconds(1700000005)),
            R"(MOUNTPOINT  STATE    FOR   CACHED   FULL    HIT       READ  ERRORS  SOURCES
/data       serving   5s  1.0 GiB  10.0%  75.0%  312 MiB/s       2  train=s3://b/t val=file:///v
/dead       dead       -        -      -      -          -       -  s3://b
)");
  EXPECT_EQ(RenderMounts({}, absl::UnixEpoch()), "no mounts\n");
}

TEST(StatusViewTest, PrintsNoEscapeSequences) {
  control::StatusReport report = Report();
  report.sources[0].url = "s3://\033[2J";
  report.reads[0].dataset = "a\nb";
  report.errors["x\033]0;y"] = 1;
  EXPECT_THAT(RenderStatus(report, absl::Now()), Not(HasSubstr("\033")));
  EXPECT_EQ(Printable("a\tb\x7f\xc3\xa9"), "a?b?\xc3\xa9");
}

TEST(PathsInsideTest, TakesAbsoluteAndRelativePaths) {
  EXPECT_THAT(*PathsInside("/data", "/home", {"/data/a/b/", "/data", "c", "./d//e"}),
              ElementsAre("a/b", "", "c", "d/e"));
  EXPECT_THAT(*PathsInside("/data", "/data/train", {"x", "..", "/data/y"}),
              ElementsAre("train/x", "", "y"));
  EXPECT_THAT(*PathsInside("/data", "/data", {}), ElementsAre());
}

TEST(PathsInsideTest, RefusesPathsThatLeaveTheMount) {
  for (const char* path : {"/etc", "../etc", "/database", "/data/../etc", "a/../../b"}) {
    const absl::Status status = PathsInside("/data", "/home", {path}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << path;
    EXPECT_THAT(std::string(status.message()), HasSubstr("is not inside the mount /data"));
  }
}

TEST(MountUsersTest, DescribesThem) {
  EXPECT_EQ(DescribeUsers({{7, "python3", "has /d/a open"}, {8, "bash", "works in /d"}}),
            "7 python3 (has /d/a open), 8 bash (works in /d)");
}

TEST(MountUsersTest, FindsThisProcess) {
  // Every process works somewhere below the root.
  const std::vector<MountUser> users = FindMountUsers("/", 0, 1000000);
  bool found = false;
  for (const MountUser& user : users) found = found || user.pid == getpid();
  EXPECT_TRUE(found);
  for (const MountUser& user : FindMountUsers("/", getpid(), 1000000)) {
    EXPECT_NE(user.pid, getpid());
  }
}

}  // namespace
}  // namespace millrace::cli
