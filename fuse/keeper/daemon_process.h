// One daemon, as its keeper sees it: a process and the custody socket to it.
//
// Not thread-safe: runs in the keeper's loop.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/unique_fd.h"
#include "fuse/keeper/custody_protocol.h"
#include "fuse/keeper/death.h"
#include "fuse/keeper/launch.h"
#include "fuse/keeper/poll_loop.h"

namespace millrace::keeper {

class DaemonProcess {
 public:
  class Owner {
   public:
    virtual ~Owner() = default;
    // A frame that is in order by itself. Must not delete `from`.
    virtual void OnMessage(DaemonProcess* from, Message message) = 0;
    // The process ended, and was reaped. `from` may be deleted.
    virtual void OnExit(DaemonProcess* from, const Exit& exit) = 0;
  };

  // Starts a program with a custody socket as descriptor kCustodyFd, and `options.descriptors`
  // beside it. The option --custody-fd is put before the arguments.
  static constexpr int kCustodyFd = 3;
  static absl::StatusOr<std::unique_ptr<DaemonProcess>> Start(PollLoop* loop, Owner* owner,
                                                              LaunchOptions options);
  // One that runs already, and speaks through `socket`.
  static std::unique_ptr<DaemonProcess> Adopt(PollLoop* loop, Owner* owner, Child child,
                                              base::UniqueFd socket, std::string version);
  // Lets a process that has not ended run on.
  ~DaemonProcess() = default;
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  pid_t pid() const { return child_.pid; }
  // Of its Hello; empty before.
  const std::string& version() const { return version_; }
  void set_version(std::string version) { version_ = std::move(version); }

  // One that does not read, or is gone, is killed: its end then says the rest.
  void Send(const Frame& frame, absl::Span<const int> descriptors = {});
  void Send(FrameType type);
  void Kill();

  // Looks at what the kernel has killed for want of memory so far, so that a later kill is told
  // from it.
  void NoteOomKills() { oom_kills_ = ReadOomKills(child_.pid); }
  // After the end.
  bool killed_for_memory() const { return killed_for_memory_; }

 private:
  DaemonProcess(PollLoop* loop, Owner* owner, Child child, base::UniqueFd socket);

  void OnReadable();
  void OnEnded();

  PollLoop* const loop_;
  Owner* const owner_;
  const Child child_;
  const base::UniqueFd socket_;
  std::string version_;
  OomKills oom_kills_;
  bool killed_for_memory_ = false;
  PollLoop::Handle process_watch_;
  PollLoop::Handle socket_watch_;
  PollLoop::Handle silence_timer_;
};

}  // namespace millrace::keeper
