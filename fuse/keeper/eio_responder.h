// Answers every request of a mount with EIO, while there is no daemon and will be none: an error
// serves an application better than a wait without an end.
//
// Not thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "fuse/keeper/poll_loop.h"

namespace millrace::keeper {

class EioResponder {
 public:
  // Begins with what a dead daemon left unanswered. `device` must outlive this, and nobody else
  // may read from it meanwhile. `on_unmounted` is called once, and may end this.
  static absl::StatusOr<std::unique_ptr<EioResponder>> Start(PollLoop* loop, int device,
                                                             std::function<void()> on_unmounted);
  ~EioResponder();

 private:
  EioResponder(int device, void* buffer, std::function<void()> on_unmounted)
      : device_(device), buffer_(buffer), on_unmounted_(std::move(on_unmounted)) {}

  void AnswerAll();

  const int device_;
  void* const buffer_;  // Address space for the largest request; only its first page is touched.
  const std::function<void()> on_unmounted_;
  PollLoop::Handle watch_;
};

}  // namespace millrace::keeper
