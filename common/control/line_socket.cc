#include "common/control/line_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/unix_address.h"

namespace millrace::control {
namespace {

int PollMilliseconds(absl::Duration left) {
  return static_cast<int>(
      std::clamp<int64_t>(absl::ToInt64Milliseconds(left) + 1, 0, 24 * 3600 * 1000));
}

// Waits until `fd` is ready for `events`. Unlike a retry loop, a signal ends the wait.
absl::Status WaitReady(int fd, short events, absl::Duration left) {
  if (left <= absl::ZeroDuration()) return absl::DeadlineExceededError("no answer in time");
  pollfd waited = {fd, events, 0};
  const int ready = poll(&waited, 1, PollMilliseconds(left));
  if (ready > 0) return absl::OkStatus();
  if (ready == 0) return absl::DeadlineExceededError("no answer in time");
  return errno == EINTR ? absl::CancelledError("interrupted") : base::ErrnoStatus(errno, "poll");
}

absl::StatusOr<base::UniqueFd> NewSocket(int type) {
  base::UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return base::ErrnoStatus(errno, "socket");
  return fd;
}

}  // namespace

absl::StatusOr<absl::optional<std::string>> LineReader::ReadLine(absl::Duration timeout) {
  const absl::Duration deadline = base::RealClock()->Monotonic() + timeout;
  size_t searched = 0;
  while (true) {
    const size_t newline = buffer_.find('\n', searched);
    if (newline != std::string::npos && newline < size_max_) {
      std::string line = buffer_.substr(0, newline);
      buffer_.erase(0, newline + 1);
      return absl::optional<std::string>(std::move(line));
    }
    if (buffer_.size() >= size_max_) {
      return absl::InvalidArgumentError(
          absl::StrCat("a line is longer than the ", size_max_, " bytes it may have"));
    }
    searched = buffer_.size();
    RETURN_IF_ERROR(WaitReady(fd_, POLLIN, deadline - base::RealClock()->Monotonic()));
    char chunk[16384];
    const ssize_t size = recv(fd_, chunk, sizeof(chunk), MSG_DONTWAIT);
    if (size > 0) {
      buffer_.append(chunk, size);
    } else if (size == 0 || errno == ECONNRESET) {
      // A line without its newline was cut off: not to be taken for a whole one.
      return absl::optional<std::string>();
    } else if (errno != EAGAIN && errno != EINTR) {
      return base::ErrnoStatus(errno, "recv");
    }
  }
}

absl::Status WriteLine(int fd, absl::string_view line, absl::Duration timeout) {
  const absl::Duration deadline = base::RealClock()->Monotonic() + timeout;
  const std::string text = absl::StrCat(line, "\n");
  absl::string_view left = text;
  while (!left.empty()) {
    const ssize_t size = send(fd, left.data(), left.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (size >= 0) {
      left.remove_prefix(size);
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return absl::UnavailableError("the other side closed the connection");
    } else if (errno == EAGAIN) {
      const absl::Status ready = WaitReady(fd, POLLOUT, deadline - base::RealClock()->Monotonic());
      if (!ready.ok() && !absl::IsCancelled(ready)) return ready;
    } else if (errno != EINTR) {
      return base::ErrnoStatus(errno, "send");
    }
  }
  return absl::OkStatus();
}

bool PeerGone(int fd) {
  pollfd waited = {fd, POLLRDHUP, 0};
  return poll(&waited, 1, 0) > 0 && (waited.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

absl::Status CheckPeer(int fd) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return base::ErrnoStatus(errno, "SO_PEERCRED");
  }
  if (peer.uid == geteuid() || peer.uid == 0) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("the other side of the control socket runs as user ", peer.uid,
                   ", neither this user (", geteuid(), ") nor root"));
}

absl::StatusOr<base::UniqueFd> ListenAt(const std::string& path, int type) {
  base::UniqueFd directory;
  ASSIGN_OR_RETURN(const sockaddr_un address, base::UnixAddress(path, &directory));
  ASSIGN_OR_RETURN(base::UniqueFd fd, NewSocket(type | SOCK_NONBLOCK));
  // The mode of an unbound socket becomes that of its file (unix_bind): there is no instant in
  // which others could connect.
  if (fchmod(fd.get(), 0600) != 0) return base::ErrnoStatus(errno, path);
  unlink(path.c_str());
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("cannot make the control socket ", path));
  }
  if (listen(fd.get(), 64) != 0) return base::ErrnoStatus(errno, path);
  return fd;
}

absl::StatusOr<base::UniqueFd> ConnectTo(const std::string& path, int type) {
  base::UniqueFd directory;
  ASSIGN_OR_RETURN(const sockaddr_un address, base::UnixAddress(path, &directory));
  ASSIGN_OR_RETURN(base::UniqueFd fd, NewSocket(type));
  // A full backlog blocks connect() for ever otherwise.
  const timeval timeout = {5, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return base::ErrnoStatus(errno, path);
  }
  return fd;
}

}  // namespace millrace::control
