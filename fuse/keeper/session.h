// One mount in the hands of its keeper, from the mount to the unmount: the device, what outlives
// the daemons, and the daemon of the moment.
//
//   starting --Serving--> serving --crash--> starting … (again and again, ever later)
//                            |                  '--too often--> crash loop --Upgrade--> starting
//                            '--Upgrade--> serving, by another program
//   any --End, or an unmount by anybody--> ending --the daemon's exit--> gone
//
// Otherwise with the io_uring transport: a crash ends the connection and with it the mount, which
// is made anew at once; an upgrade makes another mount in the old one's place, and the old daemon
// lingers until nothing is open of its own.
//
// Not thread-safe: runs in the keeper's loop.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/json.h"
#include "common/base/mount_table.h"
#include "common/control/run_directory.h"
#include "fuse/keeper/backing_table.h"
#include "fuse/keeper/daemon_process.h"
#include "fuse/keeper/eio_responder.h"
#include "fuse/keeper/hang_prober.h"
#include "fuse/keeper/launch.h"
#include "fuse/keeper/line_server.h"
#include "fuse/keeper/poll_loop.h"
#include "fuse/keeper/recipe.h"
#include "fuse/keeper/restart_policy.h"
#include "fuse/keeper/session_state.h"

namespace millrace::keeper {

struct SessionOptions {
  std::string mountpoint;
  std::string source_text;           // The device column of /proc/mounts.
  std::vector<std::string> sources;  // NAME=URL or URL, without options, for mount.json.
  bool allow_other = false;
  bool check_permissions = true;  // MountRequest's.
  unsigned read_ahead_kib = 4096;

  std::string program;  // The path of millrace-fuse.
  Recipe recipe;
  std::optional<Identity> identity;
  std::string identity_text;  // For the person who mounts.
  // Before each start of a daemon: makes what it has no right to make. Null: nothing.
  std::function<absl::Status()> prepare;
  int oom_score_adj = 0;

  // Requests come through io_uring: what is on its way dies with its daemon, and so no daemon can
  // take over the connection of another. Each has its own, and the mount is made anew for it.
  bool uring = false;

  RestartLimits limits;
  absl::Duration hang_deadline = absl::Seconds(5);  // Infinite: a daemon may hang.

  // The first daemon's --ready-fd (common/control/ready.h).
  base::UniqueFd ready;
  // A dead mount was cleaned away before this one.
  bool replaces_lost = false;
};

class Session : private DaemonProcess::Owner {
 public:
  class Owner {
   public:
    virtual ~Owner() = default;
    // The mount is gone and the session has nothing left to do; `exit_code` is for a process that
    // kept nothing else. The session must not be deleted in this call.
    virtual void OnSessionEnded(Session* session, int exit_code) = 0;
  };

  struct Upgraded {
    std::string from;
    std::string to;
    absl::Duration pause;  // Without a daemon.
  };
  using UpgradeDone = std::function<void(const absl::StatusOr<Upgraded>&)>;

  // Starts the first daemon, at which's word the mount is made. `directory` has the lock.
  static absl::StatusOr<std::unique_ptr<Session>> Start(PollLoop* loop, Owner* owner,
                                                        SessionOptions options,
                                                        control::RunDirectory directory);
  // Becomes the keeper of a daemon that has lost its own. FailedPrecondition when it has not, or
  // speaks another version. Only the mountpoint is needed of the options; `make_options` gives the
  // others from what the daemon knows.
  using MakeOptions = std::function<absl::StatusOr<SessionOptions>(const Recipe&, pid_t daemon)>;
  static absl::StatusOr<std::unique_ptr<Session>> Adopt(PollLoop* loop, Owner* owner,
                                                        const std::string& mountpoint,
                                                        const MakeOptions& make_options);
  ~Session() override;

  const std::string& mountpoint() const { return options_.mountpoint; }
  bool kept() const { return serving_once_; }  // The mount has answered at least once.
  pid_t daemon_pid() const { return daemon_ == nullptr ? 0 : daemon_->pid(); }

  // Unmounts, even if it is in use, and ends the daemon. The second call does not wait for it.
  void End();

  // Replaces the daemon with the program at `path`, politely; in a crash loop, starts it. An error
  // leaves the old one serving. One at a time.
  void Upgrade(const std::string& path, UpgradeDone done);

 private:
  enum class State { kStarting, kServing, kWaiting, kCrashLoop, kEnding };
  struct UpgradeRun;

  Session(PollLoop* loop, Owner* owner, SessionOptions options, control::RunDirectory directory);

  // DaemonProcess::Owner.
  void OnMessage(DaemonProcess* from, Message message) override;
  void OnExit(DaemonProcess* from, const Exit& exit) override;

  absl::Status Prepare();
  absl::Status OpenSockets();
  absl::Status TakeFrom(base::UniqueFd socket, const MakeOptions& make_options);
  absl::StatusOr<std::unique_ptr<DaemonProcess>> Launch(int program);
  absl::StatusOr<std::unique_ptr<DaemonProcess>> Relaunch();
  absl::StatusOr<base::UniqueFd> OpenProgram(const std::string& path) const;

  // What daemons say.
  void Welcome(DaemonProcess* daemon, const Message& hello);
  void Grant(DaemonProcess* daemon, uint64_t serial);
  absl::Status MountOnce();
  // Of `uring`: the next daemon gets a connection of its own. The one before ends, unless its
  // daemon lives.
  void LetGoOfConnection(base::UniqueFd nodes);
  absl::StatusOr<base::UniqueFd> NewNodeMemory() const;
  void Serving(uint64_t serial);
  void BackingOpen(DaemonProcess* daemon, const Message& message);

  // What becomes of them.
  void DaemonEnded(const Exit& exit);
  void Crashed(const Exit& exit);
  void Restart();
  void RestartAfter(absl::Duration delay);
  void GiveUp(const std::string& why);
  void WatchDeadMount();
  bool DeviceGone() const;
  // What is on top at the mountpoint is the mount that was made last.
  bool MountThere() const;
  void Tick();
  void BeginServing();
  void WriteRecord();
  void Unmount();
  void Finish(int exit_code);

  // The upgrade, in session_upgrade.cc.
  void StandbyMessage(const Message& message);
  void StandbyEnded(const Exit& exit);
  void Drain();
  void GoOn(bool lingers);
  void UpgradeServing(absl::Duration pause);
  void RollBack(const std::string& why);
  void EndUpgrade(const absl::StatusOr<Upgraded>& result);

  // Answers, in session_requests.cc.
  void HandleKeeperRequest(const base::Json& request, LineServer::Answer answer);
  void HandleOrphanedRequest(const base::Json& request, const LineServer::Answer& answer);

  PollLoop* const loop_;
  Owner* const owner_;
  SessionOptions options_;
  control::RunDirectory directory_;

  // What outlives every daemon.
  base::UniqueFd program_;  // The daemon's file as it was when it was last known to work.
  base::UniqueFd device_;
  std::optional<base::MountEntry> entry_;  // Of the mount table, when the mount was made.
  base::UniqueFd nodes_;
  base::UniqueFd recipe_;
  base::UniqueFd control_listener_;
  base::UniqueFd adoption_listener_;
  base::UniqueFd keeper_listener_;
  SessionMemory memory_;
  BackingTable backing_;
  const absl::Time started_;

  State state_ = State::kStarting;
  bool serving_once_ = false;
  bool leaving_ = false;  // The daemon said that the mount is gone.
  bool fresh_ = false;    // Mounted since a daemon last served.
  bool finished_ = false;
  std::unique_ptr<DaemonProcess> daemon_;
  std::unique_ptr<UpgradeRun> upgrade_;
  std::vector<std::unique_ptr<DaemonProcess>> drained_;  // On their way out.
  // Of `uring`: they serve what programs have open of earlier mounts.
  std::vector<std::unique_ptr<DaemonProcess>> lingering_;

  // The end of the last daemon.
  RestartPolicy policy_;
  absl::Duration serving_since_;
  absl::Duration ended_at_;
  Cause cause_ = Cause::kSignal;
  bool killed_as_hung_ = false;
  std::string refusal_;     // A daemon's own words.
  std::string crash_loop_;  // Why nobody is started any more.

  absl::Duration last_tick_;
  absl::Duration awake_since_;
  std::unique_ptr<HangProber> prober_;
  std::unique_ptr<EioResponder> eio_;
  std::unique_ptr<LineServer> keeper_server_;
  std::unique_ptr<LineServer> orphan_server_;  // At the control socket, while there is no daemon.
  PollLoop::Handle tick_;
  PollLoop::Handle restart_timer_;
  PollLoop::Handle device_watch_;
  PollLoop::Handle start_timer_;
};

}  // namespace millrace::keeper
