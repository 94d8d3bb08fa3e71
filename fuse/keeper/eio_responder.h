// Answers every request of a mount with EIO, while there is no daemon and will be none: an error
// serves an application better than a wait without an end.
//
// Not thread-safe.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "fuse/keeper/poll_loop.h"

namespace millrace::keeper {

class EioResponder {
 public:
  // Begins with what a dead daemon left unanswered. `device` must outlive this, and nobody else
  // may read from it meanwhile.
  static absl::StatusOr<std::unique_ptr<EioResponder>> Start(PollLoop* loop, int device);
  ~EioResponder();

 private:
  EioResponder(int device, void* buffer) : device_(device), buffer_(buffer) {}

  void AnswerAll();

  const int device_;
  void* const buffer_;  // Address space for the largest request; only its first page is touched.
  PollLoop::Handle watch_;
};

}  // namespace millrace::keeper
