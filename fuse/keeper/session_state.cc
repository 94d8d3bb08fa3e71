#include "fuse/keeper/session_state.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace millrace::keeper {
namespace {

constexpr std::array<absl::string_view, kCauses> kCauseNames = {"signal", "exit", "oom", "hang",
                                                                "upgrade"};

absl::StatusOr<SessionState*> Map(int fd) {
  void* const memory =
      mmap(nullptr, sizeof(SessionState), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return base::ErrnoStatus(errno, "mmap of the session's state");
  return static_cast<SessionState*>(memory);
}

}  // namespace

absl::string_view CauseName(Cause cause) { return kCauseNames[static_cast<size_t>(cause)]; }

absl::StatusOr<SessionMemory> SessionMemory::Create() {
  base::UniqueFd memfd(memfd_create("millrace-session", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memfd.valid()) return base::ErrnoStatus(errno, "memfd_create");
  if (ftruncate(memfd.get(), sizeof(SessionState)) != 0 ||
      fcntl(memfd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return base::ErrnoStatus(errno, "the session's state");
  }
  // New memory files are all zero: so are the counters.
  ASSIGN_OR_RETURN(SessionState* const state, Map(memfd.get()));
  state->layout = SessionState::kLayout;
  state->bytes = sizeof(SessionState);
  state->magic = SessionState::kMagic;
  return SessionMemory(std::move(memfd), state);
}

absl::StatusOr<SessionMemory> SessionMemory::Open(base::UniqueFd memfd) {
  struct stat st;
  if (fstat(memfd.get(), &st) != 0) return base::ErrnoStatus(errno, "the session's state");
  // The header of any version is there before the whole of this one is asked for.
  uint64_t magic = 0;
  uint32_t layout = 0;
  if (pread(memfd.get(), &magic, sizeof(magic), offsetof(SessionState, magic)) != sizeof(magic) ||
      pread(memfd.get(), &layout, sizeof(layout), offsetof(SessionState, layout)) !=
          sizeof(layout) ||
      magic != SessionState::kMagic) {
    return absl::InvalidArgumentError("the session's state is none of millrace");
  }
  if (layout != SessionState::kLayout) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the session's state has layout ", layout, ", this version reads ", SessionState::kLayout));
  }
  // The other side might cut it short while it is mapped.
  const int seals = fcntl(memfd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return absl::InvalidArgumentError("the session's state is not sealed");
  }
  if (st.st_size != sizeof(SessionState)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the session's state has ", st.st_size, " bytes"));
  }
  ASSIGN_OR_RETURN(SessionState* const state, Map(memfd.get()));
  return SessionMemory(std::move(memfd), state);
}

SessionMemory::SessionMemory(SessionMemory&& other) noexcept
    : memfd_(std::move(other.memfd_)), state_(std::exchange(other.state_, nullptr)) {}

SessionMemory& SessionMemory::operator=(SessionMemory&& other) noexcept {
  std::swap(memfd_, other.memfd_);
  std::swap(state_, other.state_);
  return *this;
}

SessionMemory::~SessionMemory() {
  if (state_ != nullptr) munmap(state_, sizeof(SessionState));
}

std::string SessionMemory::SavedInit() const {
  const size_t bytes =
      std::min<size_t>(state_->init_bytes.load(std::memory_order_acquire), kInitMax);
  return std::string(state_->init.data(), bytes);
}

absl::Status SessionMemory::SaveInit(absl::string_view init) {
  if (init.empty() || init.size() > kInitMax) {
    return absl::InvalidArgumentError(absl::StrCat("an INIT request of ", init.size(), " bytes"));
  }
  std::memcpy(state_->init.data(), init.data(), init.size());
  state_->init_bytes.store(static_cast<uint32_t>(init.size()), std::memory_order_release);
  return absl::OkStatus();
}

void SessionMemory::CountTakeover(Cause cause, absl::Duration pause) {
  const int64_t ns = absl::ToInt64Nanoseconds(pause);
  const auto& bounds = metrics::Histogram::kBounds;
  const size_t bucket =
      static_cast<size_t>(std::lower_bound(bounds.begin(), bounds.end(), ns) - bounds.begin());
  state_->seconds_buckets[bucket].fetch_add(1, std::memory_order_relaxed);
  state_->seconds_sum_ns.fetch_add(ns, std::memory_order_relaxed);
  state_->last_ns.store(ns, std::memory_order_relaxed);
  state_->takeovers[static_cast<size_t>(cause)].fetch_add(1, std::memory_order_relaxed);
}

uint64_t SessionMemory::TakeoverCount() const {
  uint64_t sum = 0;
  for (const auto& count : state_->takeovers) sum += count.load(std::memory_order_relaxed);
  return sum;
}

metrics::Histogram::Snapshot SessionMemory::Pauses() const {
  metrics::Histogram::Snapshot snapshot;
  for (size_t i = 0; i < snapshot.buckets.size(); ++i) {
    snapshot.buckets[i] = state_->seconds_buckets[i].load(std::memory_order_relaxed);
    snapshot.count += snapshot.buckets[i];
  }
  snapshot.sum_seconds =
      static_cast<double>(state_->seconds_sum_ns.load(std::memory_order_relaxed)) / 1e9;
  return snapshot;
}

control::KeeperStatus StatusOfKeeper(const SessionMemory& memory, bool alive) {
  control::KeeperStatus status;
  status.pid = memory->keeper_pid.load(std::memory_order_relaxed);
  status.alive = alive;
  for (size_t i = 0; i < kCauses; ++i) {
    status.takeovers[std::string(kCauseNames[i])] =
        memory->takeovers[i].load(std::memory_order_relaxed);
  }
  status.last_pause_seconds =
      static_cast<double>(memory->last_ns.load(std::memory_order_relaxed)) / 1e9;
  status.sessions_lost = memory->sessions_lost.load(std::memory_order_relaxed);
  return status;
}

}  // namespace millrace::keeper
