#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/worker/worker_commands.h"
#include "common/base/flags.h"

namespace millrace::cli {
namespace {

constexpr char kHelp[] = R"(Usage: millrace worker COMMAND [ARGUMENT...]

Speaks with cache workers on their control port.

Commands:
  status [ADDRESS...]                  what they hold, serve and see of each other
  drain ADDRESS                        hand over what one has, before it leaves
  load ADDRESS[,...] SOURCE [PATH...]  load data into their caches, each its share
  evict ADDRESS[,...] SOURCE [PATH...] drop data from their caches

`millrace worker COMMAND --help` explains one of them.

Exit status: 0 done; 1 failed; 2 wrong usage.
)";

}  // namespace

int WorkerCtlMain(const Arguments& arguments) {
  if (arguments.empty()) {
    fputs(kHelp, stderr);
    return 2;
  }
  const std::string& command = arguments[0];
  const Arguments rest(arguments.begin() + 1, arguments.end());
  if (command == "--help" || command == "-h" || command == "help") {
    fputs(kHelp, stdout);
    return 0;
  }
  if (command == "status") return WorkerStatusMain(rest);
  if (command == "drain") return WorkerDrainMain(rest);
  if (command == "load") return WorkerLoadMain(rest);
  if (command == "evict") return WorkerEvictMain(rest);
  const std::string nearest = base::Nearest(command, {"status", "drain", "load", "evict"});
  return Report(absl::InvalidArgumentError(
      absl::StrCat("unknown command \"worker ", command, "\"",
                   nearest.empty() ? ";" : absl::StrCat("; did you mean ", nearest, "?"),
                   " millrace worker --help lists all commands")));
}

}  // namespace millrace::cli
