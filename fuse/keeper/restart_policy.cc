#include "fuse/keeper/restart_policy.h"

#include <algorithm>

namespace millrace::keeper {

std::optional<absl::Duration> RestartPolicy::OnCrash(absl::Duration now, absl::Duration served) {
  crashes_.push_back(now);
  while (now - crashes_.front() > limits_.window) crashes_.pop_front();
  if (limits_.crashes_max == 0) {
    crashes_.clear();
  } else if (crashes_.size() >= limits_.crashes_max) {
    return std::nullopt;
  }
  short_lives_ = served >= limits_.settled ? 0 : short_lives_ + 1;
  if (short_lives_ < 2) return absl::ZeroDuration();
  absl::Duration delay = limits_.first_delay;
  for (size_t i = 2; i < short_lives_ && delay < limits_.delay_max; ++i) delay *= 2;
  return std::min(delay, limits_.delay_max);
}

void RestartPolicy::Reset() {
  crashes_.clear();
  short_lives_ = 0;
}

}  // namespace millrace::keeper
