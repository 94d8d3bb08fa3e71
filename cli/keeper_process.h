// The programs of a mount from the command's side: found, started in the background, waited for.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/unique_fd.h"

namespace millrace::cli {

// A program of ours beside this one, as millrace-keeper. NotFound says what to install.
absl::StatusOr<std::string> FindProgram(absl::string_view name);

// Replaces this process with the program. Returns only on failure.
absl::Status ExecProgram(const std::string& program, const std::vector<std::string>& arguments);

struct StartedKeeper {
  pid_t pid = 0;
  base::UniqueFd ready;   // Read end of its ready pipe (common/control/ready.h).
  base::UniqueFd output;  // What it printed before it had a log.
};

// Starts the keeper in a session of its own, standard input from /dev/null, and gives it a ready
// pipe.
absl::StatusOr<StartedKeeper> StartKeeper(const std::string& program,
                                          const std::vector<std::string>& arguments);

// Starts a keeper for a daemon that has lost its own, and returns when it has it. The error is the
// keeper's.
absl::Status StartAdopting(const std::string& program, const std::string& mountpoint);

// Reaps the process if it ends within `timeout`; false otherwise.
bool WaitForExit(pid_t pid, absl::Duration timeout);

}  // namespace millrace::cli
