// Unit tests of fuse/options/{options,validate}: what a mount is asked to be.
#include "fuse/options/options.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/file_text.h"
#include "common/base/flags.h"
#include "common/base/mount_table.h"
#include "common/base/paths.h"
#include "fuse/options/local_files.h"
#include "fuse/options/validate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::options {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using ::testing::Not;

MountOptions Parsed(const std::vector<std::string>& arguments) {
  const absl::StatusOr<ParsedMount> mount = ParseMountOptions(arguments);
  EXPECT_TRUE(mount.ok()) << mount.status();
  return mount.ok() ? mount->options : MountOptions();
}

std::string ErrorOf(const std::vector<std::string>& arguments) {
  const absl::Status status = ParseMountOptions(arguments).status();
  EXPECT_EQ(base::ExitCode(status), 2) << status;
  return base::ErrorText(status);
}

MountOptions WithConfig(const std::vector<std::string>& arguments, absl::string_view json) {
  const auto mount = ParseMountOptionsWithConfig(arguments, json, "runtime.json");
  EXPECT_TRUE(mount.ok()) << mount.status();
  return mount.ok() ? mount->options : MountOptions();
}

std::string ConfigError(absl::string_view json) {
  const absl::Status status =
      ParseMountOptionsWithConfig({"s3://b", "/m"}, json, "runtime.json").status();
  EXPECT_EQ(base::ExitCode(status), 2) << status;
  return base::ErrorText(status);
}

TEST(MountOptionsTest, HasTheDocumentedDefaults) {
  const MountOptions options = Parsed({"s3://bucket/dir", "/data"});
  EXPECT_THAT(options.sources, ElementsAre("s3://bucket/dir"));
  EXPECT_EQ(options.mountpoint, "/data");
  EXPECT_THAT(options.tiers, IsEmpty());
  EXPECT_FALSE(options.read_write);
  EXPECT_EQ(options.memory_limit_bytes, 512 * base::kMiB);
  EXPECT_EQ(options.refresh, absl::Seconds(60));
  EXPECT_EQ(options.store_deadline, absl::Seconds(60));
  EXPECT_EQ(options.connections, 16);
  EXPECT_EQ(options.uid, geteuid());
  EXPECT_EQ(options.file_mode, 0444u);
  EXPECT_EQ(options.dir_mode, 0555u);
  EXPECT_TRUE(options.look_ahead);
  EXPECT_TRUE(options.passthrough);
  EXPECT_EQ(options.profile, Profile::kAuto);
  EXPECT_EQ(options.io, Io::kAuto);
  EXPECT_EQ(options.transport, Transport::kDevice);
  EXPECT_EQ(options.eviction, tier::EvictionPolicy::kEpoch);
  EXPECT_EQ(options.ready_fd, -1);
}

TEST(MountOptionsTest, ComeBackFromArguments) {
  const std::vector<std::vector<std::string>> all = {
      {"s3://b", "/m"},
      {"--tier=mem:/dev/shm/a b:1Gi,high=0.9,low=0.25",
       "--tier=hdd:/x:y:5Ti",
       "--eviction=sieve",
       "--memory-limit=64Mi",
       "--profile=small-files",
       "--refresh=inf",
       "--store-deadline=90s",
       "--connections=3",
       "--look-ahead=off",
       "--io=posix",
       "--fuse-transport=uring",
       "--no-passthrough",
       "--allow-other",
       "--uid=1",
       "--gid=2",
       "--file-mode=0640",
       "--dir-mode=0750",
       "--user=77",
       "--hang-deadline=inf",
       "--crash-limit=0",
       "--metrics=:1",
       "--log-level=debug",
       "--foreground",
       "a=s3://b?x=y",
       "b=file:///c d",
       "/m\n"},
      {"--", "s3://b", "--odd"}};
  for (const std::vector<std::string>& arguments : all) {
    const MountOptions first = Parsed(arguments);
    const std::vector<std::string> written = ToArguments(first);
    const MountOptions second = Parsed(written);
    EXPECT_EQ(ToArguments(second), written);
    EXPECT_EQ(second.sources, first.sources);
    EXPECT_EQ(second.mountpoint, first.mountpoint);
    EXPECT_EQ(second.tiers.size(), first.tiers.size());
    EXPECT_EQ(second.profile, first.profile);
    EXPECT_EQ(second.passthrough, first.passthrough);
    EXPECT_EQ(second.transport, first.transport);
    EXPECT_EQ(second.file_mode, first.file_mode);
    EXPECT_EQ(second.hang_deadline, first.hang_deadline);
    EXPECT_EQ(second.crash_limit, first.crash_limit);
  }
}

TEST(MountOptionsTest, AHangDeadlineIsNoPause) {
  EXPECT_THAT(ErrorOf({"--hang-deadline=1s", "s3://b", "/m"}), HasSubstr("the least is 2s"));
}

TEST(MountOptionsTest, TakesEveryOption) {
  const MountOptions options = Parsed({"--tier",
                                       "mem:/dev/shm/m:1Gi",
                                       "--tier=ssd:/ssd:10Gi,high=0.9,low=0.5",
                                       "--eviction",
                                       "sieve",
                                       "--memory-limit",
                                       "64Mi",
                                       "--profile",
                                       "large-files",
                                       "--refresh",
                                       "inf",
                                       "--store-deadline",
                                       "5m",
                                       "--connections",
                                       "32",
                                       "--look-ahead",
                                       "off",
                                       "--io",
                                       "posix",
                                       "--fuse-transport",
                                       "uring",
                                       "--no-passthrough",
                                       "--read-only",
                                       "--allow-other",
                                       "--user",
                                       "daemon",
                                       "--hang-deadline",
                                       "20s",
                                       "--crash-limit",
                                       "9",
                                       "--uid",
                                       "7",
                                       "--gid",
                                       "8",
                                       "--file-mode",
                                       "640",
                                       "--dir-mode",
                                       "0750",
                                       "--metrics",
                                       ":7462",
                                       "--log-level",
                                       "error",
                                       "--foreground",
                                       "--ready-fd",
                                       "9",
                                       "a=s3://b",
                                       "c=file:///d",
                                       "/m"});
  ASSERT_EQ(options.tiers.size(), 2u);
  EXPECT_EQ(options.tiers[0].medium, tier::Medium::kMem);
  EXPECT_EQ(options.tiers[1].high_water, 0.9);
  EXPECT_EQ(options.eviction, tier::EvictionPolicy::kSieve);
  EXPECT_EQ(options.user, "daemon");
  EXPECT_EQ(options.hang_deadline, absl::Seconds(20));
  EXPECT_EQ(options.crash_limit, 9);
  EXPECT_EQ(options.memory_limit_bytes, 64 * base::kMiB);
  EXPECT_EQ(options.profile, Profile::kLargeFiles);
  EXPECT_EQ(options.refresh, absl::InfiniteDuration());
  EXPECT_EQ(options.store_deadline, absl::Minutes(5));
  EXPECT_EQ(options.connections, 32);
  EXPECT_FALSE(options.look_ahead);
  EXPECT_EQ(options.io, Io::kPosix);
  EXPECT_EQ(options.transport, Transport::kUring);
  EXPECT_FALSE(options.passthrough);
  EXPECT_TRUE(options.allow_other);
  EXPECT_EQ(options.uid, 7u);
  EXPECT_EQ(options.gid, 8u);
  EXPECT_EQ(options.file_mode, 0640u);
  EXPECT_EQ(options.dir_mode, 0750u);
  EXPECT_EQ(options.metrics_address, ":7462");
  EXPECT_EQ(options.log_level, base::Severity::kError);
  EXPECT_TRUE(options.foreground);
  EXPECT_EQ(options.ready_fd, 9);
  EXPECT_THAT(options.sources, ElementsAre("a=s3://b", "c=file:///d"));
}

TEST(MountOptionsTest, SaysWhatIsMissing) {
  EXPECT_THAT(ErrorOf({}), HasSubstr("neither source nor mountpoint"));
  EXPECT_THAT(ErrorOf({"/data"}), HasSubstr("no source is given, only \"/data\""));
  EXPECT_THAT(ErrorOf({"s3://a", "s3://b"}), HasSubstr("the mountpoint comes last"));
  EXPECT_THAT(ErrorOf({"/srv/set", "/data"}), HasSubstr("file:///srv/set"));
}

TEST(MountOptionsTest, SourcesJoinByTheirNames) {
  EXPECT_THAT(ErrorOf({"s3://a?endpoint=x", "b=s3://b", "/m"}),
              HasSubstr("\"s3://a\" has none; write NAME=URL"));
  EXPECT_THAT(ErrorOf({"a=s3://a", "a=s3://b", "/m"}), HasSubstr("two sources have the name"));
  EXPECT_THAT(ErrorOf({"a/b=s3://a", "/m"}), HasSubstr("becomes one directory"));
  EXPECT_THAT(ErrorOf({"..=s3://a", "/m"}), HasSubstr("becomes one directory"));
  EXPECT_EQ(SourceName("train=s3://b?x=y"), "train");
  EXPECT_EQ(SourceName("s3://b?x=y"), "");
  EXPECT_EQ(SourceName("file:///a=b"), "");
}

TEST(MountOptionsTest, RefusesWhatIsNotInThisVersion) {
  EXPECT_THAT(ErrorOf({"--read-write", "s3://a", "/m"}), HasSubstr("writing is not in this"));
}

TEST(MountOptionsTest, TakesWorkers) {
  const MountOptions options =
      Parsed({"--workers", "a:7451,[fd00::1]:7451", "--workers=dns:svc.ns:7451,unix:/run/w.sock",
              "--cluster", "east", "--worker-certificate", "/c", "--worker-key", "/k",
              "--worker-authority", "/a", "s3://b", "/m"});
  EXPECT_THAT(options.workers,
              ElementsAre("a:7451,[fd00::1]:7451", "dns:svc.ns:7451,unix:/run/w.sock"));
  EXPECT_EQ(options.cluster, "east");
  const std::vector<std::string> written = ToArguments(options);
  const MountOptions again = Parsed(written);
  EXPECT_EQ(ToArguments(again), written);
  EXPECT_EQ(again.workers, options.workers);
  EXPECT_EQ(again.worker_authority, "/a");
  EXPECT_EQ(WorkerSocketOf(options), "/run/w.sock");
  EXPECT_EQ(WorkerSocketOf(Parsed({"--workers=h:1", "s3://b", "/m"})), "");
  EXPECT_THAT(LocalFilesOf(options, store::ProcessEnvironment()).files,
              IsSupersetOf({"/c", "/k", "/a"}));
  EXPECT_THAT(ErrorOf({"--workers", "h", "s3://a", "/m"}), HasSubstr("--workers: \"h\" is not"));
  EXPECT_THAT(ErrorOf({"--workers", "", "s3://a", "/m"}), HasSubstr("HOST:PORT"));
  EXPECT_THAT(ErrorOf({"--workers=unix:/a", "--workers=unix:/b", "s3://a", "/m"}),
              HasSubstr("only one"));
}

TEST(MountOptionsTest, NamesTheWrongValue) {
  EXPECT_THAT(ErrorOf({"--memory-limit", "63Mi", "s3://a", "/m"}), HasSubstr("least is 64 MiB"));
  EXPECT_THAT(ErrorOf({"--file-mode", "999", "s3://a", "/m"}), HasSubstr("--file-mode"));
  EXPECT_THAT(ErrorOf({"--file-mode", "1777", "s3://a", "/m"}), HasSubstr("octal"));
  EXPECT_THAT(ErrorOf({"--dir-mode", "", "s3://a", "/m"}), HasSubstr("octal"));
  EXPECT_THAT(ErrorOf({"--uid", "4294967295", "s3://a", "/m"}), HasSubstr("numeric id"));
  EXPECT_THAT(ErrorOf({"--refresh", "0s", "s3://a", "/m"}), HasSubstr("the least is 1s"));
  EXPECT_THAT(ErrorOf({"--store-deadline", "inf", "s3://a", "/m"}), HasSubstr("24h"));
  EXPECT_THAT(ErrorOf({"--tier", "ssd", "s3://a", "/m"}), HasSubstr("--tier: "));
  EXPECT_THAT(ErrorOf({"--profil", "auto", "s3://a", "/m"}), HasSubstr("mean --profile?"));
  EXPECT_THAT(ErrorOf({"--config", "/nowhere/x.json"}), HasSubstr("cannot read /nowhere/x.json"));
}

TEST(MountOptionsTest, HelpShowsOptionsAndExamples) {
  const std::string help = MountHelp();
  for (const char* text : {"--tier MEDIUM:PATH:QUOTA", "--memory-limit SIZE", "Examples:",
                           "millrace mount s3://bucket/imagenet /data", "--config FILE"}) {
    EXPECT_THAT(help, HasSubstr(text));
  }
  EXPECT_THAT(help, Not(HasSubstr("ready-fd")));
  EXPECT_TRUE(ParseMountOptions({"--help"})->help);
}

TEST(MountOptionsTest, FindsThePipeWhateverElseIsWrong) {
  EXPECT_EQ(FindReadyFd({"--teir", "--ready-fd", "5"}), 5);
  EXPECT_EQ(FindReadyFd({"--ready-fd=6"}), 6);
  EXPECT_EQ(FindReadyFd({"--ready-fd", "x"}), -1);
  EXPECT_EQ(FindReadyFd({"--ready-fd"}), -1);
  EXPECT_EQ(FindReadyFd({}), -1);
}

constexpr char kConfig[] = R"({
  "mounts": [
    {"mountPoint": "s3://bucket/train", "name": "train", "shared": true,
     "options": {"endpoint": "http://minio:9000", "path-style": true, "note": "a b&c"},
     "encryptOptions": {"access-key": "/etc/fluid/secrets/s/key"}},
    {"mountPoint": "file:///srv/val", "name": "anything", "path": "/val"}],
  "targetPath": "/runtime-mnt/cache-fuse",
  "accessModes": ["ReadOnlyMany"],
  "master": {"enabled": false},
  "client": {
    "enabled": true,
    "options": {"memory-limit": "1Gi", "connections": 8, "allow-other": "", "look-ahead": "off",
                "alluxio.user.thing": "x", "foreground": "true", "tier": "ssd:/lost:1Gi"},
    "tieredStoreLevels": [
      {"mediumType": "MEM", "mountPaths": ["/dev/shm"], "quotas": ["2Gi"], "high": "0.9",
       "low": 0.5},
      {"mediumType": "hdd", "mountPaths": ["/d0", "/d1"], "quotas": ["1Ti", 1024]}]}
})";

TEST(RuntimeConfigTest, BecomesOptions) {
  const MountOptions options = WithConfig({}, kConfig);
  EXPECT_THAT(options.sources,
              ElementsAre("train=s3://bucket/train?endpoint=http://minio:9000&note=a%20b%26c"
                          "&path-style=true&access-key-file=/etc/fluid/secrets/s/key",
                          "val=file:///srv/val"));
  EXPECT_EQ(options.mountpoint, "/runtime-mnt/cache-fuse");
  EXPECT_EQ(options.memory_limit_bytes, base::kGiB);
  EXPECT_EQ(options.connections, 8);
  EXPECT_TRUE(options.allow_other);
  EXPECT_FALSE(options.look_ahead);
  EXPECT_FALSE(options.foreground);
  ASSERT_EQ(options.tiers.size(), 3u);
  EXPECT_EQ(options.tiers[0].medium, tier::Medium::kMem);
  EXPECT_EQ(options.tiers[0].high_water, 0.9);
  EXPECT_EQ(options.tiers[0].low_water, 0.5);
  EXPECT_EQ(options.tiers[1].medium, tier::Medium::kHdd);
  EXPECT_EQ(options.tiers[2].path, "/d1");
  EXPECT_EQ(options.tiers[2].quota_bytes, 1024u);
  EXPECT_EQ(options.notes.size(), 2u);
}

TEST(RuntimeConfigTest, TheCommandLineWins) {
  const MountOptions options = WithConfig(
      {"--memory-limit=256Mi", "--tier", "ssd:/mine:1Gi", "--read-only", "s3://other", "/there"},
      kConfig);
  EXPECT_THAT(options.sources, ElementsAre("s3://other"));
  EXPECT_EQ(options.mountpoint, "/there");
  EXPECT_EQ(options.memory_limit_bytes, 256 * base::kMiB);
  ASSERT_EQ(options.tiers.size(), 1u);
  EXPECT_EQ(options.tiers[0].path, "/mine");
  EXPECT_EQ(options.connections, 8);
}

TEST(RuntimeConfigTest, OnePositionalIsTheMountpoint) {
  const MountOptions options = WithConfig({"/there"}, kConfig);
  EXPECT_EQ(options.sources.size(), 2u);
  EXPECT_EQ(options.mountpoint, "/there");
}

TEST(RuntimeConfigTest, RootPathHasNoName) {
  EXPECT_THAT(WithConfig({"/m"}, R"({"mounts":[{"mountPoint":"s3://b?a=1","name":"n","path":"/",
                                    "options":{"region":"r"}}]})")
                  .sources,
              ElementsAre("s3://b?a=1&region=r"));
}

TEST(RuntimeConfigTest, WritingIsRefusedUnlessOverridden) {
  constexpr char kWriting[] = R"({"accessModes": ["ReadWriteMany"]})";
  EXPECT_THAT(ConfigError(kWriting), HasSubstr("accessModes"));
  EXPECT_FALSE(WithConfig({"--read-only", "s3://b", "/m"}, kWriting).read_write);
}

TEST(RuntimeConfigTest, NamesThePathOfAWrongField) {
  EXPECT_THAT(ConfigError("{"), HasSubstr("runtime.json: not valid JSON at byte 2"));
  EXPECT_THAT(ConfigError("[]"), HasSubstr("must be a JSON object, but is a list"));
  EXPECT_THAT(ConfigError(R"({"mounts": {}})"), HasSubstr("mounts must be a list of objects"));
  EXPECT_THAT(ConfigError(R"({"mounts": [{"mountPoint": 7}]})"),
              HasSubstr("mounts[0].mountPoint must be a string, but is a number"));
  EXPECT_THAT(ConfigError(R"({"mounts": [{}]})"), HasSubstr("mounts[0].mountPoint is missing"));
  EXPECT_THAT(ConfigError(R"({"mounts": [{"mountPoint": "s3://b", "options": {"a": []}}]})"),
              HasSubstr("mounts[0].options.a must be a string, but is a list"));
  EXPECT_THAT(ConfigError(R"({"mounts": [{"mountPoint": "s3://b", "path": "/a/b"}]})"),
              HasSubstr("mounts[0].path"));
  EXPECT_THAT(ConfigError(R"({"targetPath": 1})"), HasSubstr("targetPath must be a string"));
  EXPECT_THAT(ConfigError(R"({"client": 1})"), HasSubstr("client must be an object"));
  EXPECT_THAT(ConfigError(R"({"client": {"options": {"connections": "many"}}})"),
              HasSubstr("runtime.json: client.options.connections: \"many\" is not a number"));
}

TEST(RuntimeConfigTest, WorkersAreFoundByTheirService) {
  const auto workers = [](absl::string_view fields, std::vector<std::string> arguments = {}) {
    arguments.insert(arguments.end(), {"s3://b", "/m"});
    return WithConfig(arguments, absl::StrCat("{", fields, "}")).workers;
  };
  constexpr char kWorker[] = R"("worker": {"enabled": true, "service": {"name": "svc-w"}})";
  EXPECT_THAT(workers(kWorker), ElementsAre("dns:svc-w:7451"));
  EXPECT_THAT(workers(R"("worker": {"enabled": false, "service": {"name": "svc-w"}})"),
              ElementsAre());
  EXPECT_THAT(workers(R"("worker": {"enabled": true})"), ElementsAre());
  EXPECT_THAT(workers(absl::StrCat(kWorker, R"(, "client": {"options": {"workers": "h:1"}})")),
              ElementsAre("h:1"));
  EXPECT_THAT(workers(kWorker, {"--workers=unix:/w"}), ElementsAre("unix:/w"));
  EXPECT_THAT(ConfigError(R"({"worker": 1})"), HasSubstr("worker must be an object"));
  EXPECT_THAT(ConfigError(R"({"worker": {"enabled": "yes"}})"),
              HasSubstr("worker.enabled must be true or false"));
  EXPECT_THAT(ConfigError(R"({"worker": {"enabled": true, "service": {"name": "a b"}}})"),
              HasSubstr("worker.service.name: \"a b:7451\""));
}

TEST(RuntimeConfigTest, ChecksTiers) {
  const auto level = [](absl::string_view fields) {
    return ConfigError(absl::StrCat(R"({"client": {"tieredStoreLevels": [{)", fields, "}]}}"));
  };
  EXPECT_THAT(level(R"("mediumType": "tape")"), HasSubstr("tieredStoreLevels[0].mediumType"));
  EXPECT_THAT(level(R"("mediumType": "MEM")"), HasSubstr("mountPaths names no directory"));
  EXPECT_THAT(level(R"("mediumType": "MEM", "mountPaths": ["/a","/b"], "quotas": ["1Gi"])"),
              HasSubstr("quotas has 1 entries for the 2"));
  EXPECT_THAT(level(R"("mediumType": "MEM", "mountPaths": ["/a"], "quotas": ["lots"])"),
              HasSubstr("tieredStoreLevels[0].quotas[0]: \"lots\" is not a size"));
  EXPECT_THAT(level(R"("mediumType": "MEM", "mountPaths": ["/a"], "quotas": [{}])"),
              HasSubstr("quotas[0] must be a string, but is an object"));
  EXPECT_THAT(level(R"("mediumType": "MEM", "high": "1.5")"), HasSubstr("[0].high"));
  EXPECT_THAT(level(R"("mediumType": "MEM", "high": 0.5, "low": 0.6)"), HasSubstr("above high"));
}

class ValidateTest : public ::testing::Test {
 protected:
  ValidateTest() {
    std::string name = ::testing::TempDir() + "validate.XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    top_ = base::ResolvePath(name);
    EXPECT_EQ(mkdir((top_ + "/mnt").c_str(), 0700), 0);
    options_.sources = {"s3://b"};
    options_.mountpoint = top_ + "/mnt";
    tier::TierOptions tier;
    tier.path = top_ + "/cache/ssd";
    tier.quota_bytes = base::kMiB;
    options_.tiers = {tier};
  }

  absl::Status Validate() { return ValidateMount(mounts_, top_ + "/caches", &options_); }
  std::string Error(int exit_code) {
    const absl::Status status = Validate();
    EXPECT_EQ(base::ExitCode(status), exit_code) << status;
    return base::ErrorText(status);
  }

  std::string top_;
  std::vector<base::MountEntry> mounts_;
  MountOptions options_;
};

TEST_F(ValidateTest, AcceptsAnEmptyDirectoryAndATierToBeMade) {
  options_.mountpoint += "/";
  ASSERT_TRUE(Validate().ok()) << Validate();
  EXPECT_EQ(options_.mountpoint, top_ + "/mnt");
  EXPECT_NE(access((top_ + "/cache").c_str(), F_OK), 0);  // Nothing was made.
}

TEST_F(ValidateTest, ChecksTheMountpoint) {
  options_.mountpoint = top_ + "/none";
  EXPECT_THAT(Error(1), HasSubstr("does not exist; make it: mkdir -p " + top_ + "/none"));
  ASSERT_TRUE(base::WriteTextFile(top_ + "/file", "x", 0600).ok());
  options_.mountpoint = top_ + "/file";
  EXPECT_THAT(Error(1), HasSubstr("is not a directory"));
  options_.mountpoint = top_;
  EXPECT_THAT(Error(1), HasSubstr("is not empty"));
}

TEST_F(ValidateTest, SaysWhatIsMountedThere) {
  base::MountEntry mount;
  mount.mountpoint = top_ + "/mnt";
  mount.fs_type = "fuse.millrace";
  mount.source = "s3://old";
  mounts_ = {mount};
  EXPECT_THAT(Error(1), HasSubstr("already a Millrace mount of s3://old; unmount it first: "
                                  "millrace umount"));
  mounts_[0].fs_type = "ext4";
  EXPECT_THAT(Error(1), HasSubstr("already a mount (ext4 of s3://old)"));
}

TEST_F(ValidateTest, RefusesASourceAroundItsMount) {
  options_.sources = {"x=file://" + top_ + "?a=b"};
  EXPECT_THAT(Error(2), HasSubstr("lies inside the source"));
  options_.sources = {"file://" + top_ + "/elsewhere"};
  EXPECT_TRUE(Validate().ok());
}

TEST_F(ValidateTest, WorkersTakeThePlaceOfTheDefaultTier) {
  options_.tiers.clear();
  options_.workers = {"h:7451"};
  ASSERT_TRUE(Validate().ok());
  EXPECT_TRUE(options_.tiers.empty());
  options_.cluster.clear();
  EXPECT_THAT(Error(2), HasSubstr("--cluster is empty"));
}

TEST_F(ValidateTest, CertificatesAreForWorkers) {
  const std::string file = top_ + "/file.pem";
  ASSERT_TRUE(base::WriteTextFile(file, "x", 0600).ok());
  options_.worker_certificate = options_.worker_key = file;
  EXPECT_THAT(Error(2), HasSubstr("belong together"));
  options_.worker_authority = file;
  EXPECT_THAT(Error(2), HasSubstr("add --workers"));
  options_.workers = {"h:7451"};
  EXPECT_TRUE(Validate().ok());
  options_.worker_authority = top_ + "/none.pem";
  EXPECT_THAT(Error(1), HasSubstr("--worker-authority " + top_ + "/none.pem"));
  options_.worker_authority = top_;
  EXPECT_THAT(Error(2), HasSubstr("is not a file"));
}

TEST_F(ValidateTest, ChecksTiersAgainstTheDiskAndEachOther) {
  options_.tiers[0].quota_bytes = uint64_t{1} << 60;
  EXPECT_THAT(Error(2), HasSubstr("has a quota of 1.0 EiB, more than the"));
  options_.tiers[0].quota_bytes = 1;
  options_.tiers.push_back(options_.tiers[0]);
  options_.tiers[1].path = top_ + "/cache/../cache/ssd/";
  EXPECT_THAT(Error(2), HasSubstr("is given twice"));
  options_.tiers[1].path = top_ + "/cache/ssd/inner";
  EXPECT_THAT(Error(2), HasSubstr("lies inside the other"));
  options_.tiers[1].path = top_ + "/mnt/cache";
  EXPECT_THAT(Error(2), HasSubstr("lies inside the mountpoint"));
  ASSERT_TRUE(base::WriteTextFile(top_ + "/file", "x", 0600).ok());
  options_.tiers[1].path = top_ + "/file";
  EXPECT_THAT(Error(2), HasSubstr("is not a directory"));
  options_.tiers[1].path = top_ + "/file/below";
  EXPECT_THAT(Error(2), HasSubstr("cannot be used"));
}

TEST_F(ValidateTest, ChecksTheTransport) {
  const std::string parameter = top_ + "/enable_uring";
  const std::string disabled = top_ + "/io_uring_disabled";
  const auto error = [&] {
    const absl::Status status = CheckUringTransport(parameter, disabled);
    EXPECT_EQ(base::ExitCode(status), status.ok() ? 0 : 1);
    return base::ErrorText(status);
  };
  EXPECT_THAT(error(), HasSubstr("this kernel has no FUSE over io_uring"));
  ASSERT_TRUE(base::WriteTextFile(parameter, "N\n", 0600).ok());
  EXPECT_THAT(error(), HasSubstr("FUSE over io_uring is switched off on this machine"));
  ASSERT_TRUE(base::WriteTextFile(parameter, "Y\n", 0600).ok());
  EXPECT_TRUE(CheckUringTransport(parameter, disabled).ok());
  ASSERT_TRUE(base::WriteTextFile(disabled, "2\n", 0600).ok());
  EXPECT_THAT(error(), HasSubstr("kernel.io_uring_disabled=0"));
  ASSERT_TRUE(base::WriteTextFile(disabled, "0\n", 0600).ok());
  EXPECT_TRUE(CheckUringTransport(parameter, disabled).ok());
}

TEST_F(ValidateTest, ChoosesADefaultTier) {
  options_.tiers.clear();
  const absl::Status status = Validate();
  if (absl::IsFailedPrecondition(status)) GTEST_SKIP() << status;  // A machine without space.
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(options_.tiers.size(), 1u);
  EXPECT_EQ(options_.tiers[0].medium, tier::Medium::kSsd);
  EXPECT_THAT(options_.tiers[0].path, HasSubstr(top_ + "/caches/"));
  EXPECT_LE(options_.tiers[0].quota_bytes, 10 * base::kGiB);
}

TEST(LocalFilesTest, AreThoseOfAllSources) {
  MountOptions options;
  options.sources = {"a=file:///srv/a", "b=s3://bucket?access-key-file=/key", "c=s3://",
                     "d=https://host/?ca-file=/ca"};
  const store::LocalFiles local = LocalFilesOf(
      options, [](const std::string&) -> std::optional<std::string> { return std::nullopt; });
  EXPECT_THAT(local.directories, ElementsAre("/srv/a"));
  EXPECT_THAT(local.files, ElementsAre("/key", "/ca"));
}

}  // namespace
}  // namespace millrace::options
