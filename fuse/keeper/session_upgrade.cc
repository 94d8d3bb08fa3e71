// Replacing the daemon while the mount is in use.
//
// The successor starts beside the old daemon and makes everything ready that needs neither the
// mount nor the cache: only then is the old one asked to let go. Until that moment a failure costs
// nothing; after it, the old program is started again.
#include "fuse/keeper/session_upgrade.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/log.h"

namespace millrace::keeper {
namespace {

constexpr absl::Duration kPrepareMax = absl::Seconds(30);
// Then the old daemon is killed: the successor takes over as after a crash.
constexpr absl::Duration kDrainMax = absl::Seconds(5);
// Reading the cache's journal included.
constexpr absl::Duration kGoOnMax = absl::Seconds(30);

}  // namespace

void Session::Upgrade(const std::string& path, UpgradeDone done) {
  if (upgrade_ != nullptr) {
    return done(absl::UnavailableError("another upgrade of this mount is under way"));
  }
  if (state_ != State::kServing && state_ != State::kCrashLoop) {
    return done(absl::UnavailableError(state_ == State::kEnding
                                           ? "the mount is being ended"
                                           : "the daemon is being started; try again in a moment"));
  }
  absl::StatusOr<base::UniqueFd> program = OpenProgram(path);
  if (!program.ok()) return done(program.status());
  upgrade_ = std::make_unique<UpgradeRun>();
  upgrade_->path = path;
  upgrade_->program = *std::move(program);
  upgrade_->done = std::move(done);
  if (state_ == State::kCrashLoop) {
    base::Log(base::Severity::kInfo, "starting a daemon again", {{"program", path}});
    upgrade_->recovers = true;
    program_ = std::move(upgrade_->program);
    policy_.Reset();
    return Restart();
  }
  upgrade_->from = daemon_->version();
  if (options_.uring) {
    absl::StatusOr<base::UniqueFd> nodes = NewNodeMemory();
    if (!nodes.ok()) return EndUpgrade(nodes.status());
    upgrade_->nodes = *std::move(nodes);
  }
  for (const auto& old : drained_) old->Kill();  // Of the upgrade before: it had its time.
  absl::StatusOr<std::unique_ptr<DaemonProcess>> standby = Launch(upgrade_->program.get());
  if (!standby.ok()) return EndUpgrade(standby.status());
  base::Log(base::Severity::kInfo, "upgrading", {{"program", path}, {"pid", (*standby)->pid()}});
  upgrade_->standby = *std::move(standby);
  upgrade_->deadline = loop_->After(kPrepareMax, [this] { upgrade_->standby->Kill(); });
}

void Session::StandbyMessage(const Message& message) {
  switch (message.frame.type) {
    case FrameType::kHello:
      return Welcome(upgrade_->standby.get(), message);
    case FrameType::kPrepared:
      return Drain();
    case FrameType::kRefused:
      refusal_ = message.frame.Text();
      return;
    default:
      upgrade_->standby->Kill();
  }
}

void Session::StandbyEnded(const Exit& exit) {
  std::string why = DescribeExit(exit);
  if (!refusal_.empty()) absl::StrAppend(&why, ": ", std::exchange(refusal_, ""));
  // The old daemon may be letting go already: then nobody is left to go on but itself.
  if (upgrade_->draining) {
    upgrade_->standby.reset();
    return;
  }
  EndUpgrade(absl::UnavailableError(
      absl::StrCat("the new daemon ", upgrade_->path, " did not become ready (", why,
                   "); the old one serves on, nothing was changed; the reason is in the log")));
}

void Session::Drain() {
  upgrade_->draining = true;
  ended_at_ = loop_->Now();
  upgrade_->deadline = loop_->After(kDrainMax, [this] { daemon_->Kill(); });
  daemon_->Send(FrameType::kDrain);
}

// The old daemon has let go of device and cache, or of the cache alone (`lingers`), or is dead.
void Session::GoOn(bool lingers) {
  (lingers ? lingering_ : drained_).push_back(std::move(daemon_));  // Until it has ended.
  if (options_.uring) LetGoOfConnection(std::move(upgrade_->nodes));
  cause_ = Cause::kUpgrade;
  state_ = State::kStarting;
  tick_.Reset();
  upgrade_->went_on = true;
  if (upgrade_->standby == nullptr) return RollBack("it ended while the old one let go");
  daemon_ = std::move(upgrade_->standby);
  upgrade_->deadline = loop_->After(kGoOnMax, [this] { daemon_->Kill(); });
  daemon_->Send(FrameType::kGo);
}

void Session::UpgradeServing(absl::Duration pause) {
  if (upgrade_ == nullptr) return;
  if (upgrade_->went_on) program_ = std::move(upgrade_->program);
  options_.program = upgrade_->path;
  EndUpgrade(Upgraded{upgrade_->from, daemon_->version(), pause});
}

void Session::RollBack(const std::string& why) {
  const std::string path = upgrade_->path;
  base::Log(base::Severity::kError, "the new daemon did not go on; starting the old one again",
            {{"program", path}, {"cause", why}});
  EndUpgrade(absl::UnavailableError(
      absl::StrCat("the new daemon ", path, " did not go on (", why,
                   "); rolled back: the old program serves again; the reason is in the log")));
  cause_ = Cause::kUpgrade;
  Restart();
}

void Session::EndUpgrade(const absl::StatusOr<Upgraded>& result) {
  const std::unique_ptr<UpgradeRun> upgrade = std::move(upgrade_);
  if (upgrade->standby != nullptr) {
    upgrade->standby->Kill();
    drained_.push_back(std::move(upgrade->standby));
  }
  refusal_.clear();
  upgrade->done(result);
}

}  // namespace millrace::keeper
