#include "fuse/keeper/eio_responder.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "common/base/errno_status.h"
#include "fuse/keeper/fuse_wire.h"

namespace millrace::keeper {
namespace {

// Between two looks at everything else a keeper has to do.
constexpr int kRequestsAtOnce = 256;

// The device is shared with the daemons, which wait in their reads: only for as long as there is
// none.
void SetNonBlocking(int device, bool on) {
  const int flags = fcntl(device, F_GETFL);
  fcntl(device, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

}  // namespace

absl::StatusOr<std::unique_ptr<EioResponder>> EioResponder::Start(
    PollLoop* loop, int device, std::function<void()> on_unmounted) {
  void* const buffer = mmap(nullptr, wire::kReadBuffer, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (buffer == MAP_FAILED) return base::ErrnoStatus(errno, "mmap");
  std::unique_ptr<EioResponder> responder(
      new EioResponder(device, buffer, std::move(on_unmounted)));
  SetNonBlocking(device, true);
  const wire::OutHeader resend = {sizeof(resend), wire::kNotifyResend, 0};
  [[maybe_unused]] const ssize_t written = write(device, &resend, sizeof(resend));
  responder->watch_ =
      loop->Watch(device, POLLIN, [raw = responder.get()](short) { raw->AnswerAll(); });
  return responder;
}

EioResponder::~EioResponder() {
  SetNonBlocking(device_, false);
  munmap(buffer_, wire::kReadBuffer);
}

void EioResponder::AnswerAll() {
  for (int i = 0; i < kRequestsAtOnce; ++i) {
    const ssize_t size = read(device_, buffer_, wire::kReadBuffer);
    // ENOENT: the request was taken back between its arrival and the read.
    if (size < 0 && (errno == EINTR || errno == ENOENT)) continue;
    if (size < 0 && errno == ENODEV) {
      watch_.Reset();
      return on_unmounted_();
    }
    if (size < static_cast<ssize_t>(sizeof(wire::InHeader))) return;
    const auto* const request = static_cast<const wire::InHeader*>(buffer_);
    if (request->opcode == wire::kForget || request->opcode == wire::kBatchForget ||
        request->opcode == wire::kInterrupt) {
      continue;
    }
    const wire::OutHeader reply = {sizeof(reply), -EIO, request->unique};
    [[maybe_unused]] const ssize_t written = write(device_, &reply, sizeof(reply));
  }
}

}  // namespace millrace::keeper
