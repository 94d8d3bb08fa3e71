// The doors of a worker, asked by a raw client: what is right gets the right bytes, what is wrong
// gets one error and the end of the connection.
#include "cache/worker/data_server.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "test/cache/worker/door_fixture.h"

namespace millrace::worker {
namespace {

using base::kMiB;
using test::PatternBytes;
using test::PatternStore;
using test::RawClient;

class DataServerTest : public ::testing::Test {
 protected:
  DataServerTest() { options_.store = store_; }
  ~DataServerTest() override { store_->Open(); }

  Door& door() {
    if (door_ == nullptr) door_ = std::make_unique<Door>(options_);
    return *door_;
  }
  RawClient Client(const std::string& peer = "raw") {
    RawClient client(door().address());
    EXPECT_TRUE(client.connected());
    EXPECT_TRUE(client.Greet("millrace", peer).ok());
    return client;
  }
  // Until it holds; a test that waits for ever fails by its time limit.
  template <typename Condition>
  static void Await(const Condition& condition) {
    while (!condition()) std::this_thread::yield();
  }

  std::shared_ptr<PatternStore> store_ = std::make_shared<PatternStore>();
  Door::Options options_;
  std::unique_ptr<Door> door_;
};

// --- Bytes --------------------------------------------------------------------------------------

TEST_F(DataServerTest, ColdBytesComeFromTheStoreAndWarmOnesFromTheCache) {
  RawClient client = Client();
  const uint64_t size = 3 * kMiB + 77;
  for (const bool warm : {false, true}) {
    for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{
             {0, size}, {5, 4096}, {128 * 1024, 128 * 1024}, {size - 1, 1}, {100'000, kMiB}}) {
      uint8_t flags = 0;
      const auto bytes = client.Get(GetOf("a", size, offset, length), &flags);
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      EXPECT_TRUE(*bytes == PatternBytes("a", "v1", offset, length)) << offset;
      if (warm) {
        EXPECT_EQ(flags & (proto::kFromStore | proto::kFromPeer), 0);
      }
    }
  }
  EXPECT_EQ(store_->bytes_sent(), size);
  EXPECT_EQ(door().observer().sent[static_cast<size_t>(fetch::Origin::kStore)], size);
}

TEST_F(DataServerTest, TellsWhatComesFromTheStore) {
  RawClient client = Client();
  uint8_t flags = 0;
  ASSERT_TRUE(client.Get(GetOf("a", 1000, 0, 1000), &flags).ok());
  EXPECT_EQ(flags, proto::kFromStore | proto::kLast);
}

TEST_F(DataServerTest, ManyReadersOfOneColdFileCostOneGetEach) {
  options_.connections = 8;
  const uint64_t size = 8 * kMiB;
  door();
  std::vector<std::thread> readers;
  for (int i = 0; i < 16; ++i) {
    readers.emplace_back([&] {
      RawClient client = Client();
      const auto bytes = client.Get(GetOf("a", size, 0, size));
      EXPECT_TRUE(bytes.ok() && *bytes == PatternBytes("a", "v1", 0, size)) << bytes.status();
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(store_->bytes_sent(), size);
}

TEST_F(DataServerTest, BytesAreSentWhileTheRestIsOnItsWay) {
  store_->Hold();
  RawClient client = Client();
  ASSERT_TRUE(client.Send(proto::Encode(client.NextId(), GetOf("a", 4 * kMiB, 0, 4 * kMiB))).ok());
  store_->AwaitGets(1);
  // The same connection is answered meanwhile, and no thread waits for the bytes.
  const uint64_t ping = client.NextId();
  ASSERT_TRUE(client.Send(proto::EncodeEmpty(ping, proto::FrameType::kPing)).ok());
  const auto pong = client.Receive();
  ASSERT_TRUE(pong.ok()) << pong.status();
  EXPECT_EQ(pong->header.type, proto::FrameType::kPong);
  EXPECT_EQ(pong->header.request, ping);
  store_->Open();
  const auto bytes = client.ReceiveBytes(2, 0);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_TRUE(*bytes == PatternBytes("a", "v1", 0, 4 * kMiB));
}

TEST_F(DataServerTest, ASmallRequestDoesNotWaitForALargeOneOfTheSameConnection) {
  RawClient client = Client();
  ASSERT_TRUE(client.Get(GetOf("warm", 1000, 0, 1000)).ok());
  store_->Hold();
  const uint64_t large = client.NextId();
  ASSERT_TRUE(client.Send(proto::Encode(large, GetOf("a", 4 * kMiB, 0, 4 * kMiB))).ok());
  store_->AwaitGets(2);
  const auto small = client.Get(GetOf("warm", 1000, 10, 20));
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_EQ(*small, PatternBytes("warm", "v1", 10, 20));
  store_->Open();
  EXPECT_TRUE(client.ReceiveBytes(large, 0).ok());
}

TEST_F(DataServerTest, WhatIsNotCachedIsNotFetchedForAnotherWorker) {
  RawClient client = Client();
  const auto nothing = client.Get(GetOf("a", kMiB, 0, kMiB, proto::Role::kCached));
  EXPECT_TRUE(absl::IsNotFound(nothing.status())) << nothing.status();
  EXPECT_TRUE(store_->requests().empty());
  ASSERT_TRUE(client.Get(GetOf("a", 4 * kMiB, 0, 10)).ok());
  EXPECT_TRUE(client.Get(GetOf("a", 4 * kMiB, 50, 10, proto::Role::kCached)).ok());
  EXPECT_TRUE(absl::IsNotFound(
      client.Get(GetOf("a", 4 * kMiB, 3 * kMiB, 10, proto::Role::kCached)).status()));
}

TEST_F(DataServerTest, AnotherWorkerWaitsForWhatIsOnItsWay) {
  store_->Hold();
  RawClient client = Client();
  RawClient peer = Client("another");
  const uint64_t id = client.NextId();
  ASSERT_TRUE(client.Send(proto::Encode(id, GetOf("a", kMiB, 0, kMiB))).ok());
  store_->AwaitGets(1);
  const uint64_t peers = peer.NextId();
  ASSERT_TRUE(
      peer.Send(proto::Encode(peers, GetOf("a", kMiB, 0, kMiB, proto::Role::kCached))).ok());
  store_->Open();
  const auto bytes = peer.ReceiveBytes(peers, 0);
  EXPECT_TRUE(bytes.ok() && *bytes == PatternBytes("a", "v1", 0, kMiB)) << bytes.status();
  EXPECT_TRUE(client.ReceiveBytes(id, 0).ok());
  EXPECT_EQ(store_->requests().size(), 1u);
}

TEST_F(DataServerTest, AnotherWorkerDoesNotWaitForLong) {
  store_->Hold();
  RawClient client = Client();
  RawClient peer = Client("another");
  ASSERT_TRUE(client.Send(proto::Encode(client.NextId(), GetOf("a", kMiB, 0, kMiB))).ok());
  store_->AwaitGets(1);
  EXPECT_TRUE(absl::IsNotFound(peer.Get(GetOf("a", kMiB, 0, kMiB, proto::Role::kCached)).status()));
}

TEST_F(DataServerTest, ALoadIsAnsweredWhenItIsThere) {
  RawClient client = Client();
  const auto cold = client.Load(GetOf("a", 6 * kMiB, kMiB, 4 * kMiB));
  ASSERT_TRUE(cold.ok()) << cold.status();
  EXPECT_EQ(cold->bytes, 4 * kMiB);
  EXPECT_EQ(cold->fetched_from_store, 4 * kMiB);
  const auto again = client.Load(GetOf("a", 6 * kMiB, kMiB, 4 * kMiB));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->bytes, 4 * kMiB);
  EXPECT_EQ(again->fetched_from_store, 0u);
}

TEST_F(DataServerTest, ALoadKeepsWhatAnotherWorkerAsksForInVain) {
  store_->Hold();
  RawClient client = Client();
  RawClient peer = Client("another");
  const uint64_t id = client.NextId();
  ASSERT_TRUE(
      client.Send(proto::Encode(id, GetOf("a", 4 * kMiB, 0, kMiB), proto::FrameType::kLoad)).ok());
  store_->AwaitGets(1);
  // Of a file that is being filled, but not this part of it: nothing may happen to it.
  EXPECT_TRUE(absl::IsNotFound(
      peer.Get(GetOf("a", 4 * kMiB, 3 * kMiB, 10, proto::Role::kCached)).status()));
  store_->Open();
  const auto done = Client("third").Load(GetOf("a", 4 * kMiB, 0, kMiB));
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->bytes, kMiB);
  EXPECT_EQ(store_->requests().size(), 1u);
}

TEST_F(DataServerTest, ALoadThatDoesNotFitFetchesNothing) {
  options_.quota = 4 * kMiB;
  RawClient client = Client();
  const auto done = client.Load(GetOf("a", 64 * kMiB, 0, 64 * kMiB));
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->bytes, 0u);
  EXPECT_TRUE(store_->requests().empty());
}

TEST_F(DataServerTest, ACancelledRequestIsAbandonedAndTheConnectionGoesOn) {
  store_->Hold();
  RawClient client = Client();
  const uint64_t id = client.NextId();
  ASSERT_TRUE(client.Send(proto::Encode(id, GetOf("a", 16 * kMiB, 0, 16 * kMiB))).ok());
  store_->AwaitGets(1);
  ASSERT_TRUE(client.Send(proto::EncodeEmpty(id, proto::FrameType::kCancel)).ok());
  const auto answer = client.Receive();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->header.request, id);
  EXPECT_TRUE(absl::IsCancelled(RawClient::ErrorOf(*answer)));
  store_->Open();
  EXPECT_TRUE(client.Get(GetOf("b", 1000, 0, 1000)).ok());
  door().files().Stop();
  EXPECT_LE(store_->bytes_sent(), kMiB);  // Nobody waited for the rest.
}

TEST_F(DataServerTest, TheFetchesOfAClientThatDiesAreAbandonedButNotThoseOfOthers) {
  store_->Hold();
  RawClient stays = Client();
  {
    RawClient dies = Client();
    ASSERT_TRUE(dies.Send(proto::Encode(dies.NextId(), GetOf("a", 16 * kMiB, 0, 16 * kMiB))).ok());
    store_->AwaitGets(1);
    ASSERT_TRUE(stays.Send(proto::Encode(stays.NextId(), GetOf("a", 16 * kMiB, 0, kMiB))).ok());
    // Served, so that it waits too.
    Await([this] { return door().server().connections() == 2; });
  }
  Await([this] { return door().server().connections() == 1; });
  store_->Open();
  const auto bytes = stays.ReceiveBytes(2, 0);
  EXPECT_TRUE(bytes.ok() && *bytes == PatternBytes("a", "v1", 0, kMiB)) << bytes.status();
}

TEST_F(DataServerTest, AFailingStoreIsToldAndTheConnectionGoesOn) {
  RawClient client = Client();
  store_->FailNext(1, absl::UnavailableError("503"), 200'000);
  const auto failed = client.Get(GetOf("a", 3 * kMiB, 0, 3 * kMiB));
  EXPECT_TRUE(absl::IsUnavailable(failed.status())) << failed.status();
  EXPECT_TRUE(client.Get(GetOf("b", 1000, 0, 1000)).ok());
}

TEST_F(DataServerTest, AnUnknownSourceIsNotFound) {
  RawClient client = Client();
  proto::Get get = GetOf("a", 1000, 0, 1000);
  get.file.source = "s3://elsewhere";
  EXPECT_TRUE(absl::IsNotFound(client.Get(get).status()));
}

TEST_F(DataServerTest, AChangedObjectIsToldAndNothingOfItIsKept) {
  store_->SetVersion("a", "v2");
  RawClient client = Client();
  EXPECT_TRUE(absl::IsFailedPrecondition(client.Get(GetOf("a", 2 * kMiB, 0, kMiB)).status()));
  EXPECT_EQ(door().cache().Stats()[0].files, 0u);
  proto::Get get = GetOf("a", 2 * kMiB, 0, kMiB);
  get.file.version = "v2";
  const auto bytes = client.Get(get);
  EXPECT_TRUE(bytes.ok() && *bytes == PatternBytes("a", "v2", 0, kMiB)) << bytes.status();
}

TEST_F(DataServerTest, ADamagedBlockIsCheckedWhenAClientSaysSo) {
  RawClient client = Client();
  const uint64_t size = 2 * kMiB;
  ASSERT_TRUE(client.Get(GetOf("a", size, 0, size)).ok());
  const auto file = door().cache().Find({kSource, "a", "v1", size});
  ASSERT_NE(file, nullptr);
  Await([&] { return file->complete(); });
  // Through the process's own eyes the file looks as whole as before.
  std::string path;
  for (const std::string& entry : testing::ListFiles(door().directory())) {
    if (entry.find("/complete/") != std::string::npos) path = entry;
  }
  ASSERT_FALSE(path.empty());
  {
    const base::UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_TRUE(fd.valid());
    ASSERT_EQ(pwrite(fd.get(), "damage", 6, 300'000), 6);
  }
  EXPECT_TRUE(absl::IsDataLoss(client.Get(GetOf("a", size, 0, size)).status()));
  RawClient other = Client();
  EXPECT_TRUE(absl::IsDataLoss(other.Get(GetOf("a", size, 0, size)).status()));
  ASSERT_TRUE(other.Send(proto::Encode(0, proto::ToError(absl::DataLossError("bad")))).ok());
  Await([&] { return door().cache().Stats()[0].faults_damaged == 1; });
  RawClient again = Client();
  const auto bytes = again.Get(GetOf("a", size, 0, size));
  EXPECT_TRUE(bytes.ok() && *bytes == PatternBytes("a", "v1", 0, size)) << bytes.status();
}

// --- Descriptors --------------------------------------------------------------------------------

TEST_F(DataServerTest, ACompleteFileIsHandedOverWithALease) {
  RawClient client(door().socket());
  ASSERT_TRUE(client.connected());
  ASSERT_TRUE(client.Greet().ok());
  const proto::FileName name = GetOf("a", 2 * kMiB, 0, 1).file;
  ASSERT_TRUE(client.Send(proto::Encode(client.NextId(), proto::Open{name})).ok());
  auto answer = client.Receive();
  ASSERT_TRUE(answer.ok());
  EXPECT_TRUE(absl::IsNotFound(RawClient::ErrorOf(*answer)));
  ASSERT_TRUE(client.Get(GetOf("a", 2 * kMiB, 0, 2 * kMiB, proto::Role::kGuest)).ok());
  const auto file = door().cache().Find({kSource, "a", "v1", 2 * kMiB});
  Await([&] { return file->complete(); });

  ASSERT_TRUE(client.Send(proto::Encode(client.NextId(), proto::Open{name})).ok());
  base::UniqueFd fd;
  answer = client.Receive(&fd);
  ASSERT_TRUE(answer.ok()) << answer.status();
  ASSERT_EQ(answer->header.type, proto::FrameType::kOpened);
  ASSERT_TRUE(fd.valid());
  const auto opened = proto::DecodeOpened(answer->payload);
  ASSERT_TRUE(opened.ok());
  EXPECT_EQ(door().server().leases(), 1u);
  std::string bytes(2 * kMiB, '\0');
  ASSERT_EQ(pread(fd.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  EXPECT_TRUE(bytes == PatternBytes("a", "v1", 0, 2 * kMiB));
  EXPECT_LT(pwrite(fd.get(), "x", 1, 0), 0);
  ASSERT_TRUE(client.Send(proto::Encode(client.NextId(), proto::Release{opened->lease})).ok());
  Await([this] { return door().server().leases() == 0; });
}

TEST_F(DataServerTest, TheLeasesOfAConnectionEndWithIt) {
  {
    RawClient client(door().socket());
    ASSERT_TRUE(client.Greet().ok());
    ASSERT_TRUE(client.Get(GetOf("a", 1000, 0, 1000)).ok());
    const auto file = door().cache().Find({kSource, "a", "v1", 1000});
    Await([&] { return file->complete(); });
    ASSERT_TRUE(
        client.Send(proto::Encode(client.NextId(), proto::Open{GetOf("a", 1000, 0, 1).file})).ok());
    base::UniqueFd fd;
    ASSERT_TRUE(client.Receive(&fd).ok());
    EXPECT_EQ(door().server().leases(), 1u);
  }
  Await([this] { return door().server().leases() == 0; });
}

TEST_F(DataServerTest, NoDescriptorOverTcp) {
  RawClient client = Client();
  ASSERT_TRUE(
      client.Send(proto::Encode(client.NextId(), proto::Open{GetOf("a", 1000, 0, 1).file})).ok());
  absl::Status why;
  EXPECT_TRUE(client.IsRefused(&why));
  EXPECT_EQ(door().observer().refusals(Refusal::kSequence), 1u);
}

TEST_F(DataServerTest, AStrangerMayNotUseTheSocket) {
  if (geteuid() == 0) {
    // Root may; a child that is somebody else may not.
    const net::Address socket = door().socket();
    ASSERT_EQ(chmod(door().directory().c_str(), 0755), 0);
    ASSERT_EQ(chmod(socket.path.c_str(), 0666), 0);
    const pid_t child = fork();
    if (child == 0) {
      if (setgid(12345) != 0 || setuid(12345) != 0) _exit(2);
      const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_un address = {};
      address.sun_family = AF_UNIX;
      socket.path.copy(address.sun_path, sizeof(address.sun_path) - 1);
      if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) _exit(3);
      char byte;
      _exit(recv(fd, &byte, 1, 0) == 0 ? 0 : 4);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  } else {
    options_.server.own_uid = geteuid() + 1;
    RawClient client(door().socket());
    EXPECT_FALSE(client.Greet().ok());
  }
  EXPECT_EQ(door().observer().refusals(Refusal::kCredentials), 1u);
}

// --- Indexes ------------------------------------------------------------------------------------

TEST_F(DataServerTest, AnIndexComesInFrames) {
  RawClient client = Client();
  const auto ask = [&client](uint64_t have) {
    const uint64_t id = client.NextId();
    EXPECT_TRUE(client.Send(proto::Encode(id, proto::IndexGet{kSource, have, 1500})).ok());
    return client.ReceiveBytes(id, 0);
  };
  const auto bytes = ask(0);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  ASSERT_EQ(bytes->size(), index::kAnswerHeadSize + 300'000);
  const auto head = index::DecodeAnswerHead(bytes->substr(0, index::kAnswerHeadSize));
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_EQ(head->version, 99u);
  EXPECT_EQ(head->age, absl::Milliseconds(1500));
  EXPECT_EQ(bytes->substr(index::kAnswerHeadSize), std::string(300'000, 'i'));
  const auto unchanged = ask(99);
  ASSERT_TRUE(unchanged.ok()) << unchanged.status();
  EXPECT_EQ(unchanged->size(), index::kAnswerHeadSize);
  EXPECT_TRUE(absl::IsUnavailable(ask(98).status()));
}

// --- Bad input ----------------------------------------------------------------------------------

class BadInputTest : public DataServerTest {
 protected:
  // One error, the end, and one more connection that was closed for `refusal`.
  void ExpectRefused(RawClient& client, Refusal refusal) {
    absl::Status why;
    EXPECT_TRUE(client.IsRefused(&why));
    EXPECT_EQ(door().observer().refusals(refusal), 1u);
    Await([this] { return door().server().connections() == 0; });
    // The worker is none the worse for it.
    EXPECT_TRUE(Client().Get(GetOf("a", 1000, 0, 1000)).ok());
  }
};

TEST_F(BadInputTest, AnotherCluster) {
  RawClient client(door().address());
  EXPECT_TRUE(absl::IsFailedPrecondition(client.Greet("other").status()));
  EXPECT_TRUE(absl::IsUnavailable(client.Receive().status()));
  EXPECT_EQ(door().observer().refusals(Refusal::kCluster), 1u);
}

TEST_F(BadInputTest, AnotherVersion) {
  RawClient client(door().address());
  proto::Hello hello;
  hello.version = 7;
  hello.cluster = "millrace";
  ASSERT_TRUE(client.Send(proto::Encode(1, hello)).ok());
  ExpectRefused(client, Refusal::kVersion);
}

TEST_F(BadInputTest, ARequestBeforeHello) {
  RawClient client(door().address());
  ASSERT_TRUE(client.Send(proto::Encode(1, GetOf("a", 1000, 0, 1000))).ok());
  ExpectRefused(client, Refusal::kSequence);
  EXPECT_EQ(store_->requests().size(), 1u);  // That of the client after it.
}

TEST_F(BadInputTest, ASecondHello) {
  RawClient client = Client();
  proto::Hello hello;
  hello.cluster = "millrace";
  ASSERT_TRUE(client.Send(proto::Encode(9, hello)).ok());
  ExpectRefused(client, Refusal::kSequence);
}

TEST_F(BadInputTest, AReplayedRequest) {
  RawClient client = Client();
  const uint64_t id = client.NextId();
  const std::string frame = proto::Encode(id, GetOf("a", 1000, 0, 1000));
  ASSERT_TRUE(client.Send(frame).ok());
  ASSERT_TRUE(client.ReceiveBytes(id, 0).ok());
  ASSERT_TRUE(client.Send(frame).ok());
  ExpectRefused(client, Refusal::kSequence);
}

TEST_F(BadInputTest, AFlippedBitInAHeader) {
  RawClient client = Client();
  std::string frame = proto::Encode(client.NextId(), GetOf("a", 1000, 0, 1000));
  frame[9] ^= 4;
  ASSERT_TRUE(client.Send(frame).ok());
  ExpectRefused(client, Refusal::kFrame);
}

TEST_F(BadInputTest, AFlippedBitInAMessage) {
  RawClient client = Client();
  std::string frame = proto::Encode(client.NextId(), GetOf("a", 1000, 0, 1000));
  frame[proto::kHeaderSize + 20] ^= 1;
  ASSERT_TRUE(client.Send(frame).ok());
  ExpectRefused(client, Refusal::kChecksum);
}

TEST_F(BadInputTest, AnOversizedFrame) {
  RawClient client = Client();
  proto::Header header;
  header.type = proto::FrameType::kGet;
  header.length = proto::kMessageMax + 1;
  header.request = 5;
  ASSERT_TRUE(client.Send(proto::EncodeHeader(header)).ok());
  ExpectRefused(client, Refusal::kFrame);
}

TEST_F(BadInputTest, AClientThatSendsData) {
  RawClient client = Client();
  proto::Header header;
  header.type = proto::FrameType::kData;
  header.length = proto::kDataMax;
  header.request = 5;
  ASSERT_TRUE(client.Send(proto::EncodeHeader(header)).ok());
  ExpectRefused(client, Refusal::kSequence);
}

TEST_F(BadInputTest, AMessageThatLies) {
  RawClient client = Client();
  proto::Get get = GetOf("a", 1000, 0, 1000);
  get.length = 1001;
  ASSERT_TRUE(client.Send(proto::Encode(client.NextId(), get)).ok());
  ExpectRefused(client, Refusal::kFrame);
}

TEST_F(BadInputTest, HalfAFrameAndTheEnd) {
  {
    RawClient client = Client();
    ASSERT_TRUE(
        client.Send(proto::Encode(client.NextId(), GetOf("a", 1000, 0, 1000)).substr(0, 40)).ok());
  }
  Await([this] { return door().server().connections() == 0; });
  EXPECT_TRUE(Client().Get(GetOf("a", 1000, 0, 1000)).ok());
}

TEST_F(BadInputTest, AFrameByteByByteIsFine) {
  RawClient client = Client();
  const uint64_t id = client.NextId();
  for (const char byte : proto::Encode(id, GetOf("a", 1000, 0, 1000))) {
    ASSERT_TRUE(client.Send(absl::string_view(&byte, 1)).ok());
  }
  EXPECT_TRUE(client.ReceiveBytes(id, 0).ok());
}

TEST_F(BadInputTest, MoreRequestsThanAConnectionMayHave) {
  store_->Hold();
  RawClient client = Client();
  std::vector<uint64_t> ids;
  for (size_t i = 0; i < ServedConnection::kRequestsMax + 1; ++i) {
    ids.push_back(client.NextId());
    ASSERT_TRUE(
        client.Send(proto::Encode(ids.back(), GetOf(absl::StrCat("f", i), 1000, 0, 1000))).ok());
  }
  const auto answer = client.Receive();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->header.request, ids.back());
  EXPECT_TRUE(absl::IsResourceExhausted(RawClient::ErrorOf(*answer)));
  store_->Open();
  for (size_t i = 0; i < ServedConnection::kRequestsMax; ++i) EXPECT_TRUE(client.Receive().ok());
}

TEST_F(BadInputTest, MoreConnectionsThanTheWorkerTakes) {
  options_.server.connections_max = 2;
  RawClient one = Client();
  RawClient two = Client();
  RawClient three(door().address());
  EXPECT_FALSE(three.Greet().ok());
  EXPECT_EQ(door().observer().refusals(Refusal::kLimit), 1u);
  EXPECT_TRUE(one.Get(GetOf("a", 1000, 0, 1000)).ok());
}

TEST_F(BadInputTest, RandomBytes) {
  std::mt19937 random(7);
  for (int i = 0; i < 200; ++i) {
    RawClient client(door().address());
    if (i % 2 == 0) {
      ASSERT_TRUE(client.Greet().ok());
    }
    std::string bytes = proto::Encode(client.NextId(), GetOf("a", 1000, 0, 1000));
    for (int flips = 0; flips < 1 + i % 5; ++flips) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    // The worker may have closed before all of it was sent.
    client.Send(bytes).IgnoreError();
  }
  Await([this] { return door().server().connections() == 0; });
  EXPECT_TRUE(Client().Get(GetOf("b", 1000, 0, 1000)).ok());
}

// --- Limits -------------------------------------------------------------------------------------

TEST_F(DataServerTest, FewThreadsAndBuffersServeManyClients) {
  options_.server.threads_max = 3;
  options_.server.blocks_max = 2;
  options_.connections = 2;
  options_.quota = 4 * kMiB;  // Most of it is not kept.
  options_.memory = 4 * kMiB;
  door();
  std::vector<std::thread> readers;
  for (unsigned i = 0; i < 24; ++i) {
    readers.emplace_back([this, i] {
      RawClient client = Client();
      std::mt19937 random(i);
      for (int reads = 0; reads < 20; ++reads) {
        const std::string path = absl::StrCat("f", random() % 4);
        const uint64_t size = 3 * kMiB;
        const uint64_t offset = random() % size;
        const uint64_t length = std::min<uint64_t>(1 + random() % 300'000, size - offset);
        const auto bytes = client.Get(GetOf(path, size, offset, length));
        ASSERT_TRUE(bytes.ok()) << bytes.status();
        ASSERT_TRUE(*bytes == PatternBytes(path, "v1", offset, length));
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_LE(door().server().threads(), 3u);
}

TEST_F(DataServerTest, ARestartFindsTheCacheAgain) {
  {
    RawClient client = Client();
    ASSERT_TRUE(client.Get(GetOf("a", 5 * kMiB, 0, 5 * kMiB)).ok());
  }
  door().Stop();
  door().Start();
  RawClient client = Client();
  const auto bytes = client.Get(GetOf("a", 5 * kMiB, 0, 5 * kMiB));
  EXPECT_TRUE(bytes.ok() && *bytes == PatternBytes("a", "v1", 0, 5 * kMiB)) << bytes.status();
  EXPECT_EQ(store_->bytes_sent(), 5 * kMiB);
}

TEST_F(DataServerTest, StopsWhileClientsWait) {
  store_->Hold();
  RawClient client = Client();
  ASSERT_TRUE(client.Send(proto::Encode(client.NextId(), GetOf("a", kMiB, 0, kMiB))).ok());
  store_->AwaitGets(1);
  std::thread opener([this] { store_->Open(); });
  door().Stop();
  opener.join();
}

}  // namespace
}  // namespace millrace::worker
