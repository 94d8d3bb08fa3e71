// Starts a daemon: a program with exactly the descriptors, the user and the capabilities it is
// meant to have, and nothing else of the keeper's.
//
// The child is a plain fork, of a process that is small and has no threads that matter here;
// between fork and exec it makes system calls only. What fails in it there comes back as the
// status of Launch, with the step that failed. Safe for concurrent use.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace millrace::keeper {

// Who a process without privilege runs as.
struct Identity {
  uint32_t uid = 0;
  uint32_t gid = 0;
  // CAP_DAC_READ_SEARCH is kept, and nothing else: it reads every file and enters every directory.
  bool read_search = false;
};

struct LaunchOptions {
  // The program, open (O_PATH is enough). Executed through the descriptor, so that the new user
  // need not reach its path, and so that it is the file that was opened, whatever is there by now.
  int program_fd = -1;
  std::vector<std::string> arguments;  // argv; the first is the name that ps shows.
  // Of ours, to its number in the child. Everything else is closed; of the standard descriptors
  // those that are not named here are /dev/null.
  std::vector<std::pair<int, int>> descriptors;
  // None: the child stays who we are, with the capabilities we have.
  std::optional<Identity> identity;
  // Left as it is where the kernel forbids to change it (a user may not lower it).
  int oom_score_adj = 0;
};

struct Child {
  pid_t pid = -1;
  base::UniqueFd pidfd;  // Readable once the process ended; reaping it is the caller's.
};

// The child has a session of its own, default signal actions, no signal blocked, as many
// descriptors as its hard limit allows, no_new_privs, and lives on when we end.
//
// Returns once the program runs; the process may end at any time after. An error has the errno of
// the step that failed (base::ErrnoOf), and then there is no child.
absl::StatusOr<Child> Launch(const LaunchOptions& options);

// Turns this process into `identity`: ids, groups, and every set of capabilities, the bounding set
// included. Null, or the step that failed, with errno. REQUIRES: the process has one thread and
// executes a program next or ends soon; it is async-signal-safe, for the child of a fork.
const char* AssumeIdentity(const Identity& identity);

}  // namespace millrace::keeper
