#include "fuse/keeper/identity.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/child_process.h"

namespace millrace::keeper {
namespace {

using ::testing::HasSubstr;

constexpr char kPasswd[] =
    "root:x:0:0:root:/root:/bin/bash\n"
    "broken line\n"
    "millrace:x:990:991::/nonexistent:/usr/sbin/nologin\n"
    "#:x:y:z\n"
    "nobody:x:65534:65533:nobody:/nonexistent:/usr/sbin/nologin";

TEST(FindUser, ByNameOrNumber) {
  absl::StatusOr<Identity> user = FindUser("millrace", kPasswd);
  ASSERT_TRUE(user.ok()) << user.status();
  EXPECT_EQ(user->uid, 990u);
  EXPECT_EQ(user->gid, 991u);
  EXPECT_FALSE(user->read_search);
  user = FindUser("990", kPasswd);
  ASSERT_TRUE(user.ok());
  EXPECT_EQ(user->gid, 991u);
  user = FindUser("nobody", kPasswd);
  ASSERT_TRUE(user.ok());
  EXPECT_EQ(user->gid, 65533u);
  user = FindUser("1234", kPasswd);  // A container need not name its users.
  ASSERT_TRUE(user.ok());
  EXPECT_EQ(user->uid, 1234u);
  EXPECT_EQ(user->gid, 1234u);
}

TEST(FindUser, OthersAreNotFound) {
  for (const char* const name : {"alice", "", "broken line", "-1", "4294967295", "x", "#", "1e3"}) {
    EXPECT_EQ(FindUser(name, kPasswd).status().code(), absl::StatusCode::kNotFound) << name;
  }
}

TEST(ChooseIdentity, OfAUserIsTheUser) {
  if (geteuid() == 0) GTEST_SKIP() << "needs a user without privilege";
  absl::StatusOr<IdentityChoice> choice = ChooseIdentity({.sources = {"/"}, .tiers = {"/root/x"}});
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_FALSE(choice->identity.has_value());
  EXPECT_TRUE(ChooseIdentity({.user = absl::StrCat(geteuid())}).ok());
  EXPECT_EQ(ChooseIdentity({.user = "root"}).status().code(), absl::StatusCode::kInvalidArgument);
}

class ChooseIdentityOfRoot : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
    chmod(directory_.path().c_str(), 0755);  // Below /tmp: open to all so far.
    closed_ = directory_.path() + "/closed";
    test::WriteFile(closed_ + "/secret", "secret");
    chmod(closed_.c_str(), 0700);
    open_ = directory_.path() + "/open";
    test::WriteFile(open_, "certificate");
    chmod(open_.c_str(), 0644);
  }

  static IdentityChoice Choose(const IdentityRequest& request) {
    absl::StatusOr<IdentityChoice> choice = ChooseIdentity(request);
    EXPECT_TRUE(choice.ok()) << choice.status();
    if (!choice.ok()) return {};
    EXPECT_TRUE(choice->identity.has_value()) << choice->text;
    return *std::move(choice);
  }
  static void ExpectNoCapability(const IdentityRequest& request) {
    const IdentityChoice choice = Choose(request);
    EXPECT_FALSE(choice.identity->read_search) << choice.text;
    EXPECT_THAT(choice.text, HasSubstr("without privileges"));
  }
  static void ExpectReadSearch(const IdentityRequest& request, const std::string& reason) {
    const IdentityChoice choice = Choose(request);
    EXPECT_TRUE(choice.identity->read_search) << choice.text;
    EXPECT_THAT(choice.text, HasSubstr(reason));
  }

  test::TempDir directory_;
  std::string closed_;
  std::string open_;
};

TEST_F(ChooseIdentityOfRoot, JoinsTheGroupOfAWorkersSocket) {
  const std::string path = directory_.path() + "/worker.sock";
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address = {.sun_family = AF_UNIX};
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  close(fd);
  struct Case {
    gid_t group;
    mode_t mode;
    gid_t wanted;
  };
  // Root's group is nobody's to join, and what all may use needs none.
  for (const Case& each : {Case{4242, 0660, 4242}, Case{4242, 0600, 1234}, Case{4242, 0666, 1234},
                           Case{0, 0660, 1234}}) {
    ASSERT_EQ(chown(path.c_str(), 0, each.group), 0);
    ASSERT_EQ(chmod(path.c_str(), each.mode), 0);
    const IdentityChoice choice = Choose({.user = "1234", .socket = path});
    EXPECT_EQ(choice.identity->gid, each.wanted) << each.group;
    EXPECT_EQ(choice.identity->uid, 1234u);
  }
  EXPECT_EQ(Choose({.user = "1234", .socket = path + ".none"}).identity->gid, 1234u);
}

TEST_F(ChooseIdentityOfRoot, IsNobodyByDefault) {
  const IdentityChoice choice = Choose({});
  EXPECT_NE(choice.identity->uid, 0u);
  EXPECT_THAT(choice.text, ::testing::AnyOf(HasSubstr("nobody"), HasSubstr(kSystemUser)));
  ExpectNoCapability({});
}

TEST_F(ChooseIdentityOfRoot, IsTheWantedUser) {
  IdentityChoice choice = Choose({.user = "daemon"});
  EXPECT_EQ(choice.identity->uid, 1u);
  choice = Choose({.user = "4242"});
  EXPECT_EQ(choice.identity->uid, 4242u);
  EXPECT_EQ(choice.identity->gid, 4242u);
  choice = Choose({.user = "root"});
  EXPECT_EQ(choice.identity->uid, 0u);
  EXPECT_FALSE(choice.identity->read_search);
  const absl::Status unknown = ChooseIdentity({.user = "no-such-user"}).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("--user no-such-user"));
}

TEST_F(ChooseIdentityOfRoot, ReadsWhatRootCanReadOfASource) {
  ExpectReadSearch({.sources = {"/srv/data"}}, "/srv/data");
  ExpectReadSearch({.user = "root", .sources = {"/srv/data"}}, "/srv/data");
}

TEST_F(ChooseIdentityOfRoot, ReadsASecretThatIsClosed) {
  ExpectNoCapability({.files = {open_, closed_ + "/missing", "/no/such/file"}});
  ExpectReadSearch({.files = {open_, closed_ + "/secret"}}, closed_ + "/secret");
  chmod(open_.c_str(), 0600);
  ExpectReadSearch({.files = {open_}}, open_);
  // Its owner needs no capability for it.
  ExpectNoCapability({.user = "root", .files = {open_, closed_ + "/secret"}});
}

TEST_F(ChooseIdentityOfRoot, GetsThroughToTheTiers) {
  // The tier itself is handed over, and what is missing above it will be made.
  ExpectNoCapability({.tiers = {closed_, directory_.path() + "/new/parents/tier"}});
  ExpectReadSearch({.tiers = {directory_.path() + "/new", closed_ + "/tier"}}, closed_ + "/tier");
  ExpectReadSearch({.tiers = {closed_ + "/new/parents/tier"}}, "/new/parents/tier");
}

}  // namespace
}  // namespace millrace::keeper
