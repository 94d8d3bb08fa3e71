// A seeded life of a pool: workers come, go, drain, die and come back while clients read, objects
// change. Everything is real but the processes and the store: placement, members, doors, single
// flight, tiers.
//
// Holds throughout:
//   - no wrong byte, and no read that fails or hangs while the store is well;
//   - what is in the cache of workers that live is never asked of the store again;
//   - a block that nobody has costs one GET of the store, however many clients ask at once, unless
//     they disagree about who is in the pool: then no more than there are opinions.
//
// The seed decides what happens, the machine how it interleaves. A failure prints its seed;
// MILLRACE_SIM_SEED runs that one alone.
#include <cstdlib>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cache/index/index_keeper.h"
#include "cache/pool/pool_parts.h"
#include "cache/store/store_decorator.h"
#include "cache/worker/data_server.h"
#include "cache/worker/files.h"
#include "cache/worker/ranks.h"
#include "common/base/units.h"
#include "common/net/socket.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"
#include "test/support/pattern_store.h"

namespace millrace {
namespace {

constexpr char kSource[] = "sim://";
// An object up to this is fetched whole: it must not lie in two extents.
constexpr uint64_t kExtent = fetch::Object::kWholeMax;
constexpr uint64_t kFiles = 6;
constexpr size_t kWorkersMax = 5;
constexpr size_t kClients = 2;
constexpr size_t kReaders = 4;  // Threads; every client has two.
constexpr int kSteps = 10;
constexpr int kReadsAtOnce = 12;
constexpr absl::Duration kReadTimeout = absl::Seconds(60);
// Members are asked again that often: opinions differ for as long.
constexpr absl::Duration kRefresh = absl::Milliseconds(50);

// A worker believes the store for a second about which version there is; who reads a still newer
// one by then asks the store himself.
constexpr absl::Duration kChangeEvery = absl::Milliseconds(1500);

struct FileInfo {
  std::string path;
  uint64_t size = 0;
  std::string version;
  absl::Duration changed = -absl::InfiniteDuration();
};

// A block of one version of a file.
using BlockName = std::pair<std::string, uint64_t>;
BlockName NameOf(const std::string& path, const std::string& version, uint64_t block) {
  return {absl::StrCat(path, "@", version), block};
}

// All bytes of a version, made once: a sanitizer takes long to compute them.
class Contents {
 public:
  std::shared_ptr<const std::string> Of(const std::string& path, const std::string& version,
                                        uint64_t size) {
    base::MutexLock lock(&mutex_);
    std::shared_ptr<const std::string>& bytes = all_[absl::StrCat(path, "@", version, " ", size)];
    if (bytes == nullptr) {
      bytes = std::make_shared<const std::string>(test::PatternBytes(path, version, 0, size));
    }
    return bytes;
  }

 private:
  base::Mutex mutex_;
  std::map<std::string, std::shared_ptr<const std::string>> all_ ABSL_GUARDED_BY(mutex_);
};

Contents& AllContents() {
  static Contents contents;
  return contents;
}

// The store behind all: counts what is asked of each block.
class SimStore final : public store::Store {
 public:
  absl::string_view kind() const override { return "sim"; }
  absl::StatusOr<store::ListPage> List(const std::string&, const std::string&, size_t,
                                       const store::CallOptions&) override {
    return absl::UnimplementedError("SimStore::List");
  }
  absl::StatusOr<std::vector<store::Entry>> Sample(size_t, const store::CallOptions&) override {
    return std::vector<store::Entry>();
  }
  absl::StatusOr<store::Entry> Stat(const std::string& path, const store::CallOptions&) override {
    base::MutexLock lock(&mutex_);
    const auto found = files_.find(path);
    if (found == files_.end()) return absl::NotFoundError(path);
    store::Entry entry;
    entry.name = path;
    entry.size = found->second.size;
    entry.version = found->second.version;
    return entry;
  }
  absl::Status Get(const store::GetRequest& request, store::BodySink sink,
                   const store::CallOptions&) override {
    return GetFor("", request, sink);
  }
  absl::Status GetFor(const std::string& who, const store::GetRequest& request,
                      store::BodySink sink) {
    {
      base::MutexLock lock(&mutex_);
      absl::StrAppend(&told_, who, " ", request.path, "@", request.version, " ",
                      request.offset / tier::kBlockSize, "+",
                      (request.length + tier::kBlockSize - 1) / tier::kBlockSize, "\n");
      if (files_[request.path].version != request.version) {
        return absl::FailedPreconditionError("the object changed");
      }
      const uint64_t last = (request.offset + request.length - 1) / tier::kBlockSize;
      for (uint64_t block = request.offset / tier::kBlockSize; block <= last; ++block) {
        ++fetched_[NameOf(request.path, request.version, block)];
      }
    }
    const std::shared_ptr<const std::string> bytes =
        AllContents().Of(request.path, request.version, request.file_size);
    for (uint64_t done = 0; done < request.length;) {
      const uint64_t size = std::min<uint64_t>(request.length - done, 60'000);
      if (!sink(absl::string_view(*bytes).substr(request.offset + done, size))) {
        base::MutexLock lock(&mutex_);
        absl::StrAppend(&told_, who, " ", request.path, " stopped at byte ", done, "\n");
        return absl::CancelledError("stopped");
      }
      done += size;
    }
    return absl::OkStatus();
  }

  void Put(const FileInfo& file) {
    base::MutexLock lock(&mutex_);
    files_[file.path] = file;
  }
  // Who got what, in order, since the last time.
  std::string TakeTold() {
    base::MutexLock lock(&mutex_);
    return std::exchange(told_, "");
  }
  std::map<BlockName, int> fetched() const {
    base::MutexLock lock(&mutex_);
    return fetched_;
  }

 private:
  mutable base::Mutex mutex_;
  std::map<std::string, FileInfo> files_ ABSL_GUARDED_BY(mutex_);
  std::map<BlockName, int> fetched_ ABSL_GUARDED_BY(mutex_);
  std::string told_ ABSL_GUARDED_BY(mutex_);
};

// The same store, as one worker asks it.
class StoreOfWorker final : public store::StoreDecorator {
 public:
  StoreOfWorker(std::string id, std::shared_ptr<SimStore> store)
      : StoreDecorator(store), id_(std::move(id)), sim_(std::move(store)) {}
  absl::Status Get(const store::GetRequest& request, store::BodySink sink,
                   const store::CallOptions&) override {
    return sim_->GetFor(id_, request, sink);
  }

 private:
  const std::string id_;
  const std::shared_ptr<SimStore> sim_;
};

// Who is in the pool, as a name server would tell. Outlives the pools: a look-up may be on its way.
struct Directory {
  base::Mutex mutex;
  std::vector<net::Address> addresses ABSL_GUARDED_BY(mutex);
};

std::unique_ptr<pool::Pool> NewPool(const std::shared_ptr<Directory>& directory,
                                    const std::string& self, uint64_t seed) {
  pool::PoolOptions options;
  options.workers = {"dns:workers:7451"};
  options.self = self;
  options.connect_timeout = absl::Seconds(2);
  options.answer_timeout = absl::Seconds(20);
  options.members_refresh = kRefresh;
  options.seed = seed;
  pool::PoolParts parts;
  parts.look_up =
      [directory](const pool::WorkerSource&) -> absl::StatusOr<std::vector<pool::Endpoint>> {
    base::MutexLock lock(&directory->mutex);
    std::vector<pool::Endpoint> endpoints;
    for (const net::Address& address : directory->addresses) {
      endpoints.push_back({address.ToString(), address, ""});
    }
    return endpoints;
  };
  parts.dial = [](const pool::Endpoint& endpoint,
                  absl::Duration timeout) -> absl::StatusOr<std::unique_ptr<net::Stream>> {
    absl::StatusOr<base::UniqueFd> socket = net::Connect(endpoint.address, timeout);
    if (!socket.ok()) return socket.status();
    return net::PlainStream(*std::move(socket));
  };
  return *pool::CreatePool(options, parts);
}

class NoIndexes final : public index::IndexKeeper {
 public:
  absl::StatusOr<index::IndexAnswer> Get(const std::string&, uint64_t, absl::Duration) override {
    return absl::NotFoundError("no index");
  }
  absl::Status Refresh(const std::string&) override { return absl::OkStatus(); }
  std::vector<index::IndexStatus> Status() const override { return {}; }
};

class NoObserver final : public worker::DoorObserver {
 public:
  void OnRefused(worker::Refusal) override {}
  void OnSent(size_t, fetch::Origin, uint64_t) override {}
  void OnAnswered(size_t, fetch::Origin, absl::Duration) override {}
  void OnHandedOver(absl::string_view, uint64_t) override {}
};

// A worker without its process.
class SimWorker {
 public:
  SimWorker(std::string id, std::shared_ptr<Directory> directory, std::shared_ptr<SimStore> store,
            uint64_t seed)
      : id_(std::move(id)),
        directory_(std::move(directory)),
        store_(std::move(store)),
        seed_(seed) {
    Start();
  }
  ~SimWorker() { Stop(); }

  const std::string& id() const { return id_; }
  bool running() const { return server_ != nullptr; }
  bool draining() const { return ranks_->draining(); }
  const net::Address& address() const { return address_; }
  pool::Pool& pool() { return *pool_; }

  void Start() {
    worker::Ranks::Options ranks;
    ranks.id = id_;
    ranks.capacity_bytes = kQuota;
    ranks.extent_size = kExtent;
    ranks_ = std::make_unique<worker::Ranks>(ranks);
    tier::CacheOptions cache;
    cache.tiers = {{tier::Medium::kSsd, disk_.path() + "/tier", kQuota}};
    cache.sources_in_use = {kSource};
    cache_ = *tier::TieredCache::Open(cache, file_io_.get());
    pool_ = NewPool(directory_, id_, seed_);
    worker::Files::Options files;
    files.buffer_bytes = 32 * base::kMiB;
    files.connections = 4;
    files.clock = base::RealClock();
    files_ = std::make_unique<worker::Files>(
        files, cache_.get(), ranks_.get(), pool_.get(),
        std::vector<store::OpenedSource>{
            {{"", kSource, kSource}, std::make_shared<StoreOfWorker>(id_, store_)}});
    worker::DataServerOptions doors;
    doors.cluster = "millrace";
    doors.welcome = [this] {
      proto::Welcome welcome;
      welcome.cluster = "millrace";
      welcome.worker = id_;
      welcome.capacity_bytes = kQuota;
      welcome.extent_size = kExtent;
      welcome.draining = ranks_->draining();
      return welcome;
    };
    doors.clock = base::RealClock();
    base::UniqueFd listener = *net::Listen(address_, {});
    address_ = *net::LocalAddress(listener.get());
    std::vector<worker::DataServer::Listener> listeners;
    listeners.push_back({std::move(listener), false});
    server_ = *worker::DataServer::Start(doors, std::move(listeners), files_.get(), &indexes_,
                                         &observer_);
  }

  // As a kill would: connections break, what is on its way is lost. Start finds the cache again.
  void Stop() {
    if (!running()) return;
    files_->Stop();
    server_->Stop();
    server_.reset();
    files_.reset();
    pool_.reset();
    EXPECT_TRUE(cache_->Close().ok());
    cache_.reset();
  }

  // What its cache says of itself.
  std::string Describe() const {
    const tier::TierStats stats = cache_->Stats().front();
    return absl::StrCat(id_, ": ", stats.files, " files, ", stats.used_bytes, " bytes, evicted ",
                        stats.evictions_quota, " for room and ", stats.evictions_version,
                        " for another version, refused ", stats.refused, ", faults ",
                        stats.faults_disk + stats.faults_damaged);
  }
  void Drain() { ranks_->SetDraining(); }
  void UpdateRanks() { ranks_->Update(pool_->Members()); }

 private:
  static constexpr uint64_t kQuota = 64 * base::kMiB;

  const std::string id_;
  const std::shared_ptr<Directory> directory_;
  const std::shared_ptr<SimStore> store_;
  const uint64_t seed_;
  testing::TemporaryDirectory disk_;
  const std::unique_ptr<io::FileIo> file_io_ = io::NewPosixFileIo(2);
  NoIndexes indexes_;
  NoObserver observer_;
  net::Address address_ = {"127.0.0.1", 0, ""};
  std::unique_ptr<worker::Ranks> ranks_;
  std::unique_ptr<tier::TieredCache> cache_;
  std::unique_ptr<pool::Pool> pool_;
  std::unique_ptr<worker::Files> files_;
  std::unique_ptr<worker::DataServer> server_;
};

class Simulation {
 public:
  explicit Simulation(uint64_t seed) : random_(seed), seed_(seed) {
    for (uint64_t i = 0; i < kFiles; ++i) {
      // From less than a block to several extents and a bit.
      const uint64_t size = 1 + random_() % (i % 2 == 0 ? kExtent : 4 * kExtent);
      files_.push_back({absl::StrCat("dir/file-", i), size, "v1"});
      store_->Put(files_.back());
      own_->Put(files_.back());
    }
    for (int i = 0; i < 3; ++i) AddWorker();
    for (size_t i = 0; i < kClients; ++i) {
      clients_.push_back(NewPool(directory_, "", seed + i + 1));
      sources_.push_back(clients_.back()->Wrap(kSource, own_));
    }
    AwaitAgreement();
  }

  void Run() {
    ReadAll("at first");
    for (step_ = 1; step_ <= kSteps && !::testing::Test::HasFailure(); ++step_) {
      const std::string what = ChangeUnderReaders();
      AwaitAgreement();
      ReadAll(what);
    }
  }

 private:
  std::string Where(const std::string& what) const {
    return absl::StrCat("seed ", seed_, ", step ", step_, ", ", what, ": ");
  }

  // --- What happens ---

  void AddWorker() {
    workers_.push_back(std::make_unique<SimWorker>(absl::StrCat("worker-", made_), directory_,
                                                   store_, seed_ * 100 + made_));
    ++made_;
    PublishAddresses();
  }

  void PublishAddresses() {
    base::MutexLock lock(&directory_->mutex);
    directory_->addresses.clear();
    for (const auto& worker : workers_) directory_->addresses.push_back(worker->address());
  }

  std::vector<SimWorker*> Running(bool with_draining) {
    std::vector<SimWorker*> running;
    for (const auto& worker : workers_) {
      if (worker->running() && (with_draining || !worker->draining())) {
        running.push_back(worker.get());
      }
    }
    return running;
  }

  SimWorker* Pick(const std::vector<SimWorker*>& from) {
    return from.empty() ? nullptr : from[random_() % from.size()];
  }

  // One thing, chosen by chance. What is lost with it is forgotten.
  std::string Change() {
    switch (random_() % 6) {
      case 0: {
        if (workers_.size() >= kWorkersMax) break;
        AddWorker();
        return "a worker more";
      }
      case 1: {
        const std::vector<SimWorker*> running = Running(false);
        if (running.size() < 2) break;
        SimWorker* const worker = Pick(running);
        worker->Stop();
        cached_.clear();  // Which of it was there alone is known to placement only.
        return worker->id() + " died";
      }
      case 2: {
        std::vector<SimWorker*> stopped;
        for (const auto& worker : workers_) {
          if (!worker->running()) stopped.push_back(worker.get());
        }
        SimWorker* const worker = Pick(stopped);
        if (worker == nullptr) break;
        worker->Start();
        PublishAddresses();
        return worker->id() + " came back";
      }
      case 3: {
        const std::vector<SimWorker*> running = Running(false);
        if (running.size() < 2) break;
        SimWorker* const worker = Pick(running);
        worker->Drain();
        return worker->id() + " drains";
      }
      case 4: {
        FileInfo& file = files_[random_() % files_.size()];
        const absl::Duration now = base::RealClock()->Monotonic();
        if (now - file.changed < kChangeEvery) break;
        base::MutexLock lock(&files_mutex_);
        file.changed = now;
        file.version = absl::StrCat("v", step_ + 1);
        store_->Put(file);
        own_->Put(file);
        return file.path + " changed";
      }
      default: {
        // One that drained leaves.
        for (size_t i = 0; i < workers_.size(); ++i) {
          if (!workers_[i]->running() || !workers_[i]->draining()) continue;
          const std::string id = workers_[i]->id();
          workers_.erase(workers_.begin() + static_cast<ptrdiff_t>(i));
          PublishAddresses();
          cached_.clear();  // What nobody read since is gone with it.
          return id + " left";
        }
        break;
      }
    }
    return "nothing";
  }

  std::string ChangeUnderReaders() {
    std::vector<std::thread> readers;
    for (size_t i = 0; i < kReaders; ++i) {
      readers.emplace_back([this, i, seed = random_()] {
        std::minstd_rand random(static_cast<std::minstd_rand::result_type>(seed));
        for (int n = 0; n < kReadsAtOnce; ++n) {
          ReadSome(i % kClients, random);
        }
      });
    }
    const std::map<BlockName, int> before = store_->fetched();
    const std::string what = Change();
    for (std::thread& reader : readers) reader.join();
    CheckGets(before, what, /*agreed=*/false);
    return what;
  }

  // --- What must hold ---

  // Every block once by all clients at the same time.
  void ReadAll(const std::string& what) {
    const std::map<BlockName, int> before = store_->fetched();
    const std::map<BlockName, int> own_before = own_->fetched();
    std::vector<std::thread> readers;
    for (size_t i = 0; i < kReaders; ++i) {
      readers.emplace_back([this, i] {
        for (size_t f = 0; f < files_.size(); ++f) {
          // Some begin elsewhere.
          const FileInfo file = files_[(f + i * 2) % files_.size()];
          for (uint64_t at = 0; at < file.size; at += kExtent) {
            Read(i % kClients, file, at, std::min(kExtent, file.size - at));
          }
        }
      });
    }
    for (std::thread& reader : readers) reader.join();
    CheckGets(before, what, /*agreed=*/true);
    EXPECT_EQ(own_->fetched(), own_before) << Where(what) << "a client went to the store itself";
    for (const FileInfo& file : files_) {
      for (uint64_t at = 0; at < file.size; at += tier::kBlockSize) {
        cached_.insert(NameOf(file.path, file.version, at / tier::kBlockSize));
      }
    }
  }

  std::string Caches() {
    std::string text;
    for (const auto& worker : workers_) {
      if (worker->running()) absl::StrAppend(&text, worker->Describe(), "\n");
    }
    return text;
  }

  void CheckGets(const std::map<BlockName, int>& before, const std::string& what, bool agreed) {
    const std::string told = store_->TakeTold();
    for (const auto& [name, count] : store_->fetched()) {
      const auto was = before.find(name);
      const int gets = count - (was == before.end() ? 0 : was->second);
      if (gets == 0) continue;
      // While a worker dies, a fetch of its dies with it.
      const int allowed = cached_.contains(name) ? 0 : agreed ? 1 : static_cast<int>(kWorkersMax);
      EXPECT_LE(gets, allowed) << Where(what) << "block " << name.second << " of " << name.first;
      if (gets > allowed) return static_cast<void>(ADD_FAILURE() << told << Caches());
    }
  }

  void ReadSome(size_t client, std::minstd_rand& random) {
    FileInfo file;
    {
      base::MutexLock lock(&files_mutex_);
      file = files_[random() % files_.size()];
    }
    const uint64_t offset = random() % file.size;
    const uint64_t length = 1 + random() % std::min<uint64_t>(file.size - offset, 2 * kExtent);
    Read(client, file, offset, length);
  }

  void Read(size_t client, const FileInfo& file, uint64_t offset, uint64_t length) {
    store::GetRequest request;
    request.path = file.path;
    request.offset = offset;
    request.length = length;
    request.version = file.version;
    request.file_size = file.size;
    store::CallOptions call;
    call.timeout = kReadTimeout;
    std::string got;
    const absl::Status status = sources_[client]->Get(
        request,
        [&](absl::string_view piece) {
          got.append(piece.data(), piece.size());
          return true;
        },
        call);
    const std::shared_ptr<const std::string> bytes =
        AllContents().Of(file.path, file.version, file.size);
    EXPECT_TRUE(got == absl::string_view(*bytes).substr(offset, got.size()))
        << Where("read") << "wrong bytes of " << file.path;
    if (absl::IsFailedPrecondition(status)) {
      base::MutexLock lock(&files_mutex_);
      const auto now = std::find_if(files_.begin(), files_.end(),
                                    [&](const FileInfo& each) { return each.path == file.path; });
      EXPECT_NE(now->version, file.version) << Where("read") << status;
      return;
    }
    EXPECT_TRUE(status.ok()) << Where("read") << file.path << ": " << status;
    EXPECT_TRUE(!status.ok() || got.size() == length) << Where("read") << file.path;
  }

  // Until everybody sees the same pool.
  void AwaitAgreement() {
    std::map<std::string, bool> wanted;  // Id to draining.
    for (const auto& worker : workers_) {
      if (worker->running()) wanted[worker->id()] = worker->draining();
    }
    const auto agrees = [&](pool::Pool& pool) {
      std::map<std::string, bool> seen;
      for (const pool::MemberStatus& member : pool.Members()) {
        if (member.reachable) seen[member.id] = member.draining;
      }
      return seen == wanted;
    };
    for (int i = 0; i < 3000; ++i) {
      bool all = true;
      for (const auto& client : clients_) all = all && agrees(*client);
      for (const auto& worker : workers_) {
        if (!worker->running()) continue;
        all = all && agrees(worker->pool());
        worker->UpdateRanks();
      }
      if (all) return;
      // tidy: allow-sleep polls until the pools agree, up to 30 s
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ADD_FAILURE() << Where("members") << "the pools do not agree about their members";
  }

  std::mt19937_64 random_;
  const uint64_t seed_;
  int step_ = 0;
  size_t made_ = 0;
  const std::shared_ptr<Directory> directory_ = std::make_shared<Directory>();
  const std::shared_ptr<SimStore> store_ = std::make_shared<SimStore>();  // The workers'.
  const std::shared_ptr<SimStore> own_ = std::make_shared<SimStore>();    // The clients'.
  base::Mutex files_mutex_;
  std::vector<FileInfo> files_;  // Changed under the mutex, by the simulation's thread alone.
  std::set<BlockName> cached_;   // What workers that live have for sure.
  std::vector<std::unique_ptr<SimWorker>> workers_;
  std::vector<std::unique_ptr<pool::Pool>> clients_;
  std::vector<std::shared_ptr<store::Store>> sources_;
};

class PoolSimTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(PoolSimTest, EverythingHolds) {
  uint64_t seed = GetParam();
  if (const char* const only = std::getenv("MILLRACE_SIM_SEED"); only != nullptr) {
    ASSERT_TRUE(absl::SimpleAtoi(only, &seed)) << only;
  }
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  Simulation(seed).Run();
}

INSTANTIATE_TEST_SUITE_P(Seeds, PoolSimTest, ::testing::Values(1, 2, 3, 4, 5, 6, 7, 8));

}  // namespace
}  // namespace millrace
