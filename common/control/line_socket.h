// Lines of text over a Unix stream socket, with deadlines: what control_server, control_client and
// the keeper's own server share.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "common/base/unique_fd.h"

namespace millrace::control {

// Reads one line, the newline removed. `size_max` counts the newline. Not thread-safe.
class LineReader {
 public:
  LineReader(int fd, size_t size_max) : fd_(fd), size_max_(size_max) {}

  // nullopt at the end of the stream. DeadlineExceeded when `timeout` passed; Cancelled when a
  // signal interrupted the wait (the caller looks at what its handler noted, and may call again);
  // InvalidArgument for a line that is too long.
  absl::StatusOr<absl::optional<std::string>> ReadLine(absl::Duration timeout);

 private:
  const int fd_;
  const size_t size_max_;
  std::string buffer_;
};

// Writes `line` and a newline. DeadlineExceeded when the peer does not take it in `timeout`;
// Unavailable when the peer is gone. Raises no SIGPIPE.
absl::Status WriteLine(int fd, absl::string_view line, absl::Duration timeout);

// True when the peer has closed its end.
bool PeerGone(int fd);

// PermissionDenied unless the peer runs as this user or as root.
absl::Status CheckPeer(int fd);

// A Unix socket at `path`, listening (mode 0600 from the start) or connected; `type` is SOCK_STREAM
// or SOCK_SEQPACKET. Paths longer than the 107 bytes of sockaddr_un are reached through a
// descriptor of their directory. Who listens must be ready for accept to find nobody: the socket
// does not block.
absl::StatusOr<base::UniqueFd> ListenAt(const std::string& path, int type);
absl::StatusOr<base::UniqueFd> ConnectTo(const std::string& path, int type);

}  // namespace millrace::control
