#include "common/net/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/unix_address.h"

namespace millrace::net {
namespace {

using AddressList = std::unique_ptr<addrinfo, void (*)(addrinfo*)>;

absl::StatusOr<AddressList> LookUp(const std::string& host, uint16_t port, int flags) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | flags;
  addrinfo* list = nullptr;
  // "Every interface" is IPv4's: a host without IPv6 has it too.
  if (host.empty()) hints.ai_family = AF_INET;
  const int failed = getaddrinfo(host.empty() ? nullptr : host.c_str(),
                                 std::to_string(port).c_str(), &hints, &list);
  if (failed == EAI_NONAME || failed == EAI_NODATA) {
    return absl::NotFoundError(absl::StrCat("there is no host \"", host, "\""));
  }
  if (failed != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot look up \"", host,
                     "\": ", failed == EAI_SYSTEM ? strerror(errno) : gai_strerror(failed)));
  }
  return AddressList(list, freeaddrinfo);
}

void SetUpTcp(int socket) {
  const int yes = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof(yes));
  // 30 s, then three probes ten seconds apart.
  const int idle_seconds = 30;
  const int interval_seconds = 10;
  const int probes = 3;
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &idle_seconds, sizeof(idle_seconds));
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &interval_seconds, sizeof(interval_seconds));
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

absl::StatusOr<base::UniqueFd> ListenUnix(const Address& address, const ListenOptions& options) {
  base::UniqueFd directory;
  ASSIGN_OR_RETURN(const sockaddr_un name, base::UnixAddress(address.path, &directory));
  base::UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return base::ErrnoStatus(errno, "socket");
  // The mode of an unbound socket becomes that of its file (unix_bind): there is no instant in
  // which others could connect. The group is given with the mode closed.
  const bool group = options.unix_group != static_cast<gid_t>(-1);
  const mode_t mode = group ? options.unix_mode & ~077U : options.unix_mode;
  if (fchmod(fd.get(), mode) != 0) return base::ErrnoStatus(errno, address.path);
  struct stat there = {};
  if (lstat(address.path.c_str(), &there) == 0 && S_ISSOCK(there.st_mode)) {
    unlink(address.path.c_str());
  }
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("cannot make the socket ", address.path));
  }
  if (group && (lchown(address.path.c_str(), static_cast<uid_t>(-1), options.unix_group) != 0 ||
                chmod(address.path.c_str(), options.unix_mode) != 0)) {
    return base::ErrnoStatus(errno, absl::StrCat("cannot give the socket ", address.path,
                                                 " to group ", options.unix_group));
  }
  if (listen(fd.get(), options.backlog) != 0) return base::ErrnoStatus(errno, address.path);
  return fd;
}

// Waits until the connecting `fd` is connected.
absl::Status FinishConnect(int fd, absl::Duration left, const std::string& name) {
  while (true) {
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError(absl::StrCat("no answer from ", name));
    }
    pollfd waited = {fd, POLLOUT, 0};
    const absl::Duration before = base::RealClock()->Monotonic();
    const int64_t milliseconds = std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, 86'400'000);
    const int ready = poll(&waited, 1, static_cast<int>(milliseconds));
    if (ready > 0) break;
    if (ready < 0 && errno != EINTR) return base::ErrnoStatus(errno, "poll");
    left -= base::RealClock()->Monotonic() - before;
  }
  int error = 0;
  socklen_t size = sizeof(error);
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error == 0) return absl::OkStatus();
  return base::WithErrno(
      absl::UnavailableError(absl::StrCat("cannot connect to ", name, ": ", strerror(error))),
      error);
}

absl::StatusOr<base::UniqueFd> ConnectOne(int family, const sockaddr* address, socklen_t size,
                                          absl::Duration left, const std::string& name) {
  base::UniqueFd fd(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return base::ErrnoStatus(errno, "socket");
  if (connect(fd.get(), address, size) != 0 && errno != EINPROGRESS) {
    // EAGAIN: a Unix socket's backlog is full.
    return base::WithErrno(
        absl::UnavailableError(absl::StrCat("cannot connect to ", name, ": ", strerror(errno))),
        errno);
  }
  RETURN_IF_ERROR(FinishConnect(fd.get(), left, name));
  if (fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) & ~O_NONBLOCK) != 0) {
    return base::ErrnoStatus(errno, "fcntl");
  }
  if (family != AF_UNIX) SetUpTcp(fd.get());
  return fd;
}

absl::StatusOr<std::string> Numeric(const sockaddr* address, socklen_t size) {
  char host[NI_MAXHOST];
  if (getnameinfo(address, size, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) != 0) {
    return absl::InternalError("an address without a numeric form");
  }
  return std::string(host);
}

Address FromSockaddr(const sockaddr_storage& storage, socklen_t size) {
  Address address;
  if (storage.ss_family == AF_UNIX) {
    const auto& name = reinterpret_cast<const sockaddr_un&>(storage);
    address.path = size > offsetof(sockaddr_un, sun_path) ? name.sun_path : "";
    return address;
  }
  absl::StatusOr<std::string> host = Numeric(reinterpret_cast<const sockaddr*>(&storage), size);
  if (host.ok()) address.host = *std::move(host);
  address.port =
      ntohs(storage.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(storage).sin6_port
                                          : reinterpret_cast<const sockaddr_in&>(storage).sin_port);
  return address;
}

}  // namespace

absl::StatusOr<base::UniqueFd> Listen(const Address& address, const ListenOptions& options) {
  if (address.is_unix()) return ListenUnix(address, options);
  ASSIGN_OR_RETURN(const AddressList list, LookUp(address.host, address.port, AI_PASSIVE));
  base::UniqueFd fd(socket(list->ai_family, list->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int yes = 1;
  if (!fd.valid() || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) != 0 ||
      bind(fd.get(), list->ai_addr, list->ai_addrlen) != 0 ||
      listen(fd.get(), options.backlog) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("cannot listen at ", address.ToString()));
  }
  return fd;
}

absl::StatusOr<std::optional<base::UniqueFd>> Accept(int listener) {
  base::UniqueFd fd(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (fd.valid()) {
    int domain = 0;
    socklen_t size = sizeof(domain);
    getsockopt(fd.get(), SOL_SOCKET, SO_DOMAIN, &domain, &size);
    if (domain != AF_UNIX) SetUpTcp(fd.get());
    return std::optional<base::UniqueFd>(std::move(fd));
  }
  switch (errno) {
    // accept(2): errors of the new connection are passed on as if they were the listener's.
    case EAGAIN:
    case EINTR:
    case ECONNABORTED:
    case ENETDOWN:
    case EPROTO:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case ENONET:
    case EHOSTUNREACH:
    case EOPNOTSUPP:
    case ENETUNREACH:
      return std::optional<base::UniqueFd>();
    default:
      return base::ErrnoStatus(errno, "accept");
  }
}

absl::StatusOr<base::UniqueFd> Connect(const Address& address, absl::Duration timeout) {
  const absl::Duration deadline = base::RealClock()->Monotonic() + timeout;
  const std::string name = address.ToString();
  if (address.is_unix()) {
    base::UniqueFd directory;
    ASSIGN_OR_RETURN(const sockaddr_un target, base::UnixAddress(address.path, &directory));
    return ConnectOne(AF_UNIX, reinterpret_cast<const sockaddr*>(&target), sizeof(target), timeout,
                      name);
  }
  ASSIGN_OR_RETURN(const AddressList list, LookUp(address.host, address.port, 0));
  absl::Status failed = absl::NotFoundError(absl::StrCat("no address for ", name));
  for (const addrinfo* each = list.get(); each != nullptr; each = each->ai_next) {
    absl::StatusOr<base::UniqueFd> fd = ConnectOne(each->ai_family, each->ai_addr, each->ai_addrlen,
                                                   deadline - base::RealClock()->Monotonic(), name);
    if (fd.ok()) return fd;
    failed = fd.status();
  }
  return failed;
}

absl::StatusOr<std::vector<std::string>> Resolve(const std::string& host) {
  ASSIGN_OR_RETURN(const AddressList list, LookUp(host, 0, 0));
  std::vector<std::string> found;
  for (const addrinfo* each = list.get(); each != nullptr; each = each->ai_next) {
    ASSIGN_OR_RETURN(std::string numeric, Numeric(each->ai_addr, each->ai_addrlen));
    if (std::find(found.begin(), found.end(), numeric) == found.end()) {
      found.push_back(std::move(numeric));
    }
  }
  return found;
}

absl::StatusOr<Address> LocalAddress(int socket) {
  sockaddr_storage storage = {};
  socklen_t size = sizeof(storage);
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&storage), &size) != 0) {
    return base::ErrnoStatus(errno, "getsockname");
  }
  return FromSockaddr(storage, size);
}

std::string PeerName(int socket) {
  sockaddr_storage storage = {};
  socklen_t size = sizeof(storage);
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&storage), &size) != 0) return "gone";
  return storage.ss_family == AF_UNIX ? "unix" : FromSockaddr(storage, size).ToString();
}

absl::StatusOr<PeerCredentials> CredentialsOf(int unix_socket) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (getsockopt(unix_socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return base::ErrnoStatus(errno, "SO_PEERCRED");
  }
  PeerCredentials credentials = {peer.pid, peer.uid, peer.gid, {}};
  // The number of groups is not known before: the kernel says with ERANGE how many bytes it takes.
  credentials.groups.resize(32);
  while (true) {
    socklen_t bytes = static_cast<socklen_t>(credentials.groups.size() * sizeof(gid_t));
    if (getsockopt(unix_socket, SOL_SOCKET, SO_PEERGROUPS, credentials.groups.data(), &bytes) ==
        0) {
      credentials.groups.resize(bytes / sizeof(gid_t));
      return credentials;
    }
    if (errno != ERANGE || bytes / sizeof(gid_t) <= credentials.groups.size()) {
      return base::ErrnoStatus(errno, "SO_PEERGROUPS");
    }
    credentials.groups.resize(bytes / sizeof(gid_t));
  }
}

}  // namespace millrace::net
