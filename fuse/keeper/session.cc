#include "fuse/keeper/session.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/base/unmount.h"
#include "common/control/line_socket.h"
#include "fuse/keeper/mounting.h"
#include "fuse/keeper/session_upgrade.h"

namespace millrace::keeper {
namespace {

constexpr int kReadyFd = 4;
// A successor reads its cache's journal: milliseconds, seconds for the largest.
constexpr absl::Duration kStartMax = absl::Minutes(2);
constexpr absl::Duration kTick = absl::Milliseconds(500);
constexpr absl::Duration kDeadMountInterval = absl::Seconds(1);
// A tick later than this: the keeper was not running, and nobody else may have been.
constexpr absl::Duration kTickLate = absl::Seconds(1);

std::string Milliseconds(absl::Duration duration) {
  return absl::StrCat(absl::ToInt64Milliseconds(duration));
}

}  // namespace

// ---- Beginning ----

absl::StatusOr<std::unique_ptr<Session>> Session::Start(PollLoop* loop, Owner* owner,
                                                        SessionOptions options,
                                                        control::RunDirectory directory) {
  std::unique_ptr<Session> session(
      new Session(loop, owner, std::move(options), std::move(directory)));
  RETURN_IF_ERROR(session->Prepare());
  ASSIGN_OR_RETURN(session->daemon_, session->Launch(session->program_.get()));
  session->options_.ready.Reset();
  return session;
}

Session::Session(PollLoop* loop, Owner* owner, SessionOptions options,
                 control::RunDirectory directory)
    : loop_(loop),
      owner_(owner),
      options_(std::move(options)),
      directory_(std::move(directory)),
      started_(absl::Now()),
      policy_(options_.limits) {}

Session::~Session() = default;

absl::Status Session::Prepare() {
  ASSIGN_OR_RETURN(program_, OpenProgram(options_.program));
  ASSIGN_OR_RETURN(memory_, SessionMemory::Create());
  memory_->keeper_pid = static_cast<uint32_t>(getpid());
  if (options_.replaces_lost) memory_->sessions_lost = 1;
  ASSIGN_OR_RETURN(nodes_, NewNodeMemory());
  ASSIGN_OR_RETURN(recipe_, WriteRecipe(options_.recipe));
  const control::RunPaths& paths = directory_.paths();
  ASSIGN_OR_RETURN(control_listener_, control::ListenAt(paths.socket(), SOCK_STREAM));
  ASSIGN_OR_RETURN(adoption_listener_, control::ListenAt(paths.adoption_socket(), SOCK_SEQPACKET));
  return OpenSockets();
}

absl::StatusOr<base::UniqueFd> Session::NewNodeMemory() const {
  base::UniqueFd nodes(memfd_create("millrace-nodes", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!nodes.valid()) return base::ErrnoStatus(errno, "memfd_create");
  return nodes;
}

absl::Status Session::OpenSockets() {
  ASSIGN_OR_RETURN(keeper_listener_,
                   control::ListenAt(directory_.paths().keeper_socket(), SOCK_STREAM));
  keeper_server_ = std::make_unique<LineServer>(
      loop_, keeper_listener_.get(), [this](const base::Json& request, LineServer::Answer answer) {
        HandleKeeperRequest(request, std::move(answer));
      });
  return absl::OkStatus();
}

absl::StatusOr<base::UniqueFd> Session::OpenProgram(const std::string& path) const {
  base::UniqueFd program(open(path.c_str(), O_PATH | O_CLOEXEC));
  if (!program.valid()) {
    return base::ErrnoStatus(errno, absl::StrCat("the daemon program ", path));
  }
  return program;
}

absl::StatusOr<std::unique_ptr<DaemonProcess>> Session::Launch(int program) {
  if (options_.prepare != nullptr) RETURN_IF_ERROR(options_.prepare());
  LaunchOptions launch;
  launch.program_fd = program;
  launch.arguments.push_back("millrace-fuse");
  launch.descriptors = {{STDOUT_FILENO, STDOUT_FILENO}, {STDERR_FILENO, STDERR_FILENO}};
  if (options_.ready.valid()) {
    launch.arguments.push_back(absl::StrCat("--ready-fd=", kReadyFd));
    launch.descriptors.emplace_back(options_.ready.get(), kReadyFd);
  }
  launch.arguments.insert(launch.arguments.end(), options_.recipe.arguments.begin(),
                          options_.recipe.arguments.end());
  launch.identity = options_.identity;
  launch.oom_score_adj = options_.oom_score_adj;
  return DaemonProcess::Start(loop_, this, std::move(launch));
}

// ---- Adoption ----

absl::StatusOr<std::unique_ptr<Session>> Session::Adopt(PollLoop* loop, Owner* owner,
                                                        const std::string& mountpoint,
                                                        const MakeOptions& make_options) {
  const control::RunPaths paths = control::RunPathsOf(mountpoint);
  absl::StatusOr<base::UniqueFd> socket =
      control::ConnectTo(paths.adoption_socket(), SOCK_SEQPACKET);
  if (!socket.ok()) {
    return absl::NotFoundError(absl::StrCat("no daemon of ", mountpoint,
                                            " waits for a keeper: ", socket.status().message()));
  }
  // The kernel then says who really sends: the socket itself was made by the keeper that died.
  const int on = 1;
  setsockopt(socket->get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
  const timeval timeout = {5, 0};
  setsockopt(socket->get(), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  SessionOptions options;
  options.mountpoint = mountpoint;
  std::unique_ptr<Session> session(
      new Session(loop, owner, std::move(options),
                  control::RunDirectory::Inherit(mountpoint, base::UniqueFd())));
  RETURN_IF_ERROR(session->TakeFrom(*std::move(socket), make_options));
  return session;
}

absl::Status Session::TakeFrom(base::UniqueFd socket, const MakeOptions& make_options) {
  Frame adopt;
  adopt.type = FrameType::kAdopt;
  adopt.a = kProtocolVersion;
  RETURN_IF_ERROR(SendFrame(socket.get(), adopt, {}, /*wait=*/true));
  absl::StatusOr<std::optional<Message>> answer = ReceiveFrame(socket.get(), /*wait=*/true);
  if (!answer.ok() || !answer->has_value()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the daemon of ", options_.mountpoint,
                     " wants no other keeper: its own lives, or this user "
                     "is not its keeper's"));
  }
  Message message = **std::move(answer);
  if (message.frame.type != FrameType::kSession) return StatusOfReply(message.frame);
  Child child;
  child.pid = message.sender;
  child.pidfd = base::UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, child.pid, 0)));
  if (!child.pidfd.valid()) return base::ErrnoStatus(errno, "the daemon ended just now");
  for (uint64_t i = 0; i < message.frame.b; ++i) {
    ASSIGN_OR_RETURN(const std::optional<Message> backing,
                     ReceiveFrame(socket.get(), /*wait=*/true));
    if (!backing.has_value() || backing->frame.type != FrameType::kBacking ||
        i >= BackingTable::kEntriesMax) {
      return absl::InvalidArgumentError("the daemon's list of files is cut short");
    }
    backing_.Adopt(backing->frame.a, static_cast<int>(backing->frame.b));
  }
  MountDescriptors mount = Named(std::move(message.descriptors));
  device_ = std::move(mount.device);
  control_listener_ = std::move(mount.control);
  adoption_listener_ = std::move(mount.adoption);
  recipe_ = std::move(mount.recipe);
  nodes_ = std::move(mount.nodes);
  ASSIGN_OR_RETURN(memory_, SessionMemory::Open(std::move(mount.session)));
  ASSIGN_OR_RETURN(const Recipe recipe, ReadRecipe(recipe_.get()));
  ASSIGN_OR_RETURN(options_, make_options(recipe, child.pid));
  options_.recipe = recipe;
  policy_ = RestartPolicy(options_.limits);
  directory_ = control::RunDirectory::Inherit(options_.mountpoint, std::move(mount.lock));
  // What runs is what a crash restarts, though another file may be installed by now.
  absl::StatusOr<base::UniqueFd> program = OpenProgram(absl::StrCat("/proc/", child.pid, "/exe"));
  if (!program.ok()) program = OpenProgram(options_.program);
  ASSIGN_OR_RETURN(program_, std::move(program));
  RETURN_IF_ERROR(OpenSockets());
  memory_->keeper_pid = static_cast<uint32_t>(getpid());
  // Checked after the descriptor is there: while the socket is open the number is the daemon's.
  pollfd gone = {socket.get(), 0, 0};
  if (poll(&gone, 1, 0) > 0) return absl::UnavailableError("the daemon ended just now");
  daemon_ =
      DaemonProcess::Adopt(loop_, this, std::move(child), std::move(socket), message.frame.Text());
  entry_ = FindMillraceMount(options_.mountpoint);
  serving_once_ = true;
  BeginServing();
  base::Log(base::Severity::kInfo, "adopted a daemon that had lost its keeper",
            {{"pid", daemon_->pid()}, {"backing_files", backing_.size()}});
  return absl::OkStatus();
}

// ---- What a daemon says ----

void Session::OnMessage(DaemonProcess* from, Message message) {
  if (upgrade_ != nullptr && from == upgrade_->standby.get()) return StandbyMessage(message);
  if (from != daemon_.get()) {
    // Drained, it has nothing more to say. But it may have asked something in that moment.
    if (message.frame.type == FrameType::kBackingOpen) {
      Frame reply = ErrorReply(absl::UnavailableError("another daemon has this mount now"));
      reply.serial = message.frame.serial;
      from->Send(reply);
    }
    return;
  }
  switch (message.frame.type) {
    case FrameType::kHello:
      return Welcome(from, message);
    case FrameType::kOpen:
      return Grant(from, message.frame.serial);
    case FrameType::kServing:
      return Serving(message.frame.serial);
    case FrameType::kBackingOpen:
      return BackingOpen(from, message);
    case FrameType::kBackingClose:
      return backing_.Close(device_.get(), message.frame.a);
    case FrameType::kEndMount:
      return End();
    case FrameType::kLeaving:
      leaving_ = true;
      return;
    case FrameType::kRefused:
      refusal_ = message.frame.Text();
      return;
    case FrameType::kDrained:
      if (upgrade_ != nullptr && upgrade_->draining) GoOn((message.frame.a & kLingers) != 0);
      return;
    default:
      base::Log(base::Severity::kError, "killing a daemon that breaks the custody protocol",
                {{"pid", from->pid()}, {"type", static_cast<uint32_t>(message.frame.type)}});
      from->Kill();
  }
}

void Session::Welcome(DaemonProcess* daemon, const Message& hello) {
  daemon->set_version(hello.frame.Text());
  if (hello.frame.a != kProtocolVersion) {
    Frame reply = ErrorReply(absl::FailedPreconditionError(
        absl::StrCat("the keeper speaks version ", kProtocolVersion,
                     " of the custody protocol, the daemon version ", hello.frame.a)));
    reply.serial = hello.frame.serial;
    refusal_ = reply.Text();
    return daemon->Send(reply);
  }
  Frame welcome;
  welcome.type = FrameType::kWelcome;
  welcome.serial = hello.frame.serial;
  welcome.SetText(options_.identity_text);
  if (serving_once_) welcome.a |= kTakeOver;
  const bool standby = upgrade_ != nullptr && daemon == upgrade_->standby.get();
  if (standby) welcome.a |= kStandby;
  const bool own_nodes = standby && upgrade_->nodes.valid();
  daemon->Send(welcome, {memory_.fd(), own_nodes ? upgrade_->nodes.get() : nodes_.get()});
}

void Session::Grant(DaemonProcess* daemon, uint64_t serial) {
  if (const absl::Status status = MountOnce(); !status.ok()) {
    Frame reply = ErrorReply(status);
    reply.serial = serial;
    return daemon->Send(reply);
  }
  Frame grant;
  grant.type = FrameType::kGrant;
  grant.serial = serial;
  if (geteuid() == 0) grant.a |= kCanBack;
  daemon->Send(grant, {device_.get(), control_listener_.get(), adoption_listener_.get(),
                       directory_.lock(), recipe_.get()});
}

absl::Status Session::MountOnce() {
  if (device_.valid()) return absl::OkStatus();
  const MountRequest request = {.mountpoint = options_.mountpoint,
                                .source_text = options_.source_text,
                                .allow_other = options_.allow_other,
                                .check_permissions = options_.check_permissions};
  if (entry_.has_value()) {
    if (!MountThere()) return absl::FailedPreconditionError("something else is mounted there now");
    ASSIGN_OR_RETURN(device_, ReplaceFuse(request));
  } else {
    ASSIGN_OR_RETURN(device_, MountFuse(request));
  }
  entry_ = FindMillraceMount(options_.mountpoint);
  fresh_ = true;
  return absl::OkStatus();
}

void Session::LetGoOfConnection(base::UniqueFd nodes) {
  device_.Reset();
  backing_.Forget();
  memory_->init_bytes = 0;
  nodes_ = std::move(nodes);
}

absl::StatusOr<std::unique_ptr<DaemonProcess>> Session::Relaunch() {
  if (options_.uring) {
    ASSIGN_OR_RETURN(base::UniqueFd nodes, NewNodeMemory());
    LetGoOfConnection(std::move(nodes));
  }
  return Launch(program_.get());
}

void Session::Serving(uint64_t serial) {
  if (state_ == State::kStarting) {
    const absl::Duration pause = loop_->Now() - ended_at_;
    start_timer_.Reset();
    if (serving_once_) {
      memory_.CountTakeover(cause_, pause);
      base::Log(base::Severity::kInfo, "the mount answers again",
                {{"pid", daemon_->pid()},
                 {"cause", CauseName(cause_)},
                 {"pause_ms", Milliseconds(pause)}});
    }
    if (std::exchange(fresh_, false) && entry_.has_value()) {
      memory_->read_ahead_raised = RaiseReadAhead(*entry_, options_.read_ahead_kib) ? 1 : 0;
    }
    serving_once_ = true;
    BeginServing();
    UpgradeServing(pause);
  }
  Frame reply;
  reply.serial = serial;
  daemon_->Send(reply);
}

void Session::BeginServing() {
  state_ = State::kServing;
  crash_loop_.clear();
  orphan_server_.reset();
  serving_since_ = last_tick_ = awake_since_ = loop_->Now();
  killed_as_hung_ = false;
  if (prober_ == nullptr) prober_ = std::make_unique<HangProber>(options_.mountpoint);
  tick_ = loop_->After(kTick, [this] { Tick(); });
  WriteRecord();
}

void Session::WriteRecord() {
  control::MountRecord record;
  record.mountpoint = options_.mountpoint;
  record.pid = daemon_->pid();
  record.keeper_pid = getpid();
  record.sources = options_.sources;
  record.started = started_;
  record.version = daemon_->version();
  if (const absl::Status status = directory_.WriteRecord(record); !status.ok()) {
    base::Log(base::Severity::kError, "the record of the mount cannot be written",
              {{"cause", status.ToString()}});
  }
}

void Session::BackingOpen(DaemonProcess* daemon, const Message& message) {
  const absl::StatusOr<int> id =
      backing_.Open(device_.get(), message.frame.a, message.descriptors[0].get());
  Frame reply = id.ok() ? Frame() : ErrorReply(id.status());
  reply.serial = message.frame.serial;
  if (id.ok()) reply.a = static_cast<uint64_t>(*id);
  daemon->Send(reply);
}

// ---- What becomes of it ----

void Session::Tick() {
  const absl::Duration now = loop_->Now();
  if (now - last_tick_ > kTick + kTickLate) awake_since_ = now;
  last_tick_ = now;
  if (state_ != State::kServing) return;
  tick_ = loop_->After(kTick, [this] { Tick(); });
  daemon_->NoteOomKills();
  if (!killed_as_hung_ && IsHung(now, prober_->UnansweredSince(), serving_since_, awake_since_,
                                 options_.hang_deadline)) {
    base::Log(base::Severity::kError, "killing a daemon that does not answer",
              {{"pid", daemon_->pid()}});
    killed_as_hung_ = true;
    daemon_->Kill();
  }
}

void Session::OnExit(DaemonProcess* from, const Exit& exit) {
  if (upgrade_ != nullptr && from == upgrade_->standby.get()) return StandbyEnded(exit);
  if (from == daemon_.get()) DaemonEnded(exit);
  for (auto* const gone : {&drained_, &lingering_}) {
    gone->erase(std::remove_if(gone->begin(), gone->end(),
                               [from](const auto& each) { return each.get() == from; }),
                gone->end());
  }
}

void Session::DaemonEnded(const Exit& exit) {
  if (upgrade_ != nullptr && upgrade_->draining && state_ == State::kServing) {
    return GoOn(/*lingers=*/false);
  }
  start_timer_.Reset();
  if (!serving_once_) {
    // It has told the command why, in its own words, unless it was killed.
    base::Log(base::Severity::kInfo, "the daemon ended before the mount answered",
              {{"how", DescribeExit(exit)}});
    return Finish(exit.how == Exit::How::kStatus && exit.number != 0 ? exit.number : 1);
  }
  if (state_ == State::kEnding || leaving_ || DeviceGone()) {
    return Finish(exit.how == Exit::How::kStatus ? exit.number : state_ == State::kEnding ? 1 : 0);
  }
  Crashed(exit);
}

bool Session::MountThere() const {
  const std::optional<base::MountEntry> there = FindMillraceMount(options_.mountpoint);
  return there.has_value() && entry_.has_value() && there->device_major == entry_->device_major &&
         there->device_minor == entry_->device_minor;
}

// The device reports an error once nothing is mounted with it any more.
bool Session::DeviceGone() const {
  if (!device_.valid()) return !MountThere();
  pollfd device = {device_.get(), 0, 0};
  return poll(&device, 1, 0) > 0 && (device.revents & POLLERR) != 0;
}

void Session::Crashed(const Exit& exit) {
  const absl::Duration now = loop_->Now();
  const bool served = state_ == State::kServing;
  if (served) ended_at_ = now;
  cause_ = killed_as_hung_                  ? Cause::kHang
           : daemon_->killed_for_memory()   ? Cause::kOom
           : exit.how == Exit::How::kStatus ? Cause::kExit
                                            : Cause::kSignal;
  std::string why = cause_ == Cause::kHang  ? "it did not answer"
                    : cause_ == Cause::kOom ? "the kernel killed it for want of memory"
                                            : DescribeExit(exit);
  if (!refusal_.empty()) absl::StrAppend(&why, ": ", std::exchange(refusal_, ""));
  base::Log(base::Severity::kError, "the daemon of the mount ended",
            {{"pid", daemon_->pid()}, {"cause", CauseName(cause_)}, {"how", why}});
  const absl::Duration served_for = served ? now - serving_since_ : absl::ZeroDuration();
  daemon_.reset();
  killed_as_hung_ = false;
  if (options_.uring && device_.valid()) {
    // Nobody can answer what the daemon had taken: the last descriptor ends the connection, and
    // every reader gets an error.
    device_.Reset();
    memory_->sessions_lost.fetch_add(1, std::memory_order_relaxed);
  }
  if (upgrade_ != nullptr) {
    if (upgrade_->went_on) return RollBack(why);
    if (upgrade_->recovers) return GiveUp(why);
    EndUpgrade(absl::AbortedError(
        absl::StrCat("the old daemon ended meanwhile (", why, "), and was started again")));
  }
  const std::optional<absl::Duration> delay = policy_.OnCrash(now, served_for);
  if (!delay.has_value()) return GiveUp(why);
  if (*delay == absl::ZeroDuration()) return Restart();
  RestartAfter(*delay);
}

void Session::RestartAfter(absl::Duration delay) {
  state_ = State::kWaiting;
  restart_timer_ = loop_->After(delay, [this] { Restart(); });
  // Only while there is no daemon: every request would wake a poll.
  if (device_.valid()) {
    device_watch_ = loop_->Watch(device_.get(), 0, [this](short) { Finish(0); });
  }
}

void Session::Restart() {
  // Unmounted while there was no daemon to see it.
  if (DeviceGone()) return Finish(0);
  device_watch_.Reset();
  state_ = State::kStarting;
  eio_.reset();
  absl::StatusOr<std::unique_ptr<DaemonProcess>> daemon = Relaunch();
  if (!daemon.ok()) {
    base::Log(base::Severity::kError, "the daemon cannot be started",
              {{"cause", daemon.status().ToString()}});
    const std::string why(daemon.status().message());
    if (upgrade_ != nullptr) return GiveUp(why);
    const std::optional<absl::Duration> delay = policy_.OnCrash(loop_->Now(), absl::ZeroDuration());
    return delay.has_value() ? RestartAfter(*delay) : GiveUp(why);
  }
  daemon_ = *std::move(daemon);
  start_timer_ = loop_->After(kStartMax, [this] {
    killed_as_hung_ = true;
    daemon_->Kill();
  });
}

void Session::GiveUp(const std::string& why) {
  state_ = State::kCrashLoop;
  tick_.Reset();
  crash_loop_ =
      absl::StrCat("the daemon ended ", options_.limits.crashes_max, " times within ",
                   absl::FormatDuration(options_.limits.window), ", the last time: ", why);
  if (upgrade_ != nullptr) {
    crash_loop_ = absl::StrCat("the daemon could not be started: ", why);
    EndUpgrade(absl::UnavailableError(crash_loop_));
  }
  base::Log(base::Severity::kError,
            "giving up; every request gets EIO until somebody mends it and says: millrace upgrade",
            {{"cause", crash_loop_}});
  if (device_.valid()) {
    absl::StatusOr<std::unique_ptr<EioResponder>> eio =
        EioResponder::Start(loop_, device_.get(), [this] { Finish(0); });
    if (eio.ok()) eio_ = *std::move(eio);
  } else {
    WatchDeadMount();
  }
  orphan_server_ = std::make_unique<LineServer>(
      loop_, control_listener_.get(),
      [this](const base::Json& request, const LineServer::Answer& answer) {
        HandleOrphanedRequest(request, answer);
      });
}

// Nothing tells of the unmount of a mount whose connection has ended.
void Session::WatchDeadMount() {
  if (!MountThere()) return Finish(0);
  device_watch_ = loop_->After(kDeadMountInterval, [this] { WatchDeadMount(); });
}

// ---- The end ----

void Session::End() {
  if (finished_) return;
  if (state_ == State::kEnding) {
    if (daemon_ != nullptr) daemon_->Kill();
    return;
  }
  const bool mounted = device_.valid();
  state_ = State::kEnding;
  prober_.reset();
  tick_.Reset();
  restart_timer_.Reset();
  device_watch_.Reset();
  if (upgrade_ != nullptr) EndUpgrade(absl::CancelledError("the mount is being ended"));
  Unmount();
  if (daemon_ == nullptr) return Finish(0);
  if (mounted && serving_once_) return daemon_->Send(FrameType::kFinish);
  daemon_->Kill();  // It has nothing to lose yet.
}

void Session::Unmount() {
  // Detached by somebody, and what is there now, if anything, is none of ours.
  if (DeviceGone() || !MountThere()) return;
  absl::Status status = base::Unmount(options_.mountpoint, /*lazy=*/false);
  if (base::ErrnoOf(status) == EBUSY) {
    base::Log(base::Severity::kWarning,
              "the mount is in use: detached, open files fail from now on",
              {{"mountpoint", options_.mountpoint}});
    status = base::Unmount(options_.mountpoint, /*lazy=*/true);
  }
  if (!status.ok()) {
    base::Log(base::Severity::kError, "cannot unmount", {{"cause", status.ToString()}});
  }
}

void Session::Finish(int exit_code) {
  if (std::exchange(finished_, true)) return;
  state_ = State::kEnding;
  prober_.reset();
  restart_timer_.Reset();
  device_watch_.Reset();
  eio_.reset();
  orphan_server_.reset();
  keeper_server_.reset();
  Unmount();
  daemon_.reset();
  for (const auto& each : lingering_) each->Kill();
  directory_.Clear();
  if (serving_once_) base::Log(base::Severity::kInfo, "unmounted", {});
  owner_->OnSessionEnded(this, exit_code);
}

}  // namespace millrace::keeper
