#include "fuse/keeper/hang_prober.h"

#include <sys/statfs.h>

#include <algorithm>
#include <thread>

#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "fuse/keeper/mounting.h"

namespace millrace::keeper {
namespace {

// Of the deadline: the question that meets the hang is asked up to an interval after its beginning,
// and the successor needs a moment to start.
constexpr absl::Duration kReserve = absl::Milliseconds(1700);

}  // namespace

struct HangProber::Shared {
  explicit Shared(const std::string& path) : mountpoint(path) {}

  const std::string mountpoint;
  base::Mutex mutex;
  base::CondVar changed;
  bool stopping ABSL_GUARDED_BY(mutex) = false;
  std::optional<absl::Duration> asked ABSL_GUARDED_BY(mutex);
};

HangProber::HangProber(const std::string& mountpoint)
    : shared_(std::make_shared<Shared>(mountpoint)) {
  std::thread([shared = shared_] { Run(shared); }).detach();
}

HangProber::~HangProber() {
  base::MutexLock lock(&shared_->mutex);
  shared_->stopping = true;
  shared_->changed.NotifyAll();
}

std::optional<absl::Duration> HangProber::UnansweredSince() const {
  base::MutexLock lock(&shared_->mutex);
  return shared_->asked;
}

void HangProber::Run(const std::shared_ptr<Shared>& shared) {
  while (true) {
    {
      base::MutexLock lock(&shared->mutex);
      const absl::Duration next = base::RealClock()->Monotonic() + kInterval;
      while (!shared->stopping) {
        const absl::Duration left = next - base::RealClock()->Monotonic();
        if (left <= absl::ZeroDuration()) break;
        shared->changed.WaitFor(&shared->mutex, left);
      }
      if (shared->stopping) return;
    }
    // What is mounted there by now may be something else, which is none of ours to ask.
    if (!FindMillraceMount(shared->mountpoint).has_value()) continue;
    {
      base::MutexLock lock(&shared->mutex);
      shared->asked = base::RealClock()->Monotonic();
    }
    struct statfs ignored;
    // An error is an answer.
    [[maybe_unused]] const int result = statfs(shared->mountpoint.c_str(), &ignored);
    base::MutexLock lock(&shared->mutex);
    shared->asked.reset();
  }
}

bool IsHung(absl::Duration now, std::optional<absl::Duration> unanswered_since,
            absl::Duration serving_since, absl::Duration awake_since, absl::Duration deadline) {
  if (!unanswered_since.has_value()) return false;
  const absl::Duration since = std::max({*unanswered_since, serving_since, awake_since});
  return now - since > std::max(deadline - kReserve, deadline / 2);
}

}  // namespace millrace::keeper
