#include "cache/pool/leases.h"

#include <sys/stat.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace millrace::pool {
namespace {

// An open waits for the answer; a worker that takes longer is asked for bytes instead.
constexpr absl::Duration kOpenTimeout = absl::Seconds(1);

}  // namespace

class Leases::Leased final : public tier::OpenData {
 public:
  Leased(base::UniqueFd fd, std::shared_ptr<Leases> leases, uint64_t generation, uint64_t lease)
      : OpenData(std::move(fd)),
        leases_(std::move(leases)),
        generation_(generation),
        lease_(lease) {}
  ~Leased() override { leases_->Release(generation_, lease_); }
  bool leased() const override { return leases_->Holds(generation_); }

 private:
  const std::shared_ptr<Leases> leases_;
  const uint64_t generation_;
  const uint64_t lease_;
};

absl::StatusOr<std::shared_ptr<const tier::OpenData>> Leases::Open(
    const std::shared_ptr<Member>& local, const tier::FileKey& file) {
  base::UniqueFd descriptor;
  proto::Opened opened;
  uint64_t generation = 0;
  {
    base::MutexLock lock(&mutex_);
    if (closed_) return absl::UnavailableError("the pool ends");
    const absl::Duration now = context_->clock->Monotonic();
    const Patience patience = {.deadline = now + kOpenTimeout, .silence = kOpenTimeout};
    const proto::FileName name = {file.source, file.path, file.version, file.size};
    for (bool again = false;; again = true) {
      const bool kept = connection_ != nullptr;
      if (!kept) {
        ASSIGN_OR_RETURN(connection_, local->Detached());
        holds_.store(++generation_, std::memory_order_relaxed);
      }
      Outcome outcome = connection_->Open(name, patience, &opened, &descriptor);
      if (outcome.end == End::kDone) break;
      if (outcome.end == End::kAnswered && connection_->usable()) return outcome.status;
      Drop();
      // It may have been closed by a worker that was started again.
      if (kept && !again && outcome.end == End::kTransport && absl::IsUnavailable(outcome.status)) {
        continue;
      }
      local->Report(outcome);
      return absl::UnavailableError(outcome.status.message());
    }
    generation = generation_;
  }
  auto leased = std::make_shared<const Leased>(std::move(descriptor), shared_from_this(),
                                               generation, opened.lease);
  // What was handed over is not the file that was asked for: a reader would see zeros or SIGBUS.
  struct stat status = {};
  if (fstat(leased->fd(), &status) != 0 || !S_ISREG(status.st_mode) ||
      static_cast<uint64_t>(status.st_size) != file.size) {
    local->Report(
        {End::kDamaged, absl::DataLossError(absl::StrCat("a descriptor of ", status.st_size,
                                                         " bytes for a file of ", file.size))});
    return absl::NotFoundError("the worker handed over another file");
  }
  return leased;
}

void Leases::Release(uint64_t generation, uint64_t lease) {
  base::MutexLock lock(&mutex_);
  if (connection_ == nullptr || generation != generation_) return;
  if (!connection_->Release(lease).ok()) Drop();
}

void Leases::Drop() {
  holds_.store(0, std::memory_order_relaxed);
  connection_.reset();
}

void Leases::Close() {
  base::MutexLock lock(&mutex_);
  closed_ = true;
  Drop();
}

}  // namespace millrace::pool
