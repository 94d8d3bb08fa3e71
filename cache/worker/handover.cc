#include "cache/worker/handover.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/log.h"

namespace millrace::worker {
namespace {

constexpr size_t kReplicaThreads = 2;
constexpr size_t kDrainThreads = 4;
// Extents that wait to be copied; more are not: their replicas are fetched when they are needed.
constexpr size_t kTasksMax = 1 << 16;
// The cache has a range a moment after its fetch says that it came.
constexpr absl::Duration kSettle = absl::Milliseconds(50);
constexpr int kSettleTries = 10;
constexpr absl::Duration kLoadTimeout = absl::Minutes(10);
// New owners may be out of reach for a moment.
constexpr int kDrainTries = 3;
constexpr absl::Duration kDrainRetry = absl::Seconds(1);

std::string TaskName(const tier::FileKey& file) {
  return absl::StrCat(file.source, "\n", file.path, "\n", file.version);
}

}  // namespace

// --- Replicas -----------------------------------------------------------------------------------

Replicator::Replicator(Files* files, pool::Pool* pool, base::Clock* clock)
    : files_(files), pool_(pool), clock_(clock) {
  if (pool_ == nullptr || files_->ranks().options().replicas < 2) return;
  for (size_t i = 0; i < kReplicaThreads; ++i) threads_.emplace_back([this] { Work(); });
}

void Replicator::Stop() {
  {
    base::MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void Replicator::OnFetched(const tier::FileKey& file, uint64_t offset, uint64_t length) {
  if (threads_.empty()) return;
  const uint64_t extent_size = files_->ranks().options().extent_size;
  for (uint64_t extent = offset / extent_size; extent * extent_size < offset + length; ++extent) {
    base::MutexLock lock(&mutex_);
    if (tasks_.size() >= kTasksMax || !known_.emplace(TaskName(file), extent).second) continue;
    tasks_.push_back({file, extent});
    changed_.NotifyOne();
  }
}

bool Replicator::Complete(const Task& task) const {
  const std::shared_ptr<tier::CachedFile> cached = files_->cache().Find(task.file);
  const uint64_t extent_size = files_->ranks().options().extent_size;
  return cached != nullptr && cached->Has(task.extent * extent_size,
                                          files_->ranks().ExtentBytes(task.file.size, task.extent));
}

void Replicator::Work() {
  while (true) {
    Task task;
    {
      base::MutexLock lock(&mutex_);
      while (!stopping_ && tasks_.empty()) changed_.Wait(&mutex_);
      if (stopping_) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
      // From now on a new fetch is a new task.
      known_.erase({TaskName(task.file), task.extent});
    }
    const Ranks& ranks = files_->ranks();
    if (!ranks.Leads(task.file.source, task.file.path, task.extent)) continue;
    bool complete = Complete(task);
    for (int tries = 0; !complete && tries < kSettleTries && !stopping_; ++tries) {
      {
        base::MutexLock lock(&mutex_);
        // Another range of it has come meanwhile, and has a task.
        if (known_.contains({TaskName(task.file), task.extent})) break;
        changed_.WaitFor(&mutex_, kSettle);
      }
      complete = Complete(task);
    }
    if (!complete || stopping_) continue;
    store::CallOptions call;
    call.timeout = kLoadTimeout;
    call.cancelled = &stopping_;
    const absl::StatusOr<proto::Done> done =
        pool_->Load(task.file, task.extent * ranks.options().extent_size,
                    ranks.ExtentBytes(task.file.size, task.extent), call);
    if (!done.ok()) {
      base::Log(base::Severity::kDebug, "no replica made",
                {{"path", task.file.path}, {"cause", done.status().ToString()}});
    }
  }
}

// --- Leaving ------------------------------------------------------------------------------------

Drain::Drain(Files* files, pool::Pool* pool, base::Clock* clock)
    : files_(files), pool_(pool), clock_(clock), began_(clock->Monotonic()) {
  thread_ = std::thread([this] { Run(); });
}

Drain::~Drain() {
  stopping_ = true;
  thread_.join();
}

proto::DrainProgress Drain::Progress() const {
  base::MutexLock lock(&mutex_);
  proto::DrainProgress progress = progress_;
  const absl::Duration end = progress.done ? ended_ : clock_->Monotonic();
  const double seconds = absl::ToDoubleSeconds(end - began_);
  if (seconds > 0) progress.bytes_per_second = static_cast<double>(progress.bytes_done) / seconds;
  return progress;
}

void Drain::Run() {
  List();
  {
    base::MutexLock lock(&mutex_);
    progress_.total_known = true;
  }
  std::vector<std::thread> threads;
  for (size_t i = 0; i < std::min(kDrainThreads, tasks_.size()); ++i) {
    threads.emplace_back([this] { Work(); });
  }
  for (std::thread& thread : threads) thread.join();
  base::MutexLock lock(&mutex_);
  progress_.done = true;
  ended_ = clock_->Monotonic();
  base::Log(base::Severity::kInfo, "drained",
            {{"extents", progress_.extents_done},
             {"failed", progress_.extents_failed},
             {"bytes", progress_.bytes_done}});
}

// Only what is present: the new owners fetch nothing from the store for it.
void Drain::List() {
  const Ranks& ranks = files_->ranks();
  const uint64_t extent_size = ranks.options().extent_size;
  files_->cache().ForEach([&](tier::CachedFile& file) {
    const tier::FileKey& key = file.key();
    if (stopping_ || files_->FindSource(key.source) == nullptr) return;
    for (uint64_t extent = 0; extent < ranks.ExtentCount(key.size); ++extent) {
      const uint64_t end = extent * extent_size + ranks.ExtentBytes(key.size, extent);
      const size_t before = tasks_.size();
      for (uint64_t at = extent * extent_size; at < end;) {
        const uint64_t block_end = std::min(end, (at / tier::kBlockSize + 1) * tier::kBlockSize);
        if (file.HasBlock(at / tier::kBlockSize)) {
          const bool goes_on =
              tasks_.size() > before && tasks_.back().offset + tasks_.back().length == at;
          if (!goes_on) tasks_.push_back({key, at, 0});
          tasks_.back().length += block_end - at;
        }
        at = block_end;
      }
      if (tasks_.size() == before) continue;
      tasks_.back().ends_extent = true;
      base::MutexLock lock(&mutex_);
      ++progress_.extents_total;
      for (size_t i = before; i < tasks_.size(); ++i) progress_.bytes_total += tasks_[i].length;
    }
  });
}

void Drain::Work() {
  while (!stopping_) {
    const size_t index = next_.fetch_add(1);
    if (index >= tasks_.size()) return;
    const Task& task = tasks_[index];
    absl::StatusOr<proto::Done> done = absl::UnavailableError("this worker is alone");
    for (int tries = 0; pool_ != nullptr && tries < kDrainTries && !stopping_; ++tries) {
      if (tries > 0) clock_->Sleep(kDrainRetry);
      store::CallOptions call;
      call.timeout = kLoadTimeout;
      call.cancelled = &stopping_;
      done = pool_->Load(task.file, task.offset, task.length, call);
      if (!absl::IsUnavailable(done.status())) break;
    }
    absl::Status status = done.status();
    if (status.ok() && done->bytes < task.length) {
      status = absl::ResourceExhaustedError("the new owner has no room");
    }
    Count(task, status, done.ok() ? done->bytes : 0);
  }
}

void Drain::Count(const Task& task, const absl::Status& status, uint64_t bytes) {
  base::MutexLock lock(&mutex_);
  progress_.bytes_done += bytes;
  if (!status.ok()) progress_.last_error = absl::StrCat(task.file.path, ": ", status.message());
  // An extent with holes counts by its last part.
  if (!task.ends_extent) return;
  ++(status.ok() ? progress_.extents_done : progress_.extents_failed);
}

}  // namespace millrace::worker
