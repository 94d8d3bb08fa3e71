#include "common/net/stream.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace millrace::net {
namespace {

// The kernel transfers no more with one call, and a call should end now and then.
constexpr uint64_t kSendFileMax = 1 << 30;

bool IsGone(int error) {
  return error == EPIPE || error == ECONNRESET || error == ETIMEDOUT || error == ENOTCONN ||
         error == ESHUTDOWN || error == EHOSTUNREACH || error == ENETUNREACH ||
         error == ECONNABORTED;
}

// REQUIRES: a call on the socket failed with `error`, not EINTR.
absl::Status Failure(int error, absl::string_view what) {
  if (error == EAGAIN) {
    return absl::DeadlineExceededError("the other side neither sent nor took a byte in time");
  }
  if (IsGone(error)) {
    return base::WithErrno(absl::UnavailableError(absl::StrCat(what, ": ", strerror(error))),
                           error);
  }
  return base::ErrnoStatus(error, what);
}

class Plain final : public Stream {
 public:
  explicit Plain(base::UniqueFd socket) : Stream(std::move(socket)) {
    int domain = 0;
    socklen_t size = sizeof(domain);
    getsockopt(this->socket(), SOL_SOCKET, SO_DOMAIN, &domain, &size);
    unix_ = domain == AF_UNIX;
  }

  absl::StatusOr<size_t> Read(char* data, size_t size, absl::Duration timeout) override {
    SetReceiveTimeout(timeout);
    while (true) {
      const ssize_t got = recv(socket(), data, size, 0);
      if (got >= 0) return static_cast<size_t>(got);
      if (errno != EINTR) return Failure(errno, "recv");
    }
  }

  absl::StatusOr<size_t> ReadTwo(absl::Span<char> first, absl::Span<char> second,
                                 absl::Duration timeout) override {
    SetReceiveTimeout(timeout);
    iovec places[] = {{first.data(), first.size()}, {second.data(), second.size()}};
    msghdr message = {};
    message.msg_iov = places;
    message.msg_iovlen = 2;
    while (true) {
      const ssize_t got = recvmsg(socket(), &message, 0);
      if (got >= 0) return static_cast<size_t>(got);
      if (errno != EINTR) return Failure(errno, "recvmsg");
    }
  }

  absl::Status WriteParts(absl::Span<const absl::string_view> parts, bool more,
                          absl::Duration timeout) override {
    SetSendTimeout(timeout);
    absl::InlinedVector<iovec, 8> left;
    for (const absl::string_view part : parts) {
      if (!part.empty()) left.push_back({const_cast<char*>(part.data()), part.size()});
    }
    size_t first = 0;
    while (first < left.size()) {
      msghdr message = {};
      message.msg_iov = left.data() + first;
      message.msg_iovlen = std::min<size_t>(left.size() - first, IOV_MAX);
      const ssize_t sent = sendmsg(socket(), &message, MSG_NOSIGNAL | (more ? MSG_MORE : 0));
      if (sent < 0) {
        if (errno == EINTR) continue;
        return Failure(errno, "send");
      }
      size_t taken = static_cast<size_t>(sent);
      while (first < left.size() && taken >= left[first].iov_len) taken -= left[first++].iov_len;
      if (first < left.size()) {
        left[first].iov_base = static_cast<char*>(left[first].iov_base) + taken;
        left[first].iov_len -= taken;
      }
    }
    return absl::OkStatus();
  }

  absl::Status SendFile(int file, uint64_t offset, uint64_t size, bool /*more*/,
                        absl::Duration timeout) override {
    SetSendTimeout(timeout);
    off_t at = static_cast<off_t>(offset);
    while (size > 0) {
      const ssize_t sent = sendfile(socket(), file, &at, std::min(size, kSendFileMax));
      if (sent == 0) return absl::FailedPreconditionError("the file is shorter than it should be");
      if (sent > 0) {
        size -= static_cast<uint64_t>(sent);
      } else if (errno != EINTR) {
        return Failure(errno, "sendfile");
      }
    }
    return absl::OkStatus();
  }

  absl::Status WriteWithDescriptor(absl::string_view data, int descriptor,
                                   absl::Duration timeout) override {
    // TCP would send the bytes and say nothing.
    if (!unix_) {
      return absl::FailedPreconditionError("a descriptor only goes through a Unix socket");
    }
    SetSendTimeout(timeout);
    iovec bytes = {const_cast<char*>(data.data()), data.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message = {};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
    ssize_t sent = 0;
    do {
      sent = sendmsg(socket(), &message, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0) return Failure(errno, "sendmsg");
    // The descriptor went with the first byte.
    data.remove_prefix(static_cast<size_t>(sent));
    return Write(data, timeout);
  }

  absl::StatusOr<size_t> ReadWithDescriptor(char* data, size_t size, base::UniqueFd* descriptor,
                                            absl::Duration timeout) override {
    SetReceiveTimeout(timeout);
    // Room for a few, so that those sent against the rules can be closed.
    constexpr size_t kDescriptorsMax = 8;
    iovec bytes = {data, size};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kDescriptorsMax)];
    msghdr message = {};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    ssize_t got = 0;
    do {
      message.msg_control = control;
      message.msg_controllen = sizeof(control);
      got = recvmsg(socket(), &message, MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got < 0) return Failure(errno, "recvmsg");
    for (cmsghdr* each = CMSG_FIRSTHDR(&message); each != nullptr;
         each = CMSG_NXTHDR(&message, each)) {
      if (each->cmsg_level != SOL_SOCKET || each->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (each->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd = -1;
        memcpy(&fd, CMSG_DATA(each) + i * sizeof(int), sizeof(int));
        base::UniqueFd received(fd);
        if (!descriptor->valid()) *descriptor = std::move(received);
      }
    }
    return static_cast<size_t>(got);
  }

  bool HasPending() const override { return false; }
  bool zero_copy() const override { return true; }
  bool secure() const override { return false; }

 private:
  bool unix_ = false;
};

void SetTimeout(int socket, int option, absl::Duration timeout) {
  // A zero would mean "for ever".
  timeout = std::max(timeout, absl::Milliseconds(1));
  const timeval value =
      timeout == absl::InfiniteDuration() ? timeval{0, 0} : absl::ToTimeval(timeout);
  setsockopt(socket, SOL_SOCKET, option, &value, sizeof(value));
}

}  // namespace

Stream::Stream(base::UniqueFd socket) : socket_(std::move(socket)) {
  static const bool ignored = [] {
    struct sigaction now = {};
    sigaction(SIGPIPE, nullptr, &now);
    if (now.sa_handler == SIG_DFL) std::signal(SIGPIPE, SIG_IGN);
    return true;
  }();
  static_cast<void>(ignored);
  fcntl(socket_.get(), F_SETFL, fcntl(socket_.get(), F_GETFL) & ~O_NONBLOCK);
}

absl::Status Stream::ReadFully(char* data, size_t size, absl::Duration timeout) {
  while (size > 0) {
    ASSIGN_OR_RETURN(const size_t got, Read(data, size, timeout));
    if (got == 0) return absl::UnavailableError("the other side closed the connection");
    data += got;
    size -= got;
  }
  return absl::OkStatus();
}

bool Stream::Quiet() const {
  if (HasPending()) return false;
  char byte = 0;
  return recv(socket_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

void Stream::Shutdown() { shutdown(socket_.get(), SHUT_RDWR); }

void Stream::SetReceiveTimeout(absl::Duration timeout) {
  if (timeout == receive_timeout_) return;
  SetTimeout(socket_.get(), SO_RCVTIMEO, timeout);
  receive_timeout_ = timeout;
}

void Stream::SetSendTimeout(absl::Duration timeout) {
  if (timeout == send_timeout_) return;
  SetTimeout(socket_.get(), SO_SNDTIMEO, timeout);
  send_timeout_ = timeout;
}

std::unique_ptr<Stream> PlainStream(base::UniqueFd socket) {
  return std::make_unique<Plain>(std::move(socket));
}

}  // namespace millrace::net
