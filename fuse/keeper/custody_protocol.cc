#include "fuse/keeper/custody_protocol.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace millrace::keeper {
namespace {

constexpr size_t kGrantDescriptors = 5;
constexpr size_t kSessionDescriptors = 7;
// More than any frame has: a surplus is seen, not cut off silently.
constexpr size_t kDescriptorsMax = kSessionDescriptors + 1;

bool IsKnown(FrameType type) { return type >= FrameType::kHello && type <= FrameType::kBacking; }

absl::Status Gone() {
  return absl::UnavailableError("the other side of the custody socket is gone");
}

void TakeControlMessages(msghdr* header, Message* message) {
  for (cmsghdr* each = CMSG_FIRSTHDR(header); each != nullptr; each = CMSG_NXTHDR(header, each)) {
    if (each->cmsg_level != SOL_SOCKET) continue;
    if (each->cmsg_type == SCM_RIGHTS) {
      const size_t count = (each->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(each) + i * sizeof(int), sizeof(int));
        message->descriptors.emplace_back(fd);
      }
    } else if (each->cmsg_type == SCM_CREDENTIALS) {
      ucred sender;
      std::memcpy(&sender, CMSG_DATA(each), sizeof(sender));
      message->sender = sender.pid;
    }
  }
}

}  // namespace

void Frame::SetText(absl::string_view value) {
  text = {};
  std::copy_n(value.begin(), std::min(value.size(), kTextMax - 1), text.begin());
}

std::string Frame::Text() const {
  return std::string(text.begin(), std::find(text.begin(), text.end(), '\0'));
}

size_t DescriptorCount(FrameType type) {
  switch (type) {
    case FrameType::kWelcome:
      return 2;
    case FrameType::kGrant:
      return kGrantDescriptors;
    case FrameType::kSession:
      return kSessionDescriptors;
    case FrameType::kBackingOpen:
      return 1;
    default:
      return 0;
  }
}

absl::Status SendFrame(int socket, const Frame& frame, absl::Span<const int> descriptors,
                       bool wait) {
  iovec piece = {const_cast<Frame*>(&frame), sizeof(frame)};
  msghdr header = {};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char space[CMSG_SPACE(kDescriptorsMax * sizeof(int))] = {};
  if (!descriptors.empty()) {
    header.msg_control = space;
    header.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
    std::memcpy(CMSG_DATA(rights), descriptors.data(), descriptors.size() * sizeof(int));
  }
  while (sendmsg(socket, &header, MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT)) < 0) {
    if (errno == EINTR) continue;
    if (errno == EPIPE || errno == ECONNRESET) {
      return Gone();
    }
    if (errno == EAGAIN) {
      return absl::ResourceExhaustedError("the other side of the custody socket does not read");
    }
    return base::ErrnoStatus(errno, "sendmsg");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<Message>> ReceiveFrame(int socket, bool wait) {
  Message message;
  // One byte more than a frame: a longer one is seen as such.
  char bytes[sizeof(Frame) + 1];
  iovec piece = {bytes, sizeof(bytes)};
  alignas(cmsghdr) char
      space[CMSG_SPACE(kDescriptorsMax * sizeof(int)) + CMSG_SPACE(sizeof(ucred))] = {};
  msghdr header = {};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  header.msg_control = space;
  header.msg_controllen = sizeof(space);
  ssize_t size;
  while ((size = recvmsg(socket, &header, MSG_CMSG_CLOEXEC | (wait ? 0 : MSG_DONTWAIT))) < 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN) return std::optional<Message>();
    // It died with something of ours unread. Nothing was received: not even what the control
    // messages' space seems to hold.
    if (errno == ECONNRESET) return Gone();
    return base::ErrnoStatus(errno, "recvmsg");
  }
  TakeControlMessages(&header, &message);
  if (size == 0) return Gone();
  if (size != sizeof(Frame) || (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("a frame of ", size, " bytes"));
  }
  std::memcpy(&message.frame, bytes, sizeof(Frame));
  if (message.frame.magic != Frame::kMagic || !IsKnown(message.frame.type)) {
    return absl::InvalidArgumentError("a frame of no known type");
  }
  if (message.descriptors.size() != DescriptorCount(message.frame.type)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a frame of type ", static_cast<uint32_t>(message.frame.type), " with ",
                     message.descriptors.size(), " descriptors"));
  }
  return std::optional<Message>(std::move(message));
}

std::vector<int> Numbers(const MountDescriptors& descriptors) {
  std::vector<int> numbers = {descriptors.device.get(), descriptors.control.get(),
                              descriptors.adoption.get(), descriptors.lock.get(),
                              descriptors.recipe.get()};
  if (descriptors.session.valid()) {
    numbers.push_back(descriptors.session.get());
    numbers.push_back(descriptors.nodes.get());
  }
  return numbers;
}

MountDescriptors Named(std::vector<base::UniqueFd> descriptors) {
  MountDescriptors named;
  named.device = std::move(descriptors[0]);
  named.control = std::move(descriptors[1]);
  named.adoption = std::move(descriptors[2]);
  named.lock = std::move(descriptors[3]);
  named.recipe = std::move(descriptors[4]);
  if (descriptors.size() == kSessionDescriptors) {
    named.session = std::move(descriptors[5]);
    named.nodes = std::move(descriptors[6]);
  }
  return named;
}

Frame ErrorReply(const absl::Status& status) {
  Frame frame;
  frame.type = FrameType::kReply;
  frame.b = static_cast<uint64_t>(status.code());
  frame.SetText(absl::string_view(status.message().data(), status.message().size()));
  return frame;
}

absl::Status StatusOfReply(const Frame& reply) {
  if (reply.b == 0) return absl::OkStatus();
  // 16 is the last canonical code; an error of any other number is still one.
  const auto code =
      reply.b <= 16 ? static_cast<absl::StatusCode>(reply.b) : absl::StatusCode::kUnknown;
  return absl::Status(code, reply.Text());
}

absl::StatusOr<SocketPair> NewSocketPair() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return base::ErrnoStatus(errno, "socketpair");
  }
  return SocketPair{base::UniqueFd(ends[0]), base::UniqueFd(ends[1])};
}

}  // namespace millrace::keeper
