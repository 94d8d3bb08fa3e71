#include "fuse/keeper/custody.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace millrace::keeper {
namespace {

// A keeper answers in microseconds; what takes longest is a run of fusermount3.
constexpr absl::Duration kAnswerTimeout = absl::Seconds(20);
// The predecessor drains in milliseconds. After this the keeper has forgotten the stand-by.
constexpr absl::Duration kGoTimeout = absl::Minutes(2);
constexpr int kAdopterTimeoutS = 2;

void SetTimeouts(int socket, int seconds) {
  const timeval timeout = {seconds, 0};
  setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
}

absl::StatusOr<uid_t> PeerUser(int socket) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return base::ErrnoStatus(errno, "SO_PEERCRED");
  }
  return peer.uid;
}

absl::StatusOr<base::UniqueFd> Copy(const base::UniqueFd& fd) {
  base::UniqueFd copy(fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return base::ErrnoStatus(errno, "dup");
  return copy;
}

absl::Status NoKeeper() { return absl::UnavailableError("this daemon has no keeper"); }

}  // namespace

// A caller that waits for its answer.
struct Custody::Call {
  std::optional<Message> answer;
};

absl::StatusOr<std::unique_ptr<Custody>> Custody::Connect(base::UniqueFd socket,
                                                          absl::string_view version) {
  SetTimeouts(socket.get(), static_cast<int>(absl::ToInt64Seconds(kAnswerTimeout)));
  std::unique_ptr<Custody> custody(new Custody(std::move(socket), std::string(version)));
  ASSIGN_OR_RETURN(custody->keeper_uid_, PeerUser(custody->socket_->get()));
  custody->wakeup_ = base::UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!custody->wakeup_.valid()) return base::ErrnoStatus(errno, "eventfd");
  custody->reader_ = std::thread([raw = custody.get()] { raw->Read(); });

  Frame hello;
  hello.type = FrameType::kHello;
  hello.a = kProtocolVersion;
  hello.SetText(version);
  ASSIGN_OR_RETURN(Message welcome, custody->Ask(hello));
  if (welcome.frame.type != FrameType::kWelcome) {
    RETURN_IF_ERROR(StatusOfReply(welcome.frame));
    return absl::InternalError("the keeper answered hello with something else");
  }
  custody->flags_ = welcome.frame.a;
  custody->identity_ = welcome.frame.Text();
  custody->nodes_ = std::move(welcome.descriptors[kWelcomeNodes]);
  ASSIGN_OR_RETURN(custody->session_,
                   SessionMemory::Open(std::move(welcome.descriptors[kWelcomeSession])));
  return custody;
}

Custody::Custody(base::UniqueFd socket, std::string version)
    : version_(std::move(version)), socket_(std::make_shared<base::UniqueFd>(std::move(socket))) {}

Custody::~Custody() {
  {
    base::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wakeup_.get(), &one, sizeof(one));
  if (reader_.joinable()) reader_.join();
}

absl::StatusOr<base::UniqueFd> Custody::NodeMemory() const { return Copy(nodes_); }

bool Custody::has_keeper() const {
  base::MutexLock lock(&mutex_);
  return socket_ != nullptr;
}

// ---- What the daemon says ----

absl::Status Custody::Tell(FrameType type, uint64_t a, absl::string_view text) {
  std::shared_ptr<base::UniqueFd> socket;
  {
    base::MutexLock lock(&mutex_);
    socket = socket_;
  }
  if (socket == nullptr) return NoKeeper();
  Frame frame;
  frame.type = type;
  frame.a = a;
  frame.SetText(text);
  return SendFrame(socket->get(), frame, {}, /*wait=*/true);
}

absl::StatusOr<Message> Custody::Ask(Frame frame, absl::Span<const int> descriptors) {
  Call call;
  std::shared_ptr<base::UniqueFd> socket;
  {
    base::MutexLock lock(&mutex_);
    if (socket_ == nullptr || lingers_) return NoKeeper();
    socket = socket_;
    frame.serial = next_serial_++;
    calls_[frame.serial] = &call;
  }
  const absl::Status sent = SendFrame(socket->get(), frame, descriptors, /*wait=*/true);
  const absl::Duration deadline = base::RealClock()->Monotonic() + kAnswerTimeout;
  base::MutexLock lock(&mutex_);
  // Another socket is another keeper: it never heard this question.
  while (sent.ok() && !call.answer.has_value() && socket_ == socket) {
    const absl::Duration left = deadline - base::RealClock()->Monotonic();
    if (left <= absl::ZeroDuration()) break;
    changed_.WaitFor(&mutex_, left);
  }
  calls_.erase(frame.serial);
  RETURN_IF_ERROR(sent);
  if (call.answer.has_value()) return *std::move(call.answer);
  if (socket_ != socket) return absl::UnavailableError("the keeper died before it answered");
  return absl::DeadlineExceededError("the keeper did not answer in time");
}

absl::Status Custody::AwaitGo() {
  RETURN_IF_ERROR(Tell(FrameType::kPrepared));
  const absl::Duration deadline = base::RealClock()->Monotonic() + kGoTimeout;
  base::MutexLock lock(&mutex_);
  while (!go_) {
    if (socket_ == nullptr) return NoKeeper();
    const absl::Duration left = deadline - base::RealClock()->Monotonic();
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError("the keeper never gave its word to go on");
    }
    changed_.WaitFor(&mutex_, left);
  }
  return absl::OkStatus();
}

absl::StatusOr<Grant> Custody::Open() {
  Frame frame;
  frame.type = FrameType::kOpen;
  ASSIGN_OR_RETURN(Message answer, Ask(frame));
  if (answer.frame.type != FrameType::kGrant) {
    RETURN_IF_ERROR(StatusOfReply(answer.frame));
    return absl::InternalError("the keeper granted nothing");
  }
  MountDescriptors descriptors = Named(std::move(answer.descriptors));
  Grant grant;
  grant.can_back = (answer.frame.a & kCanBack) != 0;
  ASSIGN_OR_RETURN(grant.device, Copy(descriptors.device));
  ASSIGN_OR_RETURN(grant.control_listener, Copy(descriptors.control));
  base::MutexLock lock(&mutex_);
  mount_ = std::move(descriptors);
  return grant;
}

absl::Status Custody::Serving() {
  Frame frame;
  frame.type = FrameType::kServing;
  ASSIGN_OR_RETURN(const Message answer, Ask(frame));
  return StatusOfReply(answer.frame);
}

absl::StatusOr<int> Custody::BackingOpen(uint64_t node, int fd) {
  Frame frame;
  frame.type = FrameType::kBackingOpen;
  frame.a = node;
  ASSIGN_OR_RETURN(const Message answer, Ask(frame, {fd}));
  RETURN_IF_ERROR(StatusOfReply(answer.frame));
  return static_cast<int>(answer.frame.a);
}

// An id that is not given back to a keeper that is gone stays with the kernel until the unmount.
void Custody::BackingClose(uint64_t node) { (void)Tell(FrameType::kBackingClose, node); }

absl::Status Custody::EndMount() { return Tell(FrameType::kEndMount); }
void Custody::Leaving() { (void)Tell(FrameType::kLeaving); }
void Custody::Drained(bool lingers) {
  if (lingers) {
    base::MutexLock lock(&mutex_);
    lingers_ = true;
    // The run directory's lock among them: it must not outlive keeper and successor.
    mount_ = {};
  }
  (void)Tell(FrameType::kDrained, lingers ? kLingers : 0);
}
void Custody::Refused(absl::string_view why) { (void)Tell(FrameType::kRefused, 0, why); }

void Custody::Listen(CustodyEvents* events) {
  {
    base::MutexLock lock(&mutex_);
    events_ = events;
  }
  TellEvents();
  // From now on adopters are heard.
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wakeup_.get(), &one, sizeof(one));
}

// ---- What the keeper says ----

void Custody::Read() {
  while (ReadOne()) {
  }
}

bool Custody::ReadOne() {
  std::shared_ptr<base::UniqueFd> socket;
  int adoption = -1;
  {
    base::MutexLock lock(&mutex_);
    if (stopping_) return false;
    socket = socket_;
    // Only who serves can be adopted.
    if (events_ != nullptr && socket == nullptr && !lingers_) adoption = mount_.adoption.get();
  }
  // A negative descriptor is passed over.
  pollfd waited[3] = {{wakeup_.get(), POLLIN, 0},
                      {socket == nullptr ? -1 : socket->get(), POLLIN, 0},
                      {adoption, POLLIN, 0}};
  if (poll(waited, 3, -1) < 0 && errno != EINTR) return false;
  uint64_t count;
  [[maybe_unused]] const ssize_t drained = read(wakeup_.get(), &count, sizeof(count));
  if (waited[1].revents != 0) {
    absl::StatusOr<std::optional<Message>> message = ReceiveFrame(socket->get(), /*wait=*/false);
    if (!message.ok()) {
      LoseKeeper();
    } else if (message->has_value()) {
      Handle(**std::move(message));
    }
  }
  if (waited[2].revents != 0) Adopt();
  return true;
}

void Custody::Handle(Message message) {
  const FrameType type = message.frame.type;
  {
    base::MutexLock lock(&mutex_);
    if (type == FrameType::kGo) {
      go_ = true;
    } else if (type == FrameType::kDrain) {
      drain_ = true;
    } else if (type == FrameType::kFinish) {
      finish_ = true;
    } else if (const auto call = calls_.find(message.frame.serial); call != calls_.end()) {
      call->second->answer = std::move(message);
    }
    changed_.NotifyAll();
  }
  TellEvents();
}

void Custody::TellEvents() {
  CustodyEvents* events;
  bool drain;
  bool finish;
  {
    base::MutexLock lock(&mutex_);
    events = events_;
    if (events == nullptr) return;
    drain = std::exchange(drain_, false);
    finish = std::exchange(finish_, false);
  }
  if (drain) events->OnDrain();
  if (finish) events->OnFinish();
}

void Custody::LoseKeeper() {
  base::MutexLock lock(&mutex_);
  if (!lingers_) {
    base::Log(base::Severity::kError,
              "the keeper of this mount is gone; serving on, but nobody would replace this "
              "process. A new one takes over with: millrace upgrade");
  }
  socket_.reset();
  changed_.NotifyAll();
}

// ---- Another keeper ----

void Custody::Adopt() {
  int listener;
  {
    base::MutexLock lock(&mutex_);
    listener = mount_.adoption.get();
  }
  base::UniqueFd socket(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket.valid()) return;
  SetTimeouts(socket.get(), kAdopterTimeoutS);
  if (const absl::Status status = AnswerAdopter(socket.get()); !status.ok()) {
    base::Log(base::Severity::kWarning, "refused a keeper", {{"cause", status.ToString()}});
    return;
  }
  SetTimeouts(socket.get(), static_cast<int>(absl::ToInt64Seconds(kAnswerTimeout)));
  base::Log(base::Severity::kInfo, "adopted by another keeper");
  base::MutexLock lock(&mutex_);
  socket_ = std::make_shared<base::UniqueFd>(std::move(socket));
}

absl::Status Custody::AnswerAdopter(int socket) {
  ASSIGN_OR_RETURN(const uid_t user, PeerUser(socket));
  if (user != 0 && user != keeper_uid_) {
    return absl::PermissionDeniedError(absl::StrCat("user ", user, " is not the keeper's"));
  }
  ASSIGN_OR_RETURN(const std::optional<Message> adopt, ReceiveFrame(socket, /*wait=*/true));
  if (!adopt.has_value() || adopt->frame.type != FrameType::kAdopt) {
    return absl::InvalidArgumentError("it did not say what it wants");
  }
  if (adopt->frame.a != kProtocolVersion) {
    const absl::Status status = absl::FailedPreconditionError(
        absl::StrCat("the daemon of this mount speaks version ", kProtocolVersion,
                     " of the custody protocol, and this keeper version ", adopt->frame.a));
    (void)SendFrame(socket, ErrorReply(status), {}, /*wait=*/true);
    return status;
  }
  CustodyEvents* events;
  std::vector<int> descriptors;
  {
    base::MutexLock lock(&mutex_);
    events = events_;
    descriptors = Numbers(mount_);  // They stay open as long as this object.
  }
  descriptors.push_back(session_.fd());
  descriptors.push_back(nodes_.get());
  const std::vector<std::pair<uint64_t, int>> ids = events->BackingIds();
  Frame frame;
  frame.type = FrameType::kSession;
  frame.a = kTakeOver;
  frame.b = ids.size();
  frame.SetText(version_);
  RETURN_IF_ERROR(SendFrame(socket, frame, descriptors, /*wait=*/true));
  for (const auto& [node, id] : ids) {
    Frame backing;
    backing.type = FrameType::kBacking;
    backing.a = node;
    backing.b = static_cast<uint64_t>(id);
    RETURN_IF_ERROR(SendFrame(socket, backing, {}, /*wait=*/true));
  }
  return absl::OkStatus();
}

}  // namespace millrace::keeper
