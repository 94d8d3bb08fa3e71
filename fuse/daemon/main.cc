// millrace-fuse: the daemon of one mount. millrace-keeper starts it; this file only wires.
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "common/base/flags.h"
#include "common/base/log.h"
#include "common/base/sandbox.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/control/ready.h"
#include "common/control/run_directory.h"
#include "fuse/daemon/daemon.h"
#include "fuse/keeper/custody.h"
#include "fuse/options/options.h"

namespace millrace::daemon {
namespace {

// SIGTERM and SIGINT ask for the unmount. They are blocked in every thread and taken by one that
// waits for them, so that no handler has to be async-signal-safe. REQUIRES: called before any
// thread starts.
sigset_t BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // A peer that hangs up is an error of that write.
  signal(SIGPIPE, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  return signals;
}

// Waits for a signal to end. Until there is a daemon to stop, nothing is mounted and the process
// just ends; the pipe's end tells the command.
class StopSignals {
 public:
  explicit StopSignals(const sigset_t& signals) {
    // Detached: it waits in the kernel until the process ends.
    std::thread([this, signals] { Wait(signals); }).detach();
  }
  void StopThis(Daemon* daemon) {
    base::MutexLock lock(&mutex_);
    daemon_ = daemon;
  }

 private:
  void Wait(const sigset_t& signals) {
    int signal = 0;
    sigwait(&signals, &signal);
    base::Log(base::Severity::kInfo, "ending", {{"signal", signal}});
    base::MutexLock lock(&mutex_);
    if (daemon_ == nullptr) _exit(1);
    daemon_->Stop();
  }

  base::Mutex mutex_;
  Daemon* daemon_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

// What the daemon is told by its keeper alone; a person who starts it by hand wants the command.
absl::StatusOr<std::unique_ptr<keeper::Custody>> ConnectToKeeper(
    const options::MountOptions& options) {
  if (options.custody_fd < 0) {
    return absl::InvalidArgumentError(
        "millrace-fuse serves a mount that millrace-keeper makes; mount with: millrace mount "
        "SOURCE... MOUNTPOINT");
  }
  return keeper::Custody::Connect(base::UniqueFd(static_cast<int>(options.custody_fd)),
                                  base::kVersion);
}

int Run(const std::vector<std::string>& arguments) {
  control::ReadyNotifier ready(options::FindReadyFd(arguments));
  const absl::StatusOr<options::ParsedMount> parsed = options::ParseMountOptions(arguments);
  if (!parsed.ok()) return ready.Failed(parsed.status());
  if (parsed->help) {
    std::fputs(options::MountHelp().c_str(), stdout);
    return 0;
  }
  const options::MountOptions& options = parsed->options;
  base::SetLogThreshold(options.log_level);
  const sigset_t signals = BlockSignals();
  // Executed through a descriptor, whose number the kernel took for a name.
  prctl(PR_SET_NAME, "millrace-fuse");
  if (const absl::Status status = base::InstallSandbox(); !status.ok()) {
    base::Log(base::Severity::kWarning, "serving without a filter of system calls",
              {{"cause", status.ToString()}});
  }
  absl::StatusOr<std::unique_ptr<keeper::Custody>> connected = ConnectToKeeper(options);
  if (!connected.ok()) return ready.Failed(connected.status());
  keeper::Custody& custody = **connected;
  // A user may look into a daemon of his own, and a keeper of his reads which program it runs.
  if (custody.has_other_user()) base::HideMemory();
  // Without the destructors: threads may wait for answers that do not come any more.
  const auto fail = [&](const absl::Status& status) -> int {
    custody.Refused(base::ErrorText(status));
    const int exit_code = ready.Failed(status);
    std::fflush(nullptr);
    _exit(exit_code);
  };

  StopSignals& stop = *new StopSignals(signals);  // As long as its thread: for ever.
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Open(options, &custody);
  if (!daemon.ok()) return fail(daemon.status());
  stop.StopThis(daemon->get());
  if (const absl::Status served = (*daemon)->Serve(); !served.ok()) return fail(served);
  if (!custody.take_over()) ready.Ready((*daemon)->Summary());

  const absl::StatusOr<Daemon::Ended> ended = (*daemon)->Run();
  if (!ended.ok()) {
    base::Log(base::Severity::kError, "the cache was not closed cleanly",
              {{"cause", ended.status().ToString()}});
  }
  const bool handed_over = ended.ok() && *ended == Daemon::Ended::kHandedOver;
  // Without a keeper this process is the last of the mount.
  if (!handed_over && !custody.has_keeper()) {
    control::RunDirectory::Inherit(options.mountpoint, base::UniqueFd()).Clear();
  }
  // Threads may still hold answers to requests that nobody waits for any more; everything that
  // must outlive the process is on disk.
  std::fflush(nullptr);
  if (!ended.ok()) _exit(1);
  _exit(handed_over ? keeper::kExitDrained : 0);
}

}  // namespace
}  // namespace millrace::daemon

int main(int argc, char** argv) {
  return millrace::daemon::Run(std::vector<std::string>(argv + 1, argv + argc));
}
