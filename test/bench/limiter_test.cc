// The limiter between a client and a small HTTP server, all in this process. Times are compared
// with generous bounds: the machine may be busy, and only "not faster than" is exact.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/limiter/proxy.h"
#include "bench/limiter/token_bucket.h"
#include "common/base/unique_fd.h"
#include "common/base/units.h"
#include "gtest/gtest.h"

namespace millrace::bench {
namespace {

base::UniqueFd ConnectTo(uint16_t port) {
  base::UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  return fd;
}

bool SendAll(int fd, absl::string_view data) {
  while (!data.empty()) {
    const ssize_t put = send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    if (put <= 0) return false;
    data.remove_prefix(put);
  }
  return true;
}

std::string ReceiveExactly(int fd, size_t size) {
  std::string data(size, '\0');
  size_t have = 0;
  while (have < size) {
    const ssize_t got = recv(fd, data.data() + have, size - have, 0);
    if (got <= 0) break;
    have += got;
  }
  data.resize(have);
  return data;
}

constexpr absl::string_view kRequest = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

// Answers every kRequest with the same bytes; ends when the test does.
class TinyServer {
 public:
  explicit TinyServer(std::string answer) : answer_(std::move(answer)) {
    listener_ = base::UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_.get(), 16), 0);
    socklen_t length = sizeof(address);
    getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Accept(); });
  }

  ~TinyServer() {
    shutdown(listener_.get(), SHUT_RDWR);
    acceptor_.join();
    for (std::thread& thread : serving_) thread.join();
  }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  void Accept() {
    for (;;) {
      auto fd = std::make_shared<base::UniqueFd>(accept(listener_.get(), nullptr, nullptr));
      if (!fd->valid()) return;
      serving_.emplace_back([this, fd] {
        while (ReceiveExactly(fd->get(), kRequest.size()) == kRequest &&
               SendAll(fd->get(), answer_)) {
        }
      });
    }
  }

  const std::string answer_;
  base::UniqueFd listener_;
  uint16_t port_ = 0;
  std::thread acceptor_;
  // Only the acceptor adds to it; it has ended when they are joined.
  std::vector<std::thread> serving_;
};

// A proxy that runs for the length of a test.
class RunningProxy {
 public:
  explicit RunningProxy(const Proxy::Options& options) : proxy_(*Proxy::Create(options)) {
    thread_ = std::thread([this] { EXPECT_TRUE(proxy_->Run().ok()); });
  }
  ~RunningProxy() {
    proxy_->Stop();
    thread_.join();
  }
  Proxy* operator->() { return proxy_.get(); }

 private:
  const std::unique_ptr<Proxy> proxy_;
  std::thread thread_;
};

std::string Answer(size_t size) {
  std::string body(size, '\0');
  for (size_t i = 0; i < size; ++i) body[i] = static_cast<char>(i * 31 + (i >> 8));
  return absl::StrCat("HTTP/1.1 200 OK\r\nContent-Length: ", size, "\r\n\r\n", body);
}

TEST(LimiterTest, PassesBytesUnchangedAndCountsThem) {
  const std::string answer = Answer(3 * base::kMiB);
  TinyServer server(answer);
  RunningProxy proxy({.listen = "127.0.0.1:0", .target = server.address()});
  const base::UniqueFd client = ConnectTo(proxy->port());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(SendAll(client.get(), kRequest));
    // Not EXPECT_EQ: it would print megabytes.
    EXPECT_TRUE(ReceiveExactly(client.get(), answer.size()) == answer);
  }
  const Proxy::Counters counters = proxy->counters();
  EXPECT_EQ(counters.connections, 1u);
  EXPECT_EQ(counters.requests, 3u);
  EXPECT_EQ(counters.bytes_to_store, 3 * kRequest.size());
  EXPECT_LE(counters.bytes_to_client, 3 * answer.size());
  EXPECT_EQ(counters.malformed, 0u);
}

TEST(LimiterTest, HoldsTheRateOverAllConnectionsAndSharesIt) {
  const std::string answer = Answer(2 * base::kMiB);
  TinyServer server(answer);
  RunningProxy proxy(
      {.listen = "127.0.0.1:0", .target = server.address(), .bytes_per_second = 16 * base::kMiB});
  const absl::Time start = absl::Now();
  absl::Duration first_done = absl::InfiniteDuration();
  std::vector<std::thread> clients;
  std::vector<absl::Duration> done(4);
  for (size_t i = 0; i < done.size(); ++i) {
    clients.emplace_back([&, i] {
      const base::UniqueFd client = ConnectTo(proxy->port());
      EXPECT_TRUE(SendAll(client.get(), kRequest));
      EXPECT_EQ(ReceiveExactly(client.get(), answer.size()).size(), answer.size());
      done[i] = absl::Now() - start;
    });
  }
  for (std::thread& client : clients) client.join();
  for (const absl::Duration duration : done) first_done = std::min(first_done, duration);
  const absl::Duration total = absl::Now() - start;
  // 8 MiB at 16 MiB/s.
  EXPECT_GE(total, absl::Milliseconds(450));
  EXPECT_LE(total, absl::Milliseconds(2500));
  // Alone, the first would be done after a quarter of the time; in turns, all end together.
  EXPECT_GE(first_done, total * 0.6);
}

TEST(LimiterTest, DelaysEveryPipelinedRequest) {
  const std::string answer = Answer(10);
  TinyServer server(answer);
  RunningProxy proxy(
      {.listen = "127.0.0.1:0", .target = server.address(), .delay = absl::Milliseconds(40)});
  const base::UniqueFd client = ConnectTo(proxy->port());
  const absl::Time start = absl::Now();
  ASSERT_TRUE(SendAll(client.get(), absl::StrCat(kRequest, kRequest, kRequest)));
  for (int i = 1; i <= 3; ++i) {
    EXPECT_EQ(ReceiveExactly(client.get(), answer.size()), answer);
    EXPECT_GE(absl::Now() - start, i * absl::Milliseconds(40));
  }
  EXPECT_LE(absl::Now() - start, absl::Milliseconds(1500));
  EXPECT_EQ(proxy->counters().requests, 3u);
}

TEST(LimiterTest, DelaysOfDifferentConnectionsPassTogether) {
  const std::string answer = Answer(10);
  TinyServer server(answer);
  RunningProxy proxy(
      {.listen = "127.0.0.1:0", .target = server.address(), .delay = absl::Milliseconds(200)});
  const absl::Time start = absl::Now();
  std::vector<base::UniqueFd> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(ConnectTo(proxy->port()));
    ASSERT_TRUE(SendAll(clients.back().get(), kRequest));
  }
  for (const base::UniqueFd& client : clients) {
    EXPECT_EQ(ReceiveExactly(client.get(), answer.size()), answer);
  }
  EXPECT_LE(absl::Now() - start, absl::Milliseconds(1500));
}

TEST(LimiterTest, ClosesWhatIsNoHttp) {
  TinyServer server(Answer(10));
  RunningProxy proxy({.listen = "127.0.0.1:0", .target = server.address()});
  const base::UniqueFd client = ConnectTo(proxy->port());
  ASSERT_TRUE(SendAll(client.get(), "hello\r\n\r\n"));
  EXPECT_EQ(ReceiveExactly(client.get(), 1), "");
  EXPECT_EQ(proxy->counters().malformed, 1u);
}

TEST(LimiterTest, ClosesTheClientWhenTheStoreRefuses) {
  std::string nobody;
  { nobody = TinyServer("").address(); }
  RunningProxy proxy({.listen = "127.0.0.1:0", .target = nobody});
  const base::UniqueFd client = ConnectTo(proxy->port());
  SendAll(client.get(), kRequest);
  EXPECT_EQ(ReceiveExactly(client.get(), 1), "");
}

TEST(LimiterTest, RefusesAddressesThatAreNone) {
  EXPECT_FALSE(Proxy::Create({.listen = "127.0.0.1", .target = "127.0.0.1:1"}).ok());
  EXPECT_FALSE(Proxy::Create({.listen = "127.0.0.1:0", .target = "no port"}).ok());
}

TEST(TokenBucketTest, BringsTheRateAndNoMore) {
  const absl::Time start = absl::UnixEpoch();
  TokenBucket bucket(100 * base::kMiB, start);
  EXPECT_EQ(bucket.Available(start), 0u);
  uint64_t passed = 0;
  for (int i = 1; i <= 1000; ++i) {
    const uint64_t available = bucket.Available(start + i * absl::Milliseconds(1));
    bucket.Take(available);
    passed += available;
  }
  EXPECT_NEAR(passed, 100 * base::kMiB, base::kKiB);
}

TEST(TokenBucketTest, LatenessIsMadeUpForButIdlenessIsNot) {
  const absl::Time start = absl::UnixEpoch();
  TokenBucket late(100 * base::kMiB, start);
  EXPECT_NEAR(late.Available(start + absl::Milliseconds(15)), 1.5 * base::kMiB, base::kKiB);
  EXPECT_NEAR(late.Available(start + absl::Seconds(9)), 2 * base::kMiB, base::kKiB);

  TokenBucket idle(100 * base::kMiB, start);
  idle.Rest(start);
  EXPECT_LE(idle.Available(start + absl::Seconds(9)), 64 * base::kKiB);
}

TEST(TokenBucketTest, WithoutALimitEverythingPasses) {
  TokenBucket bucket(0, absl::UnixEpoch());
  bucket.Take(bucket.Available(absl::UnixEpoch()));
  EXPECT_EQ(bucket.Available(absl::UnixEpoch()), UINT64_MAX);
}

}  // namespace
}  // namespace millrace::bench
