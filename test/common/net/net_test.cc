// Addresses, sockets and streams, plain and TLS.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/net/address.h"
#include "common/net/socket.h"
#include "common/net/stream.h"
#include "common/net/tls.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/certificates.h"
#include "test/support/child_process.h"
#include "test/support/manual_clock.h"

namespace millrace::net {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);
constexpr absl::Duration kShort = absl::Milliseconds(20);

TEST(AddressTest, TakesWhatItPrints) {
  for (const std::string text : {"10.0.0.1:7451", "worker-0.cache.svc:1", "[fd00::1]:7451",
                                 "[fe80::1%eth0]:7451", ":0", "unix:/run/w.sock"}) {
    const absl::StatusOr<Address> address = ParseAddress(text);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->ToString(), text);
    EXPECT_EQ(address->is_unix(), text == "unix:/run/w.sock");
  }
}

TEST(AddressTest, RefusesTheRest) {
  for (const std::string text :
       {"",          "host",          "host:",    "host:65536",    "host:-1",
        "host:+1",   "host: 1",       "host:1x",  "host:000001",   "fd00::1:7451",
        "[fd00::1]", "[fd00::1]7451", "[host]:1", "[]:1",          "ho st:1",
        "host/:1",   "http://host:1", "unix:",    "unix:relative", "unix:/run/",
        "a\nb:1"}) {
    const absl::StatusOr<Address> address = ParseAddress(text);
    EXPECT_TRUE(absl::IsInvalidArgument(address.status())) << text;
    EXPECT_THAT(address.status().message(), HasSubstr(absl::StrCat("\"", text, "\"")));
  }
  EXPECT_FALSE(ParseAddress(absl::StrCat("unix:/", std::string(5000, 'a'))).ok());
  EXPECT_FALSE(ParseAddress(absl::StrCat(std::string(254, 'a'), ":1")).ok());
}

struct Pair {
  base::UniqueFd client;
  base::UniqueFd server;
};

base::UniqueFd AcceptOne(int listener) {
  pollfd waited = {listener, POLLIN, 0};
  EXPECT_EQ(poll(&waited, 1, 20'000), 1);
  absl::StatusOr<std::optional<base::UniqueFd>> accepted = Accept(listener);
  EXPECT_TRUE(accepted.ok() && accepted->has_value());
  return std::move(**accepted);
}

Pair Connected(const Address& wanted) {
  const absl::StatusOr<base::UniqueFd> listener = Listen(wanted, {});
  EXPECT_TRUE(listener.ok()) << listener.status();
  const absl::StatusOr<std::optional<base::UniqueFd>> none = Accept(listener->get());
  EXPECT_TRUE(none.ok() && !none->has_value());
  const absl::StatusOr<Address> address = LocalAddress(listener->get());
  EXPECT_TRUE(address.ok());
  absl::StatusOr<base::UniqueFd> client = Connect(*address, kPatience);
  EXPECT_TRUE(client.ok()) << client.status();
  return {*std::move(client), AcceptOne(listener->get())};
}

base::UniqueFd FileOf(const std::string& text) {
  base::UniqueFd file(memfd_create("net_test", MFD_CLOEXEC));
  EXPECT_EQ(write(file.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  return file;
}

std::string Pattern(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 7 + i / 251);
  return text;
}

class SocketTest : public ::testing::Test {
 protected:
  Address UnixAddress(const std::string& name) { return {"", 0, directory_.path() + "/" + name}; }
  test::TempDir directory_;
};

TEST_F(SocketTest, UnixSocketHasItsModeAndReplacesOnlyASocket) {
  const Address address = UnixAddress("w.sock");
  ListenOptions options;
  options.unix_mode = 0660;
  options.unix_group = getegid();
  for (int round = 0; round < 2; ++round) {
    const absl::StatusOr<base::UniqueFd> listener = Listen(address, options);
    ASSERT_TRUE(listener.ok()) << listener.status();
    struct stat made = {};
    ASSERT_EQ(stat(address.path.c_str(), &made), 0);
    EXPECT_EQ(made.st_mode & 0777, 0660U);
  }
  const Address file = UnixAddress("file");
  std::ofstream(file.path) << "precious";
  EXPECT_FALSE(Listen(file, {}).ok());
  EXPECT_EQ(access(file.path.c_str(), F_OK), 0);
}

TEST_F(SocketTest, LongUnixPaths) {
  std::string path = directory_.path();
  for (int i = 0; i < 3; ++i) {
    path += "/" + std::string(60, 'd');
    ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
  }
  const Address address = {"", 0, path + "/w.sock"};
  const absl::StatusOr<base::UniqueFd> listener = Listen(address, {});
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_TRUE(Connect(address, kPatience).ok());
}

TEST_F(SocketTest, NobodyThere) {
  base::UniqueFd listener = *Listen({"127.0.0.1", 0, ""}, {});
  const Address address = *LocalAddress(listener.get());
  listener.Reset();
  EXPECT_TRUE(absl::IsUnavailable(Connect(address, kPatience).status()));
  EXPECT_TRUE(absl::IsUnavailable(Connect(UnixAddress("none"), kPatience).status()));
  EXPECT_TRUE(absl::IsNotFound(Resolve("no.such.name.invalid").status()) ||
              absl::IsUnavailable(Resolve("no.such.name.invalid").status()));
}

TEST_F(SocketTest, ConnectEndsInTime) {
  // A listener whose backlog is full answers no SYN.
  ListenOptions options;
  options.backlog = 0;
  const base::UniqueFd listener = *Listen({"127.0.0.1", 0, ""}, options);
  const Address address = *LocalAddress(listener.get());
  std::vector<base::UniqueFd> fillers;
  absl::Status failed;
  for (int i = 0; i < 8 && failed.ok(); ++i) {
    absl::StatusOr<base::UniqueFd> connected = Connect(address, absl::Milliseconds(200));
    if (connected.ok()) fillers.push_back(*std::move(connected));
    failed = connected.status();
  }
  EXPECT_TRUE(absl::IsDeadlineExceeded(failed)) << failed;
}

TEST_F(SocketTest, ResolvesNumericAddresses) {
  EXPECT_THAT(*Resolve("127.0.0.1"), ElementsAre("127.0.0.1"));
  EXPECT_THAT(*Resolve("::1"), ElementsAre("::1"));
}

TEST_F(SocketTest, CredentialsOfAPeer) {
  const Pair pair = Connected(UnixAddress("w.sock"));
  const absl::StatusOr<PeerCredentials> peer = CredentialsOf(pair.server.get());
  ASSERT_TRUE(peer.ok()) << peer.status();
  EXPECT_EQ(peer->pid, getpid());
  EXPECT_EQ(peer->uid, geteuid());
  std::vector<gid_t> groups(getgroups(0, nullptr));
  getgroups(static_cast<int>(groups.size()), groups.data());
  EXPECT_EQ(peer->groups.size(), groups.size());
}

// --- Streams: the same promises over TCP, a Unix socket and TLS ---

enum class Kind { kTcp, kUnix, kTls };

class StreamTest : public SocketTest, public ::testing::WithParamInterface<Kind> {
 protected:
  void SetUp() override {
    const bool over_unix = GetParam() == Kind::kUnix;
    Pair pair = Connected(over_unix ? UnixAddress("w.sock") : Address{"127.0.0.1", 0, ""});
    if (GetParam() != Kind::kTls) {
      client_ = PlainStream(std::move(pair.client));
      server_ = PlainStream(std::move(pair.server));
      return;
    }
    testing::TestAuthority authority(directory_.path(), "authority");
    const std::unique_ptr<Tls> client =
        *Tls::Load(authority.Issue("client", {"client"}), base::RealClock());
    const std::unique_ptr<Tls> server =
        *Tls::Load(authority.Issue("server", {"127.0.0.1"}), base::RealClock());
    std::thread accepting([&] { server_ = *server->Accept(std::move(pair.server), kPatience); });
    client_ = *client->Connect(std::move(pair.client), "127.0.0.1", kPatience);
    accepting.join();
  }

  std::string ReadText(size_t size) {
    std::string text(size, '\0');
    const absl::Status read = client_->ReadFully(text.data(), size, kPatience);
    EXPECT_TRUE(read.ok()) << read;
    return text;
  }

  std::unique_ptr<Stream> client_;
  std::unique_ptr<Stream> server_;
};

TEST_P(StreamTest, PartsArriveInOrder) {
  const std::string large = Pattern(3 << 20);
  std::thread writer([&] {
    EXPECT_TRUE(server_->WriteParts({"head", "", large, "tail"}, false, kPatience).ok());
    EXPECT_TRUE(server_->WriteParts({"a", "b"}, true, kPatience).ok());
    EXPECT_TRUE(server_->Write("c", kPatience).ok());
  });
  EXPECT_TRUE(ReadText(4 + large.size() + 4 + 3) == "head" + large + "tailabc");
  writer.join();
  EXPECT_TRUE(client_->Quiet());
}

TEST_P(StreamTest, FilesAreSent) {
  const std::string text = Pattern(1 << 20);
  const base::UniqueFd file = FileOf(text);
  std::thread writer([&] {
    EXPECT_TRUE(server_->Write("header", kPatience).ok());
    EXPECT_TRUE(server_->WriteParts({"12"}, true, kPatience).ok());
    EXPECT_TRUE(server_->SendFile(file.get(), 1000, 700'000, true, kPatience).ok());
    EXPECT_TRUE(server_->SendFile(file.get(), 0, 3, false, kPatience).ok());
  });
  EXPECT_TRUE(ReadText(6 + 2 + 700'000 + 3) ==
              "header12" + text.substr(1000, 700'000) + text.substr(0, 3));
  writer.join();
}

TEST_P(StreamTest, TwoPlacesAreFilledInOrder) {
  ASSERT_TRUE(server_->Write("headertail", kPatience).ok());
  std::string first(6, '\0');
  std::string second(10, '\0');
  // It may come in pieces; the first place is as large as what is missing of it.
  size_t got = 0;
  while (got < 10) {
    const absl::StatusOr<size_t> more =
        got < 6 ? client_->ReadTwo(absl::MakeSpan(first).subspan(got), absl::MakeSpan(second),
                                   kPatience)
                : client_->Read(second.data() + got - 6, 10 - got, kPatience);
    ASSERT_TRUE(more.ok() && *more > 0) << more.status();
    got += *more;
  }
  EXPECT_EQ(first, "header");
  EXPECT_EQ(second.substr(0, 4), "tail");
  char byte = 0;
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      client_->ReadTwo(absl::MakeSpan(&byte, 1), absl::MakeSpan(second), kShort).status()));
}

TEST_P(StreamTest, AShortFileIsAnError) {
  const base::UniqueFd file = FileOf("12345");
  EXPECT_TRUE(absl::IsFailedPrecondition(server_->SendFile(file.get(), 2, 10, false, kPatience)));
}

TEST_P(StreamTest, WaitingEnds) {
  char byte = 0;
  EXPECT_TRUE(absl::IsDeadlineExceeded(client_->Read(&byte, 1, kShort).status()));
  // And the stream is whole.
  ASSERT_TRUE(server_->Write("x", kPatience).ok());
  EXPECT_EQ(ReadText(1), "x");
  // Nobody takes what is sent.
  const std::string large(64 << 20, 'x');
  EXPECT_TRUE(absl::IsDeadlineExceeded(server_->Write(large, kShort)));
  const base::UniqueFd file = FileOf(large);
  EXPECT_FALSE(server_->SendFile(file.get(), 0, large.size(), false, kShort).ok());
}

TEST_P(StreamTest, TheEndIsSeen) {
  EXPECT_TRUE(client_->Quiet());
  ASSERT_TRUE(server_->Write("last", kPatience).ok());
  server_.reset();
  EXPECT_FALSE(client_->Quiet());
  EXPECT_EQ(ReadText(4), "last");
  char byte = 0;
  const absl::StatusOr<size_t> end = client_->Read(&byte, 1, kPatience);
  EXPECT_TRUE(end.ok() && *end == 0) << end.status();
  EXPECT_TRUE(absl::IsUnavailable(client_->ReadFully(&byte, 1, kPatience)));
  // The kernel may take some before it hears that nobody reads.
  absl::Status written;
  const std::string large(1 << 20, 'x');
  for (int i = 0; i < 1000 && written.ok(); ++i) written = client_->Write(large, kPatience);
  EXPECT_TRUE(absl::IsUnavailable(written)) << written;
}

TEST_P(StreamTest, ShutdownWakesWhoWaits) {
  std::thread other([&] { client_->Shutdown(); });
  char byte = 0;
  const absl::StatusOr<size_t> end = client_->Read(&byte, 1, kPatience);
  EXPECT_TRUE(!end.ok() || *end == 0);
  EXPECT_FALSE(absl::IsDeadlineExceeded(end.status()));
  other.join();
}

TEST_P(StreamTest, Descriptors) {
  const base::UniqueFd file = FileOf("through the socket");
  const absl::Status sent = server_->WriteWithDescriptor("frame", file.get(), kPatience);
  if (GetParam() != Kind::kUnix) {
    EXPECT_TRUE(absl::IsFailedPrecondition(sent)) << sent;
    return;
  }
  ASSERT_TRUE(sent.ok()) << sent;
  char data[16] = {};
  base::UniqueFd received;
  const absl::StatusOr<size_t> size = client_->ReadWithDescriptor(data, 16, &received, kPatience);
  ASSERT_TRUE(size.ok() && *size == 5) << size.status();
  ASSERT_TRUE(received.valid());
  EXPECT_EQ(fcntl(received.get(), F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(pread(received.get(), data, sizeof(data), 0), 16);
  EXPECT_EQ(std::string(data, 16), "through the sock");
  // Bytes without one leave the variable as it was.
  ASSERT_TRUE(server_->Write("more", kPatience).ok());
  base::UniqueFd none;
  EXPECT_TRUE(client_->ReadWithDescriptor(data, 16, &none, kPatience).ok());
  EXPECT_FALSE(none.valid());
}

INSTANTIATE_TEST_SUITE_P(Kinds, StreamTest, ::testing::Values(Kind::kTcp, Kind::kUnix, Kind::kTls),
                         [](const ::testing::TestParamInfo<Kind>& info) {
                           return info.param == Kind::kTcp    ? "Tcp"
                                  : info.param == Kind::kUnix ? "Unix"
                                                              : "Tls";
                         });

// --- TLS: who is let in ---

class TlsTest : public SocketTest {
 protected:
  struct Ends {
    absl::StatusOr<std::unique_ptr<Stream>> client = absl::UnknownError("");
    absl::StatusOr<std::unique_ptr<Stream>> server = absl::UnknownError("");
    // What a client only hears when it reads.
    absl::Status Heard() {
      if (!client.ok()) return client.status();
      char byte = 0;
      return (*client)->Read(&byte, 1, kPatience).status();
    }
  };

  Ends Meet(Tls* client, Tls* server, const std::string& name) {
    Pair pair = Connected({"127.0.0.1", 0, ""});
    Ends ends;
    std::thread accepting([&] { ends.server = server->Accept(std::move(pair.server), kPatience); });
    ends.client = client->Connect(std::move(pair.client), name, kPatience);
    accepting.join();
    return ends;
  }

  std::unique_ptr<Tls> Load(const TlsFiles& files) { return *Tls::Load(files, &clock_); }

  testing::ManualClock clock_;
  testing::TestAuthority authority_{directory_.path(), "authority"};
  testing::TestAuthority stranger_{directory_.path(), "stranger"};
};

TEST_F(TlsTest, NamesAreChecked) {
  const std::unique_ptr<Tls> client = Load(authority_.Issue("client", {"client"}));
  const std::unique_ptr<Tls> server =
      Load(authority_.Issue("server", {"worker.cache", "127.0.0.1", "::1"}));
  for (const std::string name : {"worker.cache", "127.0.0.1", "::1"}) {
    EXPECT_TRUE(Meet(client.get(), server.get(), name).client.ok()) << name;
  }
  for (const std::string name : {"other.cache", "127.0.0.2", "cache"}) {
    Ends ends = Meet(client.get(), server.get(), name);
    EXPECT_TRUE(absl::IsPermissionDenied(ends.client.status())) << ends.client.status();
    EXPECT_FALSE(ends.server.ok());
  }
}

TEST_F(TlsTest, StrangersAreRefused) {
  const TlsFiles ours = authority_.Issue("ours", {"127.0.0.1"});
  TlsFiles theirs = stranger_.Issue("theirs", {"127.0.0.1"});
  const std::unique_ptr<Tls> server = Load(ours);
  // A client that trusts us, but is nobody we know.
  theirs.authority = authority_.file();
  const std::unique_ptr<Tls> client = Load(theirs);
  Ends ends = Meet(client.get(), server.get(), "127.0.0.1");
  EXPECT_TRUE(absl::IsPermissionDenied(ends.server.status())) << ends.server.status();
  EXPECT_TRUE(absl::IsPermissionDenied(ends.Heard())) << ends.Heard();
  // A server that we do not trust.
  ends = Meet(server.get(), client.get(), "127.0.0.1");
  EXPECT_TRUE(absl::IsPermissionDenied(ends.client.status())) << ends.client.status();
}

TEST_F(TlsTest, WhoSpeaksNoTlsIsRefused) {
  const std::unique_ptr<Tls> server = Load(authority_.Issue("server", {"127.0.0.1"}));
  Pair pair = Connected({"127.0.0.1", 0, ""});
  const std::unique_ptr<Stream> plain = PlainStream(std::move(pair.client));
  ASSERT_TRUE(plain->Write("GET / HTTP/1.1\r\n\r\n", kPatience).ok());
  EXPECT_FALSE(server->Accept(std::move(pair.server), kPatience).ok());
  // Or says nothing.
  pair = Connected({"127.0.0.1", 0, ""});
  EXPECT_TRUE(absl::IsDeadlineExceeded(server->Accept(std::move(pair.server), kShort).status()));
}

TEST_F(TlsTest, FilesThatCannotBeUsedAreNamed) {
  const TlsFiles good = authority_.Issue("good", {"good"});
  const TlsFiles other = authority_.Issue("other", {"other"});
  TlsFiles files = good;
  files.key = other.key;
  EXPECT_THAT(Tls::Load(files, &clock_).status().message(), HasSubstr(other.key));
  files = good;
  files.certificate = directory_.path() + "/absent.pem";
  EXPECT_TRUE(absl::IsNotFound(Tls::Load(files, &clock_).status()));
  files = good;
  files.authority = directory_.path() + "/text.pem";
  std::ofstream(files.authority) << "no certificate";
  EXPECT_THAT(Tls::Load(files, &clock_).status().message(), HasSubstr("text.pem"));
}

TEST_F(TlsTest, ChangedFilesAreTaken) {
  const TlsFiles files = authority_.Issue("server", {"old.name"});
  const std::unique_ptr<Tls> client = Load(authority_.Issue("client", {"client"}));
  const std::unique_ptr<Tls> server = Load(files);
  EXPECT_TRUE(Meet(client.get(), server.get(), "old.name").client.ok());
  // Files that do not fit: the old ones stay.
  const TlsFiles other = authority_.Issue("other", {"new.name"});
  ASSERT_EQ(rename(other.certificate.c_str(), files.certificate.c_str()), 0);
  clock_.Advance(absl::Seconds(2));
  EXPECT_TRUE(Meet(client.get(), server.get(), "old.name").client.ok());
  ASSERT_EQ(rename(other.key.c_str(), files.key.c_str()), 0);
  clock_.Advance(absl::Seconds(2));
  EXPECT_TRUE(Meet(client.get(), server.get(), "new.name").client.ok());
}

}  // namespace
}  // namespace millrace::net
