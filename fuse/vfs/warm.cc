// Vfs::Warm: the bulk load behind `millrace warm`.
#include <algorithm>

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

// The steps of one file, guarded by the gate's mutex.
struct FileSteps {
  uint64_t left = 0;
  bool failed = false;
};

// Counts the steps on their way; outlives a Warm that was cancelled.
struct Gate {
  void StepDone(File& file, FileSteps& of_file, uint64_t offset, uint64_t size,
                const absl::Status& status) {
    const uint64_t kept = file.object().CachedBytes(offset, size);
    base::MutexLock lock(&mutex);
    if (status.ok()) {
      bytes_done += size;
      bytes_refused += size - kept;
    } else {
      of_file.failed = true;
      last_error = absl::StrCat(file.ref().path, ": ", status.message());
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
        file->object().Prefetch(offset, size, fetch::Priority::kBulk,
                                [gate, file, steps, offset, size](const absl::Status& status) {
                                  gate->StepDone(*file, *steps, offset, size, status);
                                });
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
