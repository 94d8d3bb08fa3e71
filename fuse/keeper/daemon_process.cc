#include "fuse/keeper/daemon_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace millrace::keeper {
namespace {

// A daemon that closed its socket is on its way out.
constexpr absl::Duration kSilenceMax = absl::Seconds(10);
// Frames taken before the loop looks at everybody else.
constexpr int kFramesAtOnce = 64;

}  // namespace

absl::StatusOr<std::unique_ptr<DaemonProcess>> DaemonProcess::Start(PollLoop* loop, Owner* owner,
                                                                    LaunchOptions options) {
  ASSIGN_OR_RETURN(SocketPair sockets, NewSocketPair());
  options.descriptors.emplace_back(sockets.theirs.get(), kCustodyFd);
  options.arguments.insert(options.arguments.begin() + 1,
                           absl::StrCat("--custody-fd=", kCustodyFd));
  ASSIGN_OR_RETURN(Child child, Launch(options));
  std::unique_ptr<DaemonProcess> process(
      new DaemonProcess(loop, owner, std::move(child), std::move(sockets.ours)));
  return process;
}

std::unique_ptr<DaemonProcess> DaemonProcess::Adopt(PollLoop* loop, Owner* owner, Child child,
                                                    base::UniqueFd socket, std::string version) {
  std::unique_ptr<DaemonProcess> process(
      new DaemonProcess(loop, owner, std::move(child), std::move(socket)));
  process->version_ = std::move(version);
  return process;
}

DaemonProcess::DaemonProcess(PollLoop* loop, Owner* owner, Child child, base::UniqueFd socket)
    : loop_(loop), owner_(owner), child_(std::move(child)), socket_(std::move(socket)) {
  NoteOomKills();
  process_watch_ = loop_->Watch(child_.pidfd.get(), POLLIN, [this](short) { OnEnded(); });
  socket_watch_ = loop_->Watch(socket_.get(), POLLIN, [this](short) { OnReadable(); });
}

void DaemonProcess::Send(const Frame& frame, absl::Span<const int> descriptors) {
  const absl::Status status = SendFrame(socket_.get(), frame, descriptors, /*wait=*/false);
  if (status.ok()) return;
  if (!absl::IsUnavailable(status)) {
    base::Log(base::Severity::kError, "killing a daemon that does not listen",
              {{"pid", child_.pid}, {"cause", status.ToString()}});
  }
  Kill();
}

void DaemonProcess::Send(FrameType type) {
  Frame frame;
  frame.type = type;
  Send(frame);
}

void DaemonProcess::Kill() {
  // Through the descriptor: never another process of the same number.
  syscall(SYS_pidfd_send_signal, child_.pidfd.get(), SIGKILL, nullptr, 0);
}

void DaemonProcess::OnReadable() {
  for (int i = 0; i < kFramesAtOnce; ++i) {
    absl::StatusOr<std::optional<Message>> message = ReceiveFrame(socket_.get(), /*wait=*/false);
    if (message.ok()) {
      if (!message->has_value()) return;
      owner_->OnMessage(this, **std::move(message));
      continue;
    }
    socket_watch_.Reset();
    if (absl::IsUnavailable(message.status())) {
      silence_timer_ = loop_->After(kSilenceMax, [this] { Kill(); });
      return;
    }
    base::Log(base::Severity::kError, "killing a daemon that breaks the custody protocol",
              {{"pid", child_.pid}, {"cause", message.status().ToString()}});
    Kill();
    return;
  }
}

void DaemonProcess::OnEnded() {
  // What it said last comes before its end.
  if (socket_watch_.active()) OnReadable();
  process_watch_.Reset();
  socket_watch_.Reset();
  silence_timer_.Reset();
  // Before it is reaped, which takes it out of its cgroup.
  const OomKills now = ReadOomKills(child_.pid);
  const Exit exit = ReapExit(child_.pidfd.get());
  killed_for_memory_ = KilledForMemory(exit, oom_kills_, now);
  owner_->OnExit(this, exit);
}

}  // namespace millrace::keeper
