// What keeper and daemon of a mount both see: a small piece of shared memory, made by the keeper
// and mapped by every daemon of the mount.
//
// It outlives each of them: INIT as the kernel sent it once, which no successor can ask for again,
// and the take-overs so far, which the daemon of the moment shows. Each field has one writer.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/unique_fd.h"
#include "common/control/protocol.h"
#include "common/metrics/metrics.h"

namespace millrace::keeper {

// Why a daemon was replaced. The numbers are part of the layout.
enum class Cause : uint32_t { kSignal = 0, kExit = 1, kOom = 2, kHang = 3, kUpgrade = 4 };
inline constexpr size_t kCauses = 5;
absl::string_view CauseName(Cause cause);  // "signal", "exit", "oom", "hang", "upgrade".

// INIT has 104 bytes in protocol 7.45 and may grow.
inline constexpr size_t kInitMax = 1024;

struct SessionState {
  static constexpr uint64_t kMagic = 0x6e6f697373656d31;  // "1mession"
  // Grows with every change of this struct; a process refuses a layout it does not know.
  static constexpr uint32_t kLayout = 1;

  uint64_t magic;
  uint32_t layout;
  uint32_t bytes;  // sizeof(SessionState).

  // Written by the first daemon: the bytes, then their number.
  std::atomic<uint32_t> init_bytes;
  std::array<char, kInitMax> init;

  // Written by the keeper.
  std::atomic<uint32_t> keeper_pid;
  std::atomic<uint32_t> read_ahead_raised;
  std::array<std::atomic<uint64_t>, kCauses> takeovers;
  // From the moment an end was noticed to the successor's first answers.
  std::array<std::atomic<uint64_t>, metrics::Histogram::kBounds.size() + 1> seconds_buckets;
  std::atomic<int64_t> seconds_sum_ns;
  std::atomic<int64_t> last_ns;
  // Mounts at this mountpoint that were given up: both processes had been killed, or with the
  // io_uring transport the daemon.
  std::atomic<uint64_t> sessions_lost;
};
static_assert(std::is_standard_layout_v<SessionState>);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

// The state in a memory file, mapped. Thread-safe where the fields are.
class SessionMemory {
 public:
  // Makes one. Its size is sealed, so that no process that has it can make the others trap.
  static absl::StatusOr<SessionMemory> Create();
  // Maps that of another process. FailedPrecondition for a layout of another version,
  // InvalidArgument for anything that is no such file.
  static absl::StatusOr<SessionMemory> Open(base::UniqueFd memfd);

  SessionMemory() = default;
  SessionMemory(SessionMemory&& other) noexcept;
  SessionMemory& operator=(SessionMemory&& other) noexcept;
  ~SessionMemory();

  int fd() const { return memfd_.get(); }
  SessionState* operator->() const { return state_; }

  // Empty until the first daemon has saved it.
  std::string SavedInit() const;
  // InvalidArgument when it is longer than kInitMax.
  absl::Status SaveInit(absl::string_view init);

  void CountTakeover(Cause cause, absl::Duration pause);
  uint64_t TakeoverCount() const;
  metrics::Histogram::Snapshot Pauses() const;

 private:
  SessionMemory(base::UniqueFd memfd, SessionState* state)
      : memfd_(std::move(memfd)), state_(state) {}

  base::UniqueFd memfd_;
  SessionState* state_ = nullptr;
};

// For `millrace status`, from either side.
control::KeeperStatus StatusOfKeeper(const SessionMemory& memory, bool alive);

}  // namespace millrace::keeper
