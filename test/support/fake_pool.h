// A pool whose only member is a worker on this node that has what a test gives it: complete files,
// handed over by descriptor, evicted only when nobody borrows them. Thread-safe.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache/pool/pool.h"
#include "common/base/mutex.h"

namespace millrace::test {

class FakePool final : public pool::Pool {
 public:
  ~FakePool() override {
    base::MutexLock lock(&mutex_);
    while (!files_.empty()) Drop(Name(files_.begin()->first));
  }

  // The worker has all of the file; one it had is replaced.
  void Put(const tier::FileKey& key, absl::string_view bytes) {
    static std::atomic<int> made{0};
    const std::string path = absl::StrCat("/tmp/fake_pool.", getpid(), ".", made.fetch_add(1));
    base::UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    for (size_t at = 0; at < bytes.size();) {
      const ssize_t written = write(fd.get(), bytes.data() + at, bytes.size() - at);
      if (written <= 0) return;
      at += static_cast<size_t>(written);
    }
    base::MutexLock lock(&mutex_);
    Drop(NameOf(key));
    files_[NameOf(key)] = path;
  }
  // What the worker would do with a file it wants to be rid of; false: it is borrowed.
  bool Evict(const tier::FileKey& key) {
    base::MutexLock lock(&mutex_);
    base::MutexLock leases_lock(&leases_->mutex);
    const auto lease = leases_->by_file.find(NameOf(key));
    if (lease != leases_->by_file.end() && lease->second > 0) return false;
    return Drop(NameOf(key));
  }
  // Whoever has it: another version came, a person asked.
  void Unlink(const tier::FileKey& key) {
    base::MutexLock lock(&mutex_);
    Drop(NameOf(key));
  }
  // The connection ends, and all leases with it. The worker itself may live on.
  void Disconnect() {
    base::MutexLock lock(&mutex_);
    base::MutexLock leases_lock(&leases_->mutex);
    leases_->by_file.clear();
    ++leases_->connection;
  }
  // Answers nothing until it is set back.
  void SetAway(bool away) {
    base::MutexLock lock(&mutex_);
    away_ = away;
  }

  size_t asked() const {
    base::MutexLock lock(&mutex_);
    return asked_;
  }
  size_t leases() const {
    base::MutexLock lock(&leases_->mutex);
    size_t sum = 0;
    for (const auto& [name, count] : leases_->by_file) sum += count;
    return sum;
  }

  std::shared_ptr<store::Store> Wrap(std::string, std::shared_ptr<store::Store> store) override {
    return store;
  }
  std::shared_ptr<store::Store> WrapForOwner(std::string,
                                             std::shared_ptr<store::Store> store) override {
    return store;
  }
  absl::StatusOr<std::shared_ptr<const tier::OpenData>> OpenLocal(
      const tier::FileKey& key) override {
    base::MutexLock lock(&mutex_);
    ++asked_;
    const auto found = files_.find(NameOf(key));
    if (away_ || found == files_.end()) return absl::NotFoundError("not complete here");
    base::UniqueFd fd(open(found->second.c_str(), O_RDONLY | O_CLOEXEC));
    return std::make_shared<Borrowed>(std::move(fd), NameOf(key), leases_);
  }
  absl::Status Index(const proto::IndexGet&, store::BodySink, const store::CallOptions&) override {
    return absl::UnimplementedError("FakePool::Index");
  }
  absl::StatusOr<proto::Done> Load(const tier::FileKey&, uint64_t, uint64_t,
                                   const store::CallOptions&) override {
    return absl::UnimplementedError("FakePool::Load");
  }
  std::vector<pool::MemberStatus> Members() const override { return {}; }
  pool::PoolStats Stats() const override { return {}; }
  bool has_local_worker() const override { return true; }

 private:
  using Name = std::tuple<std::string, std::string, std::string>;
  static Name NameOf(const tier::FileKey& key) { return {key.source, key.path, key.version}; }

  bool Drop(const Name& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto found = files_.find(name);
    if (found == files_.end()) return false;
    unlink(found->second.c_str());
    files_.erase(found);
    return true;
  }

  // Shared with what is borrowed, which may outlive the pool.
  struct Leases {
    base::Mutex mutex;
    uint64_t connection = 0;
    std::map<Name, size_t> by_file;
  };
  class Borrowed final : public tier::OpenData {
   public:
    Borrowed(base::UniqueFd fd, Name name, std::shared_ptr<Leases> leases)
        : OpenData(std::move(fd)), name_(std::move(name)), leases_(std::move(leases)) {
      base::MutexLock lock(&leases_->mutex);
      connection_ = leases_->connection;
      ++leases_->by_file[name_];
    }
    ~Borrowed() override {
      base::MutexLock lock(&leases_->mutex);
      if (leases_->connection == connection_) --leases_->by_file[name_];
    }
    bool leased() const override {
      base::MutexLock lock(&leases_->mutex);
      return leases_->connection == connection_;
    }

   private:
    const Name name_;
    const std::shared_ptr<Leases> leases_;
    uint64_t connection_ = 0;
  };

  mutable base::Mutex mutex_;
  std::map<Name, std::string> files_ ABSL_GUARDED_BY(mutex_);
  bool away_ ABSL_GUARDED_BY(mutex_) = false;
  size_t asked_ ABSL_GUARDED_BY(mutex_) = 0;
  const std::shared_ptr<Leases> leases_ = std::make_shared<Leases>();
};

}  // namespace millrace::test
