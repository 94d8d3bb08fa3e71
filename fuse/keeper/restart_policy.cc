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
  if (served >= limits_.settled || now - last_ > limits_.window) brief_lives_ = short_lives_ = 0;
  last_ = now;
  if (served >= limits_.settled) return absl::ZeroDuration();
  if (served > absl::ZeroDuration() && ++brief_lives_ <= limits_.brief_max) {
    return absl::ZeroDuration();
  }
  if (++short_lives_ < 2) return absl::ZeroDuration();
  absl::Duration delay = limits_.first_delay;
  for (size_t i = 2; i < short_lives_ && delay < limits_.delay_max; ++i) delay *= 2;
  return std::min(delay, limits_.delay_max);
}

void RestartPolicy::Reset() {
  crashes_.clear();
  brief_lives_ = short_lives_ = 0;
}

}  // namespace millrace::keeper
