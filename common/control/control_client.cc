#include "common/control/control_client.h"

#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/control/line_socket.h"
#include "common/control/protocol.h"

namespace millrace::control {
namespace {

absl::StatusOr<base::UniqueFd> Connect(const std::string& socket_path) {
  absl::StatusOr<base::UniqueFd> fd = ConnectTo(socket_path, SOCK_STREAM);
  if (fd.ok()) {
    RETURN_IF_ERROR(CheckPeer(fd->get()));
    return fd;
  }
  const std::optional<int> error = base::ErrnoOf(fd.status());
  if (error == ENOENT || error == ECONNREFUSED) {
    return absl::UnavailableError(absl::StrCat("no daemon listens at ", socket_path));
  }
  return std::move(fd).status();
}

bool IsSet(const std::atomic<bool>* flag) { return flag != nullptr && flag->load(); }

}  // namespace

absl::StatusOr<base::Json> Call(const std::string& socket_path, const base::Json& request,
                                const CallOptions& options,
                                absl::FunctionRef<void(const base::Json& line)> on_progress) {
  ASSIGN_OR_RETURN(const base::UniqueFd fd, Connect(socket_path));
  const std::string text = base::JsonLine(request);
  if (text.size() >= kRequestSizeMax) {
    return absl::InvalidArgumentError(absl::StrCat("the request has ", text.size(),
                                                   " bytes, more than the ", kRequestSizeMax,
                                                   " a daemon takes; give fewer paths at once"));
  }
  // A daemon that refuses answers and closes before it has read the request: a failed write is
  // not the end, its line may be there.
  const absl::Status written = WriteLine(fd.get(), text, options.line_timeout);
  LineReader reader(fd.get(), kResponseLineMax);
  while (true) {
    if (IsSet(options.cancelled)) return absl::CancelledError("cancelled");
    absl::StatusOr<absl::optional<std::string>> line = reader.ReadLine(options.line_timeout);
    if (absl::IsCancelled(line.status())) continue;  // A signal: the flag says whether it counts.
    RETURN_IF_ERROR(line.status());
    if (!line->has_value()) {
      RETURN_IF_ERROR(written);
      return absl::UnavailableError("the daemon closed the connection before it had answered");
    }
    ASSIGN_OR_RETURN(base::Json json, base::ParseJson(**line));
    if (base::JsonBool(json, "done")) {
      RETURN_IF_ERROR(ErrorFromLine(json));
      return json;
    }
    on_progress(json);
  }
}

absl::StatusOr<base::Json> Call(const std::string& socket_path, absl::string_view op) {
  return Call(socket_path, {{"op", std::string(op)}}, CallOptions(), [](const base::Json&) {});
}

}  // namespace millrace::control
