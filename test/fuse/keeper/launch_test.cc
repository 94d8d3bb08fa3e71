#include "fuse/keeper/launch.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/errno_status.h"
#include "fuse/keeper/identity.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/child_process.h"

namespace millrace::keeper {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kNobody = 65534;
constexpr char kNoCapability[] = "0000000000000000";
constexpr char kReadSearchOnly[] = "0000000000000004";

bool IsRoot() { return geteuid() == 0; }

// A launched program, its standard input and output, and what it said of itself.
class Launched {
 public:
  ~Launched() { End(); }

  // `options` lacks program, arguments[0] and the standard descriptors.
  void Start(LaunchOptions options, const std::string& program = LAUNCHED_PROGRAM) {
    const base::UniqueFd file(open(program.c_str(), O_PATH | O_CLOEXEC));
    options.program_fd = file.get();
    options.arguments.insert(options.arguments.begin(), "shown-name");
    int in[2];
    int out[2];
    ASSERT_EQ(pipe2(in, O_CLOEXEC), 0);
    ASSERT_EQ(pipe2(out, O_CLOEXEC), 0);
    const base::UniqueFd child_in(in[0]);
    input_ = base::UniqueFd(in[1]);
    output_ = base::UniqueFd(out[0]);
    base::UniqueFd child_out(out[1]);
    options.descriptors.emplace_back(child_in.get(), 0);
    options.descriptors.emplace_back(child_out.get(), 1);
    child_ = Launch(options);
    if (!child_.ok()) return;
    child_out.Reset();
    ReadFacts();
  }

  const absl::StatusOr<Child>& child() const { return child_; }
  std::string fact(const std::string& key) const {
    const auto found = facts_.find(key);
    return found == facts_.end() ? "(none)" : found->second;
  }

  // Ends it by the end of its input; its exit status. The pidfd tells the end.
  int End() {
    if (!child_.ok()) return -1;
    input_.Reset();
    pollfd waited = {child_->pidfd.get(), POLLIN, 0};
    EXPECT_EQ(poll(&waited, 1, 30'000), 1);
    int status = -1;
    EXPECT_EQ(waitpid(child_->pid, &status, 0), child_->pid);
    child_ = absl::CancelledError("ended");
    return status;
  }

 private:
  void ReadFacts() {
    std::string text;
    while (text.find("\nend .\n") == std::string::npos) {
      char buffer[4096];
      const ssize_t size = read(output_.get(), buffer, sizeof(buffer));
      if (size <= 0) break;
      text.append(buffer, static_cast<size_t>(size));
    }
    for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      std::pair<std::string, std::string> fact = absl::StrSplit(line, absl::MaxSplits(' ', 1));
      if (fact.first == "read") {
        const std::vector<std::string> words = absl::StrSplit(line, absl::MaxSplits(' ', 2));
        fact = {"read " + words[1], words[2]};
      }
      facts_.insert(fact);
    }
  }

  base::UniqueFd input_;
  base::UniqueFd output_;
  absl::StatusOr<Child> child_ = absl::UnknownError("not started");
  std::map<std::string, std::string> facts_;
};

TEST(Launch, GivesExactlyTheDescriptors) {
  test::TempDir directory;
  const std::string path = directory.path() + "/file";
  test::WriteFile(path, "bytes");
  const base::UniqueFd first(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const base::UniqueFd inherited(open(path.c_str(), O_RDONLY));  // Not close-on-exec.
  Launched launched;
  launched.Start({.descriptors = {{first.get(), 3}, {first.get(), 40}}});
  ASSERT_TRUE(launched.child().ok()) << launched.child().status();
  EXPECT_EQ(launched.fact("descriptors"), "0,1,2,3,40");
  EXPECT_EQ(launched.fact("name"), "shown-name");
  EXPECT_EQ(launched.fact("NoNewPrivs"), "1");
  const int status = launched.End();
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << status;
}

// Numbers that are in use by others of the list, in every order: none may be lost.
TEST(Launch, ExchangesDescriptors) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const base::UniqueFd read_end(ends[0]);
  const base::UniqueFd write_end(ends[1]);
  const base::UniqueFd program(open("/bin/sh", O_PATH | O_CLOEXEC));
  // The child gets its two descriptors under each other's number.
  absl::StatusOr<Child> child = Launch(
      {.program_fd = program.get(),
       .arguments = {"sh", "-c", absl::StrCat("echo word >&", read_end.get())},
       .descriptors = {{read_end.get(), write_end.get()}, {write_end.get(), read_end.get()}}});
  ASSERT_TRUE(child.ok()) << child.status();
  int status = -1;
  ASSERT_EQ(waitpid(child->pid, &status, 0), child->pid);
  EXPECT_EQ(status, 0);
  char word[16] = {};
  EXPECT_EQ(read(read_end.get(), word, sizeof(word)), 5);
  EXPECT_STREQ(word, "word\n");
}

TEST(Launch, GivesAFreshProcess) {
  // What this process ignores and blocks must not reach the child.
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  struct sigaction before;
  sigaction(SIGTERM, &ignore, &before);
  sigset_t blocked;
  sigset_t mask;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGINT);
  pthread_sigmask(SIG_BLOCK, &blocked, &mask);
  rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  rlimit low = limit;
  low.rlim_cur = 256;
  setrlimit(RLIMIT_NOFILE, &low);

  Launched launched;
  launched.Start({.oom_score_adj = 321});

  setrlimit(RLIMIT_NOFILE, &limit);
  sigset_t now;
  pthread_sigmask(SIG_SETMASK, &mask, &now);
  sigaction(SIGTERM, &before, nullptr);
  EXPECT_EQ(sigismember(&now, SIGINT), 1) << "Launch changed the mask of its caller";
  ASSERT_TRUE(launched.child().ok()) << launched.child().status();
  // The sanitizers' runtimes handle signals in every program they are linked to.
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
  EXPECT_EQ(launched.fact("signals_changed"), "0");
#endif
  EXPECT_EQ(launched.fact("SigBlk"), kNoCapability);
  EXPECT_EQ(launched.fact("limit"), "hard");
  EXPECT_EQ(launched.fact("session"), "own");
  EXPECT_EQ(launched.fact("oom"), "321");
  EXPECT_EQ(launched.fact("NoNewPrivs"), "1");
}

TEST(Launch, ReportsWhatFailed) {
  test::TempDir directory;
  const std::string path = directory.path() + "/program";
  test::WriteFile(path, "neither a program nor a script");
  chmod(path.c_str(), 0755);
  Launched broken;
  broken.Start({}, path);
  EXPECT_EQ(base::ErrnoOf(broken.child().status()), ENOEXEC) << broken.child().status();
  EXPECT_THAT(std::string(broken.child().status().message()), HasSubstr("shown-name: exec"));

  chmod(path.c_str(), 0644);
  Launched closed;
  closed.Start({}, path);
  EXPECT_EQ(base::ErrnoOf(closed.child().status()), EACCES) << closed.child().status();

  Launched missing;
  missing.Start({}, directory.path() + "/missing");
  EXPECT_FALSE(missing.child().ok());
  // No child, not even a dead one.
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST(Launch, OfAnotherUserNeedsPrivilege) {
  if (IsRoot()) GTEST_SKIP() << "needs a user without privilege";
  Launched launched;
  launched.Start({.identity = Identity{.uid = kNobody, .gid = kNobody}});
  EXPECT_EQ(base::ErrnoOf(launched.child().status()), EPERM) << launched.child().status();
}

class LaunchAsNobody : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!IsRoot()) GTEST_SKIP() << "needs root";
    secret_ = directory_.path() + "/secret";  // In a directory of mode 0700.
    test::WriteFile(secret_, "secret");
    chmod(secret_.c_str(), 0600);
  }
  void Start(const Identity& identity) {
    launched_.Start({.arguments = {secret_}, .identity = identity, .oom_score_adj = 200});
    ASSERT_TRUE(launched_.child().ok()) << launched_.child().status();
    ExpectIdentity(identity);
  }
  // What a keeper that adopts the program would make of it.
  void ExpectIdentity(const Identity& identity) {
    const absl::StatusOr<std::optional<Identity>> found = IdentityOf(launched_.child()->pid);
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_TRUE(found->has_value());
    EXPECT_EQ((*found)->uid, identity.uid);
    EXPECT_EQ((*found)->gid, identity.gid);
    EXPECT_EQ((*found)->read_search, identity.read_search);
  }
  void ExpectIds(uint32_t id) {
    const std::string four = absl::StrCat(id, "\t", id, "\t", id, "\t", id);
    EXPECT_EQ(launched_.fact("Uid"), four);
    EXPECT_EQ(launched_.fact("Gid"), four);
    EXPECT_THAT(launched_.fact("Groups"), ::testing::AnyOf("", " "));
    EXPECT_EQ(launched_.fact("NoNewPrivs"), "1");
    EXPECT_EQ(launched_.fact("limit"), "hard");
    EXPECT_EQ(launched_.fact("oom"), "200");
  }
  void ExpectCapabilities(const std::string& mask) {
    for (const char* const set : {"CapInh", "CapPrm", "CapEff", "CapAmb"}) {
      EXPECT_EQ(launched_.fact(set), mask) << set;
    }
    EXPECT_EQ(launched_.fact("CapBnd"), kNoCapability);
  }

  test::TempDir directory_;
  std::string secret_;
  Launched launched_;
};

TEST_F(LaunchAsNobody, WithoutCapabilities) {
  Start({.uid = kNobody, .gid = kNobody});
  ExpectIds(kNobody);
  ExpectCapabilities(kNoCapability);
  EXPECT_EQ(launched_.fact("read " + secret_), "Permission denied");
}

TEST_F(LaunchAsNobody, WithReadSearch) {
  Start({.uid = kNobody, .gid = kNobody, .read_search = true});
  ExpectIds(kNobody);
  ExpectCapabilities(kReadSearchOnly);
  EXPECT_EQ(launched_.fact("read " + secret_), "ok");
}

TEST_F(LaunchAsNobody, RootKeepsItsNumberOnly) {
  Start({});
  ExpectIds(0);
  ExpectCapabilities(kNoCapability);
  EXPECT_EQ(launched_.fact("read " + secret_), "ok") << "its owner";
}

TEST_F(LaunchAsNobody, RootWithReadSearch) {
  Start({.read_search = true});
  ExpectIds(0);
  ExpectCapabilities(kReadSearchOnly);
}

TEST_F(LaunchAsNobody, WhoIsAsTheKeeperHasNoIdentity) {
  const absl::StatusOr<std::optional<Identity>> mine = IdentityOf(getpid());
  ASSERT_TRUE(mine.ok()) << mine.status();
  EXPECT_FALSE(mine->has_value());
  EXPECT_FALSE(IdentityOf(0).ok());
}

// The program's directory may be closed to the user.
TEST_F(LaunchAsNobody, NeedsNoWayToTheProgram) {
  const std::string copy = directory_.path() + "/program";
  const base::UniqueFd from(open(LAUNCHED_PROGRAM, O_RDONLY | O_CLOEXEC));
  std::string bytes(1 << 20, '\0');
  std::string all;
  for (ssize_t size; (size = read(from.get(), bytes.data(), bytes.size())) > 0;) {
    all.append(bytes, 0, static_cast<size_t>(size));
  }
  test::WriteFile(copy, all);
  chmod(copy.c_str(), 0755);
  launched_.Start({.identity = Identity{.uid = kNobody, .gid = kNobody}}, copy);
  ASSERT_TRUE(launched_.child().ok()) << launched_.child().status();
  ExpectCapabilities(kNoCapability);
}

}  // namespace
}  // namespace millrace::keeper
