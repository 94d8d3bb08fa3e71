// A worker's doors over a real cache on a temporary directory and a store that can be held and
// broken: everything but the process.
#pragma once

#include <unistd.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cache/worker/data_server.h"
#include "cache/worker/files.h"
#include "common/base/units.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"
#include "test/support/pattern_store.h"
#include "test/support/raw_client.h"

namespace millrace::worker {

inline constexpr char kSource[] = "pattern://";

class CountingObserver final : public DoorObserver {
 public:
  void OnRefused(Refusal refusal) override { ++refused[static_cast<size_t>(refusal)]; }
  void OnSent(size_t, fetch::Origin origin, uint64_t bytes) override {
    sent[static_cast<size_t>(origin)] += bytes;
  }
  void OnAnswered(size_t, fetch::Origin, absl::Duration) override { ++answered; }
  void OnHandedOver(absl::string_view, uint64_t) override { ++handed_over; }

  uint64_t refusals(Refusal refusal) const { return refused[static_cast<size_t>(refusal)]; }

  std::array<std::atomic<uint64_t>, kRefusals> refused{};
  std::array<std::atomic<uint64_t>, fetch::kOrigins> sent{};
  std::atomic<uint64_t> answered{0};
  std::atomic<uint64_t> handed_over{0};
};

// Has a delta of 300,000 bytes for everybody who does not have version 99, and then nothing.
class FakeIndexKeeper final : public index::IndexKeeper {
 public:
  absl::StatusOr<index::IndexAnswer> Get(const std::string&, uint64_t have,
                                         absl::Duration max_age) override {
    if (have == 98) return absl::UnavailableError("no index yet");
    index::IndexAnswer answer;
    answer.head.version = 99;
    answer.head.age = max_age;
    if (have == 99) return answer;
    answer.head.kind = index::AnswerKind::kDelta;
    answer.head.bytes = 300'000;
    answer.delta = std::make_shared<const std::string>(300'000, 'i');
    return answer;
  }
  absl::Status Refresh(const std::string&) override { return absl::OkStatus(); }
  std::vector<index::IndexStatus> Status() const override { return {}; }
};

// One worker without its process.
class Door {
 public:
  struct Options {
    std::string id = "w";
    uint64_t quota = 64 * base::kMiB;
    uint64_t memory = 32 * base::kMiB;
    size_t connections = 4;
    uint64_t extent_size = 4 * base::kMiB;
    double guest_share = 0.5;
    DataServerOptions server;
    std::shared_ptr<store::Store> store;
    pool::Pool* pool = nullptr;
    std::vector<pool::MemberStatus> members;
  };

  explicit Door(const Options& options) : options_(options) { Start(); }
  ~Door() { Stop(); }

  void Stop() {
    if (files_ != nullptr) files_->Stop();
    if (server_ != nullptr) server_->Stop();
    server_.reset();
    files_.reset();
    if (cache_ != nullptr) {
      EXPECT_TRUE(cache_->Close().ok());
    }
    cache_.reset();
  }
  // With the same directory.
  void Start() {
    ranks_ = std::make_unique<Ranks>(Ranks::Options{
        .id = options_.id, .capacity_bytes = options_.quota, .extent_size = options_.extent_size});
    ranks_->Update(options_.members);
    tier::CacheOptions cache;
    cache.tiers = {{tier::Medium::kSsd, directory_.path() + "/tier", options_.quota}};
    cache.sources_in_use = {kSource};
    cache.idle_share = options_.guest_share;
    auto opened = tier::TieredCache::Open(cache, file_io_.get());
    ASSERT_TRUE(opened.ok()) << opened.status();
    cache_ = *std::move(opened);
    Files::Options files;
    files.buffer_bytes = options_.memory;
    files.connections = options_.connections;
    files.clock = base::RealClock();
    std::vector<store::OpenedSource> sources;
    sources.push_back({{"", kSource, kSource}, options_.store});
    files_ = std::make_unique<Files>(files, cache_.get(), ranks_.get(), options_.pool,
                                     std::move(sources));
    DataServerOptions server = options_.server;
    server.cluster = "millrace";
    server.welcome = [this] {
      proto::Welcome welcome;
      welcome.cluster = "millrace";
      welcome.worker = options_.id;
      welcome.capacity_bytes = options_.quota;
      welcome.extent_size = options_.extent_size;
      return welcome;
    };
    server.clock = base::RealClock();
    server.tick = absl::Milliseconds(10);
    std::vector<DataServer::Listener> listeners;
    auto tcp = net::Listen({.host = "127.0.0.1"}, net::ListenOptions());
    ASSERT_TRUE(tcp.ok()) << tcp.status();
    address_ = *net::LocalAddress(tcp->get());
    listeners.push_back({*std::move(tcp), false});
    socket_ = net::Address{.path = directory_.path() + "/worker.sock"};
    auto local = net::Listen(socket_, {.unix_mode = 0666});
    ASSERT_TRUE(local.ok()) << local.status();
    listeners.push_back({*std::move(local), true});
    auto started =
        DataServer::Start(server, std::move(listeners), files_.get(), &indexes_, &observer_);
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }

  const net::Address& address() const { return address_; }
  const net::Address& socket() const { return socket_; }
  CountingObserver& observer() { return observer_; }
  DataServer& server() { return *server_; }
  Files& files() { return *files_; }
  tier::TieredCache& cache() { return *cache_; }
  Ranks& ranks() { return *ranks_; }
  const std::string& directory() const { return directory_.path(); }

 private:
  const Options options_;
  testing::TemporaryDirectory directory_;
  const std::unique_ptr<io::FileIo> file_io_ = io::NewPosixFileIo(2);
  std::unique_ptr<Ranks> ranks_;
  std::unique_ptr<tier::TieredCache> cache_;
  FakeIndexKeeper indexes_;
  CountingObserver observer_;
  std::unique_ptr<Files> files_;
  std::unique_ptr<DataServer> server_;
  net::Address address_;
  net::Address socket_;
};

inline proto::Get GetOf(const std::string& path, uint64_t size, uint64_t offset, uint64_t length,
                        proto::Role role = proto::Role::kOwner) {
  proto::Get get;
  get.file = {kSource, path, "v1", size};
  get.offset = offset;
  get.length = length;
  get.role = role;
  return get;
}

}  // namespace millrace::worker
