// Asks a mount every second whether it answers, and says since when it has not.
//
// The question is a statfs, which goes the way of every application's request: through the kernel
// to a thread of the daemon and back. It blocks as long as the daemon does, so it has a thread of
// its own, which is left behind when it still waits at the end.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"

namespace millrace::keeper {

class HangProber {
 public:
  static constexpr absl::Duration kInterval = absl::Seconds(1);

  explicit HangProber(const std::string& mountpoint);
  ~HangProber();  // Returns at once.
  HangProber(const HangProber&) = delete;
  HangProber& operator=(const HangProber&) = delete;

  // When the question was asked that has no answer yet, on the monotonic clock.
  std::optional<absl::Duration> UnansweredSince() const;

 private:
  struct Shared;
  static void Run(const std::shared_ptr<Shared>& shared);

  const std::shared_ptr<Shared> shared_;
};

// Whether a daemon that serves since `serving_since`, and has not answered since
// `unanswered_since`, is to be replaced so that the mount answers again within `deadline` of the
// hang's beginning. Pure. Both are later of their kind, and of the last moment at which the keeper
// itself was not running
// (`awake_since`): a machine that slept has no hung daemon.
bool IsHung(absl::Duration now, std::optional<absl::Duration> unanswered_since,
            absl::Duration serving_since, absl::Duration awake_since, absl::Duration deadline);

}  // namespace millrace::keeper
