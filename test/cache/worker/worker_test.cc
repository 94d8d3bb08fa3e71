// Whole workers in one process: they find each other, share the files of a source, send copies to
// each other, come and go. The source is a directory whose reads are counted by the bytes that a
// worker says it had from the store.
#include "cache/worker/worker.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cache/pool/pool.h"
#include "cache/store/registry.h"
#include "common/base/units.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"
#include "test/support/certificates.h"
#include "test/support/raw_client.h"

namespace millrace::worker {
namespace {

using base::kMiB;
using test::RawClient;
using testing::ContentOf;
using testing::TemporaryDirectory;

constexpr uint64_t kExtent = kMiB;

class WorkerTest : public ::testing::Test {
 protected:
  WorkerTest() { EXPECT_EQ(mkdir(Source().c_str(), 0755), 0); }

  std::string Source() const { return directory_.path() + "/source"; }
  std::string Url() const { return absl::StrCat("file://", Source()); }

  void MakeFile(const std::string& name, uint64_t size) {
    testing::WriteFile(absl::StrCat(Source(), "/", name), ContentOf(name, "", 0, size));
  }

  // A port that was free a moment ago, for members that must know each other before they listen.
  static uint16_t FreePort() {
    const auto socket = net::Listen({.host = "127.0.0.1"}, net::ListenOptions());
    return net::LocalAddress(socket->get())->port;
  }

  struct Node {
    uint16_t port = 0;
    std::unique_ptr<Worker> worker;
  };

  // Makes places for `count` workers that know of each other.
  void Plan(size_t count, uint32_t replicas = 1) {
    replicas_ = replicas;
    std::vector<std::string> addresses;
    for (size_t i = 0; i < count; ++i) {
      nodes_.push_back({FreePort(), nullptr});
      addresses.push_back(absl::StrCat("127.0.0.1:", nodes_.back().port));
    }
    members_ = absl::StrJoin(addresses, ",");
  }
  void Start(size_t i) {
    WorkerOptions options;
    options.sources = {Url()};
    options.tiers = {{tier::Medium::kSsd, absl::StrCat(directory_.path(), "/tier", i), quota_}};
    options.id = absl::StrCat("w", i);
    options.members = {members_};
    options.replicas = replicas_;
    options.extent_size = kExtent;
    options.listen_host = "127.0.0.1";
    options.data_port = nodes_[i].port;
    options.metrics_port = 0;
    options.directory = absl::StrCat(directory_.path(), "/run", i);
    options.memory_limit_bytes = 64 * kMiB;
    options.connections = 4;
    options.guest_share = guest_share_;
    options.members_refresh = absl::Milliseconds(100);
    options.certificate = tls_.certificate;
    options.key = tls_.key;
    options.authority = tls_.authority;
    auto worker = Worker::Start(options);
    ASSERT_TRUE(worker.ok()) << worker.status();
    nodes_[i].worker = *std::move(worker);
  }
  void Stop(size_t i) {
    EXPECT_TRUE(nodes_[i].worker->Stop(absl::Seconds(5)).ok());
    nodes_[i].worker.reset();
  }
  Worker& worker(size_t i) { return *nodes_[i].worker; }
  // Until all see `count` members beside themselves.
  void AwaitMembers(size_t count) {
    for (const Node& node : nodes_) {
      if (node.worker == nullptr) continue;
      Await([&] {
        size_t reachable = 0;
        for (const proto::MemberSeen& member : node.worker->Report().members) {
          if (member.reachable && !member.id.empty()) ++reachable;
        }
        return reachable == count;
      });
    }
  }
  template <typename Condition>
  static void Await(const Condition& condition) {
    while (!condition()) std::this_thread::yield();
  }

  // As a mount without a cache of its own has them: through a pool that knows the members.
  // With `answering` known, not before so many have answered: others would get their share.
  std::shared_ptr<store::Store> Mount(const std::vector<std::string>& members,
                                      size_t answering = 0) {
    pool::PoolOptions options;
    options.workers = members;
    options.certificate = tls_.certificate;
    options.key = tls_.key;
    options.authority = tls_.authority;
    options.members_refresh = absl::Milliseconds(200);
    auto pool = pool::Pool::Create(options);
    EXPECT_TRUE(pool.ok()) << pool.status();
    pools_.push_back(*std::move(pool));
    Await([this, answering] {
      size_t seen = 0;
      for (const pool::MemberStatus& member : pools_.back()->Members()) {
        if (member.reachable && !member.id.empty()) ++seen;
      }
      return seen >= answering;
    });
    auto opened = store::OpenSource(Url());
    EXPECT_TRUE(opened.ok()) << opened.status();
    real_ = opened->store;
    return pools_.back()->Wrap(opened->source.identity, opened->store);
  }
  store::Entry StatOf(const std::string& name) { return *real_->Stat(name, store::CallOptions()); }
  std::string Read(store::Store& store, const std::string& name, store::BytesFrom* from = nullptr) {
    const store::Entry entry = StatOf(name);
    store::GetRequest request;
    request.path = name;
    request.length = entry.size;
    request.version = entry.version;
    request.file_size = entry.size;
    request.from = from;
    std::string bytes;
    const absl::Status status = store.Get(
        request,
        [&](absl::string_view piece) {
          bytes.append(piece.data(), piece.size());
          return true;
        },
        store::CallOptions());
    EXPECT_TRUE(status.ok()) << status;
    return bytes;
  }
  // What the workers had to ask the store for, all together.
  uint64_t FromStore() {
    uint64_t sum = 0;
    for (const Node& node : nodes_) {
      if (node.worker == nullptr) continue;
      for (const auto& [labels, bytes] : node.worker->metrics().Counters(metrics::kStoreBytes)) {
        sum += bytes;
      }
    }
    return sum;
  }
  uint64_t Used(size_t i) {
    uint64_t used = 0;
    for (const proto::TierUse& tier : worker(i).Report().tiers) used += tier.used_bytes;
    return used;
  }

  TemporaryDirectory directory_;
  uint64_t quota_ = 64 * kMiB;
  double guest_share_ = 0.3;
  uint32_t replicas_ = 1;
  net::TlsFiles tls_;  // Of all, or none.
  std::string members_;
  std::vector<Node> nodes_;
  std::shared_ptr<store::Store> real_;
  std::vector<std::unique_ptr<pool::Pool>> pools_;
};

TEST_F(WorkerTest, AFileIsSpreadAndLeavesTheStoreOnce) {
  MakeFile("big", 16 * kMiB);
  Plan(3);
  for (size_t i = 0; i < 3; ++i) Start(i);
  AwaitMembers(2);
  const auto mount = Mount({members_}, 3);
  for (int reads = 0; reads < 3; ++reads) {
    EXPECT_TRUE(Read(*mount, "big") == ContentOf("big", "", 0, 16 * kMiB));
  }
  EXPECT_EQ(FromStore(), 16 * kMiB);
  uint64_t used = 0;
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_GT(Used(i), 0u) << i;
    used += Used(i);
  }
  EXPECT_EQ(used, 16 * kMiB);
}

TEST_F(WorkerTest, AFileLargerThanAnyWorkerIsKeptByAll) {
  quota_ = 8 * kMiB;
  MakeFile("big", 20 * kMiB);
  Plan(4);
  for (size_t i = 0; i < 4; ++i) Start(i);
  AwaitMembers(3);
  const auto mount = Mount({members_}, 4);
  EXPECT_TRUE(Read(*mount, "big") == ContentOf("big", "", 0, 20 * kMiB));
  uint64_t used = 0;
  for (size_t i = 0; i < 4; ++i) used += Used(i);
  // One may have been given more than its tier holds.
  EXPECT_GE(used, 16 * kMiB);
}

TEST_F(WorkerTest, WhatANodeReadsIsCopiedThereAndHandedOver) {
  MakeFile("big", 6 * kMiB);
  Plan(3);
  for (size_t i = 0; i < 3; ++i) Start(i);
  AwaitMembers(2);
  const auto mount = Mount({absl::StrCat("unix:", worker(1).socket_path()), members_});
  Await([&] { return pools_.back()->has_local_worker(); });
  EXPECT_TRUE(Read(*mount, "big") == ContentOf("big", "", 0, 6 * kMiB));
  EXPECT_EQ(FromStore(), 6 * kMiB);
  const store::Entry entry = StatOf("big");
  const tier::FileKey key = {store::OpenSource(Url())->source.identity, "big", entry.version,
                             entry.size};
  std::shared_ptr<const tier::OpenData> data;
  Await([&] {
    const auto opened = pools_.back()->OpenLocal(key);
    if (opened.ok()) data = *opened;
    return opened.ok();
  });
  std::string bytes(6 * kMiB, '\0');
  ASSERT_EQ(pread(data->fd(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  EXPECT_TRUE(bytes == ContentOf("big", "", 0, 6 * kMiB));
  EXPECT_EQ(FromStore(), 6 * kMiB);
}

TEST_F(WorkerTest, ANewWorkerTakesItsShareFromTheOldOnes) {
  for (int i = 0; i < 24; ++i) MakeFile(absl::StrCat("f", i), kMiB / 2);
  Plan(3);
  Start(0);
  Start(1);
  AwaitMembers(1);
  const auto before = Mount({members_}, 2);
  for (int i = 0; i < 24; ++i) Read(*before, absl::StrCat("f", i));
  EXPECT_EQ(FromStore(), 12 * kMiB);
  Start(2);
  AwaitMembers(2);
  const auto after = Mount({members_}, 3);
  for (int i = 0; i < 24; ++i) {
    const std::string name = absl::StrCat("f", i);
    EXPECT_TRUE(Read(*after, name) == ContentOf(name, "", 0, kMiB / 2)) << name;
  }
  EXPECT_GT(Used(2), 0u);
  EXPECT_EQ(FromStore(), 12 * kMiB);
}

TEST_F(WorkerTest, AWorkerThatLeavesHandsOverWhatItHas) {
  for (int i = 0; i < 24; ++i) MakeFile(absl::StrCat("f", i), kMiB / 2);
  MakeFile("big", 8 * kMiB);
  Plan(3);
  for (size_t i = 0; i < 3; ++i) Start(i);
  AwaitMembers(2);
  const auto mount = Mount({members_}, 3);
  for (int i = 0; i < 24; ++i) Read(*mount, absl::StrCat("f", i));
  Read(*mount, "big");
  const uint64_t had = Used(2);
  ASSERT_GT(had, 0u);
  EXPECT_TRUE(absl::IsFailedPrecondition(
      worker(2).WatchDrain([](const proto::DrainProgress&) { return true; })));
  worker(2).StartDrain();
  worker(2).StartDrain();
  proto::DrainProgress last;
  ASSERT_TRUE(worker(2)
                  .WatchDrain([&](const proto::DrainProgress& progress) {
                    last = progress;
                    return true;
                  })
                  .ok());
  EXPECT_TRUE(last.done);
  EXPECT_EQ(last.extents_failed, 0u) << last.last_error;
  EXPECT_EQ(last.extents_done, last.extents_total);
  EXPECT_EQ(last.bytes_done, had);
  EXPECT_TRUE(worker(2).Report().draining);
  const uint64_t from_store = FromStore();
  EXPECT_EQ(from_store, 20 * kMiB);
  Stop(2);
  const auto after = Mount(
      {absl::StrCat("127.0.0.1:", nodes_[0].port), absl::StrCat("127.0.0.1:", nodes_[1].port)});
  const uint64_t kept = FromStore();
  for (int i = 0; i < 24; ++i) {
    const std::string name = absl::StrCat("f", i);
    EXPECT_TRUE(Read(*after, name) == ContentOf(name, "", 0, kMiB / 2)) << name;
  }
  EXPECT_TRUE(Read(*after, "big") == ContentOf("big", "", 0, 8 * kMiB));
  EXPECT_EQ(FromStore(), kept);
}

TEST_F(WorkerTest, TheSecondReplicaComesFromTheFirst) {
  MakeFile("big", 8 * kMiB);
  Plan(2, /*replicas=*/2);
  Start(0);
  Start(1);
  AwaitMembers(1);
  const auto mount = Mount({members_}, 2);
  EXPECT_TRUE(Read(*mount, "big") == ContentOf("big", "", 0, 8 * kMiB));
  Await([&] { return Used(0) == 8 * kMiB && Used(1) == 8 * kMiB; });
  EXPECT_EQ(FromStore(), 8 * kMiB);
  // Either serves all of it.
  Stop(0);
  const uint64_t kept = FromStore();
  const auto other = Mount({absl::StrCat("127.0.0.1:", nodes_[1].port)});
  EXPECT_TRUE(Read(*other, "big") == ContentOf("big", "", 0, 8 * kMiB));
  EXPECT_EQ(FromStore(), kept);
}

TEST_F(WorkerTest, WithCertificatesOnlyThoseWhoHaveOneAreServed) {
  testing::TestAuthority authority(directory_.path(), "authority");
  testing::TestAuthority stranger(directory_.path(), "stranger");
  tls_ = authority.Issue("pool", {"127.0.0.1"});
  MakeFile("big", 4 * kMiB);
  Plan(2);
  Start(0);
  Start(1);
  AwaitMembers(1);
  const auto mount = Mount({members_}, 2);
  for (int reads = 0; reads < 2; ++reads) {
    EXPECT_TRUE(Read(*mount, "big") == ContentOf("big", "", 0, 4 * kMiB));
  }
  EXPECT_EQ(FromStore(), 4 * kMiB);
  // Without a certificate, and with one of another authority: the store is read instead.
  RawClient plain(worker(0).data_address());
  EXPECT_FALSE(plain.Greet().ok());
  const net::TlsFiles own = std::exchange(tls_, stranger.Issue("other", {"127.0.0.1"}));
  const auto other = Mount({members_});
  tls_ = own;
  EXPECT_TRUE(Read(*other, "big") == ContentOf("big", "", 0, 4 * kMiB));
  EXPECT_EQ(pools_.back()->Stats().bytes_remote, 0u);
  uint64_t refused = 0;
  for (const auto& [labels, count] : worker(0).metrics().Counters(metrics::kWorkerRefused)) {
    EXPECT_EQ(labels.front(), "certificate");
    refused += count;
  }
  EXPECT_GE(refused, 1u);
}

TEST_F(WorkerTest, ALoadBringsTheShareOfEach) {
  ASSERT_EQ(mkdir((Source() + "/dir").c_str(), 0755), 0);
  for (int i = 0; i < 20; ++i) MakeFile(absl::StrCat("dir/f", i), 100'000);
  MakeFile("big", 6 * kMiB);
  Plan(2);
  Start(0);
  Start(1);
  AwaitMembers(1);
  const std::string source = store::OpenSource(Url())->source.identity;
  uint64_t bytes = 0;
  uint64_t files = 0;
  for (size_t i = 0; i < 2; ++i) {
    proto::LoadProgress last;
    const absl::Status status =
        worker(i).Load({source, {}}, [&](const proto::LoadProgress& progress) {
          last = progress;
          return true;
        });
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(last.total_known);
    EXPECT_EQ(last.files_done, last.files_total);
    EXPECT_EQ(last.bytes_done, last.bytes_total);
    EXPECT_EQ(last.bytes_refused, 0u);
    bytes += last.bytes_done;
    files += last.files_done;
  }
  EXPECT_EQ(bytes, 2'000'000 + 6 * kMiB);
  EXPECT_GE(files, 21u);  // Both have a part of the large one.
  EXPECT_EQ(FromStore(), bytes);
  EXPECT_TRUE(absl::IsNotFound(
      worker(0).Load({"s3://no", {}}, [](const proto::LoadProgress&) { return true; })));
  EXPECT_TRUE(absl::IsCancelled(
      worker(0).Load({source, {}}, [](const proto::LoadProgress&) { return false; })));

  const auto located = worker(0).Locate({source, "big", 0, 0});
  ASSERT_TRUE(located.ok()) << located.status();
  EXPECT_EQ(located->extents.size(), 6u);
  uint64_t present = 0;
  for (const proto::LocatedExtent& extent : located->extents) {
    ASSERT_EQ(extent.workers.size(), 2u);
    EXPECT_EQ(extent.present_bytes, extent.workers[0] == "w0" ? kMiB : 0);
    present += extent.present_bytes;
  }
  const auto stat = worker(0).Stat({source, "big"});
  ASSERT_TRUE(stat.ok());
  EXPECT_EQ(stat->present_bytes, present);
  const auto list = worker(0).List({source, "dir", "", 7});
  ASSERT_TRUE(list.ok());
  EXPECT_FALSE(list->entries.empty());
  const uint64_t used = Used(0);
  const auto freed = worker(0).Evict({source, ""});
  ASSERT_TRUE(freed.ok());
  EXPECT_EQ(*freed, used);
  EXPECT_EQ(Used(0), 0u);
}

TEST_F(WorkerTest, SaysWhatItCannotStartWith) {
  WorkerOptions options;
  options.sources = {absl::StrCat("file://", Source(), "/missing")};
  options.tiers = {{tier::Medium::kSsd, directory_.path() + "/tier", 8 * kMiB}};
  options.id = "w";
  options.data_port = options.metrics_port = 0;
  options.listen_host = "127.0.0.1";
  EXPECT_FALSE(Worker::Start(options).ok());
  options.sources = {Url()};
  options.directory = "/dev/null/run";
  EXPECT_FALSE(Worker::Start(options).ok());
  options.directory = directory_.path() + "/open";
  ASSERT_EQ(mkdir(options.directory.c_str(), 0777), 0);
  ASSERT_EQ(chmod(options.directory.c_str(), 0777), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(Worker::Start(options).status()));
  options.directory.clear();
  options.socket_group = "no-such-group";
  auto worker = Worker::Start(options);
  ASSERT_TRUE(worker.ok()) << worker.status();
  EXPECT_TRUE((*worker)->Stop(absl::ZeroDuration()).ok());
}

}  // namespace
}  // namespace millrace::worker
