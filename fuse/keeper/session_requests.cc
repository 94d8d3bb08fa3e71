// What a session answers to commands: at the keeper's own socket, and at the daemon's while there
// is no daemon.
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/version.h"
#include "common/control/protocol.h"
#include "fuse/keeper/session_upgrade.h"

namespace millrace::keeper {

void Session::HandleKeeperRequest(const base::Json& request, LineServer::Answer answer) {
  const std::string op = base::JsonString(request, "op");
  if (op == control::kOpPing) {
    const base::Json pong = {{"version", std::string(base::kVersion)},
                             {"pid", getpid()},
                             {"daemon_pid", daemon_pid()},
                             {"crash_loop", crash_loop_}};
    return answer(pong);
  }
  if (op == control::kOpUpgrade) {
    const std::string program = base::JsonString(request, "program");
    if (program.empty() || program[0] != '/') {
      return answer(absl::InvalidArgumentError("an upgrade needs the path of a program"));
    }
    return Upgrade(program, [answer](const absl::StatusOr<Upgraded>& done) {
      if (!done.ok()) return answer(done.status());
      answer(control::ToJson(
          control::UpgradeResult{done->from, done->to, absl::ToDoubleMilliseconds(done->pause)}));
    });
  }
  if (op == control::kOpStop) {
    answer(base::Json::object());
    return End();
  }
  answer(absl::InvalidArgumentError(absl::StrCat("unknown request \"", op, "\" to a keeper")));
}

void Session::HandleOrphanedRequest(const base::Json& request, const LineServer::Answer& answer) {
  const std::string op = base::JsonString(request, "op");
  if (op != control::kOpStatus) {
    return answer(absl::UnavailableError(
        absl::StrCat(options_.mountpoint, " has no daemon: ", crash_loop_,
                     "; mend it, then: millrace upgrade ", options_.mountpoint)));
  }
  control::StatusReport report;
  report.mountpoint = options_.mountpoint;
  report.version = base::kVersion;
  report.started_unix = static_cast<uint64_t>(absl::ToUnixSeconds(started_));
  report.sessions_survived = memory_.TakeoverCount();
  report.keeper = StatusOfKeeper(memory_, /*alive=*/true);
  report.keeper.crash_loop = crash_loop_;
  const base::Json status = {{"status", control::ToJson(report)}};
  answer(status);
}

}  // namespace millrace::keeper
