// The command's side of the control protocol.
#pragma once

#include <atomic>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/json.h"

namespace millrace::control {

struct CallOptions {
  // Between two lines of the answer. Handlers that take long send progress several times a second.
  absl::Duration line_timeout = absl::Seconds(30);
  // Set by a signal handler; looked at whenever a wait ends, also by the signal itself. May be
  // null. The daemon notices the closed connection and stops.
  const std::atomic<bool>* cancelled = nullptr;
};

// Sends one request to the daemon that listens at `socket_path` and returns its last line, without
// an error in it. `on_progress` gets every line before the last.
//   Unavailable       nobody listens there, or the daemon died while it answered
//   PermissionDenied  the socket belongs to another user
//   DeadlineExceeded  no line in time
//   Cancelled         `cancelled` became true
//   anything else     the daemon's own error
absl::StatusOr<base::Json> Call(const std::string& socket_path, const base::Json& request,
                                const CallOptions& options,
                                absl::FunctionRef<void(const base::Json& line)> on_progress);

// The same for requests that answer with one line.
absl::StatusOr<base::Json> Call(const std::string& socket_path, absl::string_view op);

}  // namespace millrace::control
