// millrace-fuse: the daemon of one mount. `millrace mount` starts it; this file only wires.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "common/base/errno_status.h"
#include "common/base/flags.h"
#include "common/base/log.h"
#include "common/base/mount_table.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/control/ready.h"
#include "common/control/run_directory.h"
#include "fuse/daemon/daemon.h"
#include "fuse/options/options.h"
#include "fuse/options/validate.h"

namespace millrace::daemon {
namespace {

// SIGTERM and SIGINT unmount. They are blocked in every thread and taken by one that waits for
// them, so that no handler has to be async-signal-safe. REQUIRES: called before any thread starts.
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

absl::StatusOr<options::MountOptions> Prepare(const std::vector<std::string>& arguments,
                                              bool* help) {
  ASSIGN_OR_RETURN(options::ParsedMount parsed, options::ParseMountOptions(arguments));
  *help = parsed.help;
  if (parsed.help) return parsed.options;
  ASSIGN_OR_RETURN(const std::vector<base::MountEntry> mounts, base::ReadMountTable());
  RETURN_IF_ERROR(options::ValidateMount(mounts, control::CacheBase(), &parsed.options));
  return parsed.options;
}

int Run(const std::vector<std::string>& arguments) {
  control::ReadyNotifier ready(options::FindReadyFd(arguments));
  bool help = false;
  const absl::StatusOr<options::MountOptions> options = Prepare(arguments, &help);
  if (!options.ok()) return ready.Failed(options.status());
  if (help) {
    std::fputs(options::MountHelp().c_str(), stdout);
    return 0;
  }
  base::SetLogThreshold(options->log_level);
  const sigset_t signals = BlockSignals();

  const absl::StatusOr<control::RunDirectory> directory =
      control::RunDirectory::Create(options->mountpoint);
  if (!directory.ok()) return ready.Failed(directory.status());
  if (const absl::Status status = ready.LogTo(directory->paths().log()); !status.ok()) {
    return ready.Failed(status);
  }
  for (const std::string& note : options->notes) base::Log(base::Severity::kWarning, note);

  // Every path is absolute by now; a daemon must not keep somebody's disk busy.
  if (chdir("/") != 0) return ready.Failed(base::ErrnoStatus(errno, "chdir to /"));
  StopSignals& stop = *new StopSignals(signals);  // As long as its thread: for ever.
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Open(*options);
  absl::Status started = daemon.status();
  if (started.ok()) {
    stop.StopThis(daemon->get());
    started = (*daemon)->Serve(directory->paths().socket());
  }
  if (!started.ok()) {
    directory->Clear();
    return ready.Failed(started);
  }
  control::MountRecord record;
  record.mountpoint = options->mountpoint;
  record.pid = getpid();
  for (const store::OpenedSource& source : (*daemon)->sources()) {
    record.sources.push_back(source.source.name.empty()
                                 ? source.source.url
                                 : absl::StrCat(source.source.name, "=", source.source.url));
  }
  record.started = absl::Now();
  record.version = base::kVersion;
  if (const absl::Status status = directory->WriteRecord(record); !status.ok()) {
    (*daemon)->Stop();
    return ready.Failed(status);
  }
  ready.Ready((*daemon)->Summary());

  const absl::Status status = (*daemon)->RunUntilUnmounted();
  if (!status.ok()) {
    base::Log(base::Severity::kError, "the cache was not closed cleanly",
              {{"cause", status.ToString()}});
  }
  base::Log(base::Severity::kInfo, "unmounted", {});
  directory->Clear();
  // Threads may still hold answers to requests that nobody waits for any more; everything that
  // must outlive the process is on disk.
  std::fflush(nullptr);
  _exit(status.ok() ? 0 : 1);
}

}  // namespace
}  // namespace millrace::daemon

int main(int argc, char** argv) {
  return millrace::daemon::Run(std::vector<std::string>(argv + 1, argv + argc));
}
