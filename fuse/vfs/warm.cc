// Vfs::Warm: the bulk load behind `millrace warm`. What is kept here is fetched here; of the rest,
// the workers of a pool load what is placed on them, many parts of many files at once.
#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/status_macros.h"
#include "fuse/vfs/vfs.h"

namespace millrace::vfs {
namespace {

// One step of a large file; small files are one step each.
constexpr uint64_t kStep = 32 << 20;
constexpr size_t kStepsMax = 32;
constexpr absl::Duration kReportEvery = absl::Milliseconds(200);
// A worker may have to wait for a slow store, and says nothing until the step is there.
constexpr absl::Duration kStepTimeout = absl::Minutes(10);

// The steps of one file, guarded by the gate's mutex.
struct FileSteps {
  uint64_t left = 0;
  bool failed = false;
};

// Counts the steps on their way; outlives a Warm that was cancelled.
struct Gate {
  // `kept`: the bytes of the step that somebody has now.
  void StepDone(const File& file, FileSteps& of_file, uint64_t size,
                const absl::StatusOr<uint64_t>& kept) {
    base::MutexLock lock(&mutex);
    if (kept.ok()) {
      bytes_done += size;
      bytes_refused += size - std::min(size, *kept);
    } else {
      of_file.failed = true;
      last_error = absl::StrCat(file.ref().path, ": ", kept.status().message());
    }
    if (--of_file.left == 0) ++(of_file.failed ? files_failed : files_done);
    --steps;
    changed.NotifyAll();
  }

  base::Mutex mutex;
  base::CondVar changed;
  size_t steps ABSL_GUARDED_BY(mutex) = 0;
  uint64_t bytes_done ABSL_GUARDED_BY(mutex) = 0;
  uint64_t files_done ABSL_GUARDED_BY(mutex) = 0;
  uint64_t files_failed ABSL_GUARDED_BY(mutex) = 0;
  uint64_t bytes_refused ABSL_GUARDED_BY(mutex) = 0;
  std::string last_error ABSL_GUARDED_BY(mutex);
};

// Threads for calls that wait until somebody else has loaded something. As many as there are steps
// on their way at most, and none before the first call.
class Waiters {
 public:
  // `ending` becomes true when the calls are to end. It and what the calls use must outlive this.
  explicit Waiters(std::atomic<bool>* ending) : ending_(ending) {}
  // Ends the calls on their way; those that have not begun never do.
  ~Waiters() {
    {
      base::MutexLock lock(&mutex_);
      ending_->store(true, std::memory_order_relaxed);
      calls_.clear();
      changed_.NotifyAll();
    }
    for (std::thread& thread : threads_) thread.join();
  }

  void Run(std::function<void()> call) {
    base::MutexLock lock(&mutex_);
    calls_.push_back(std::move(call));
    if (idle_ < calls_.size() && threads_.size() < kStepsMax) {
      threads_.emplace_back([this] { Work(); });
    }
    changed_.NotifyOne();
  }

 private:
  void Work() {
    base::MutexLock lock(&mutex_);
    while (true) {
      while (calls_.empty() && !ending_->load(std::memory_order_relaxed)) {
        ++idle_;
        changed_.Wait(&mutex_);
        --idle_;
      }
      if (calls_.empty()) return;
      const std::function<void()> call = std::move(calls_.front());
      calls_.pop_front();
      mutex_.Unlock();
      call();
      mutex_.Lock();
    }
  }

  std::atomic<bool>* const ending_;
  base::Mutex mutex_;
  base::CondVar changed_;
  std::deque<std::function<void()>> calls_ ABSL_GUARDED_BY(mutex_);
  size_t idle_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::thread> threads_;  // Grown by Run, which one thread calls.
};

}  // namespace

absl::StatusOr<Vfs::WarmProgress> Vfs::Warm(const std::vector<std::string>& paths,
                                            absl::FunctionRef<bool(const WarmProgress&)> report) {
  base::Clock* const clock = base::RealClock();
  const auto gate = std::make_shared<Gate>();
  WarmProgress progress;
  absl::Duration last_report = clock->Monotonic();
  bool cancelled = false;
  const auto tell = [&](bool now) {
    if (!now && clock->Monotonic() - last_report < kReportEvery) return;
    last_report = clock->Monotonic();
    {
      base::MutexLock lock(&gate->mutex);
      progress.bytes_done = gate->bytes_done;
      progress.files_done = gate->files_done;
      progress.files_failed = gate->files_failed;
      progress.bytes_refused = gate->bytes_refused;
      progress.last_error = gate->last_error;
    }
    if (!report(progress)) cancelled = true;
  };

  tell(true);
  // First how much there is: the tree keeps the names, so the second walk costs little.
  for (const std::string& path : paths) {
    RETURN_IF_ERROR(tree_->Walk(path, [&](const FileRef& ref) {
      ++progress.files_total;
      progress.bytes_total += ref.size;
      tell(false);
      return !cancelled;
    }));
  }
  const auto wait_below = [&](size_t limit) {
    while (!cancelled) {
      tell(false);
      base::MutexLock lock(&gate->mutex);
      if (gate->steps < limit) return;
      gate->changed.WaitFor(&gate->mutex, kReportEvery);
    }
  };
  const auto fetch_here = [gate](const std::shared_ptr<File>& file,
                                 const std::shared_ptr<FileSteps>& steps, uint64_t offset,
                                 uint64_t size) {
    file->object().Prefetch(offset, size, fetch::Priority::kBulk,
                            [gate, file, steps, offset, size](const absl::Status& status) {
                              if (!status.ok()) return gate->StepDone(*file, *steps, size, status);
                              gate->StepDone(*file, *steps, size,
                                             file->object().CachedBytes(offset, size));
                            });
  };
  std::atomic<bool> ending{false};
  const auto load_elsewhere = [&, gate](const std::shared_ptr<File>& file,
                                        const std::shared_ptr<FileSteps>& steps, uint64_t offset,
                                        uint64_t size) {
    const FileRef& ref = file->ref();
    store::GetRequest request;
    request.path = ref.path;
    request.offset = offset;
    request.length = size;
    request.version = ref.version;
    request.file_size = ref.size;
    request.urgency = static_cast<uint8_t>(fetch::Priority::kBulk);
    store::CallOptions call;
    call.timeout = kStepTimeout;
    call.cancelled = &ending;
    const absl::StatusOr<uint64_t> kept = sources_[ref.source].store->Warm(request, call);
    if (absl::IsUnimplemented(kept.status())) return fetch_here(file, steps, offset, size);
    gate->StepDone(*file, *steps, size, kept);
  };
  Waiters waiters(&ending);
  for (const std::string& path : paths) {
    RETURN_IF_ERROR(tree_->Walk(path, [&](const FileRef& ref) {
      const std::shared_ptr<File> file = FileOf(ref);
      if (ref.size == 0) {
        base::MutexLock lock(&gate->mutex);
        ++gate->files_done;
      }
      const auto steps = std::make_shared<FileSteps>();
      steps->left = (ref.size + kStep - 1) / kStep;
      for (uint64_t offset = 0; offset < ref.size && !cancelled; offset += kStep) {
        wait_below(kStepsMax);
        const uint64_t size = std::min(kStep, ref.size - offset);
        {
          base::MutexLock lock(&gate->mutex);
          ++gate->steps;
        }
        if (file->object().Uncached()) {
          waiters.Run([=, &load_elsewhere] { load_elsewhere(file, steps, offset, size); });
        } else {
          fetch_here(file, steps, offset, size);
        }
      }
      return !cancelled;
    }));
  }
  wait_below(1);
  if (cancelled) return absl::CancelledError("the load was stopped");
  tell(true);
  return progress;
}

}  // namespace millrace::vfs
