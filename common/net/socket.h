// Sockets by address: listening, accepting, connecting, and who is at the other end.
//
// All sockets are close-on-exec. Connected ones are blocking, TCP ones have no delay (Nagle) and
// keep-alive probes that find a vanished peer within a minute. Safe on any thread.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/unique_fd.h"
#include "common/net/address.h"

namespace millrace::net {

struct ListenOptions {
  mode_t unix_mode = 0600;                    // Of a Unix socket's file, from its first instant.
  gid_t unix_group = static_cast<gid_t>(-1);  // Its group; -1: the process's.
  int backlog = 1024;
};

// Listens; the socket does not block, so that Accept may find nobody. The file of a Unix socket
// takes the place of a socket that is there; paths longer than sockaddr_un's 107 bytes are reached
// through their directory. Errors carry the errno.
absl::StatusOr<base::UniqueFd> Listen(const Address& address, const ListenOptions& options);

// One connection; nullopt when none waits (or it went away meanwhile).
absl::StatusOr<std::optional<base::UniqueFd>> Accept(int listener);

// Tries each address that the host has, in order, until `timeout` for all. DeadlineExceeded, or
// Unavailable with the errno of the last. A host that is a name is looked up first, which may take
// the resolver's own time-outs (5 s and more): give numeric addresses where that matters.
absl::StatusOr<base::UniqueFd> Connect(const Address& address, absl::Duration timeout);

// The numeric addresses of `host`, without brackets, as the resolver orders them. Blocks as long
// as the resolver does. NotFound: there is no such name; Unavailable: nobody could say.
absl::StatusOr<std::vector<std::string>> Resolve(const std::string& host);

// The address a socket is bound to, with the real port.
absl::StatusOr<Address> LocalAddress(int socket);
// For logs: "10.0.0.7:41230", or "unix" for a Unix socket.
std::string PeerName(int socket);

struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;  // The supplementary ones.
};
// Of the process at the other end of a Unix socket, as the kernel saw it when it connected.
absl::StatusOr<PeerCredentials> CredentialsOf(int unix_socket);

}  // namespace millrace::net
