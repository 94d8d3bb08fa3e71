// millrace worker: what is done with workers by gRPC, in a program of its own. To load gRPC and
// what it needs takes longer than all the rest of a start (8 ms instead of 3), which every other
// command would pay.
#include "cli/commands.h"
#include "cli/keeper_process.h"
#include "common/base/status_macros.h"

namespace millrace::cli {
namespace {

absl::Status Run(const Arguments& arguments) {
  ASSIGN_OR_RETURN(const std::string program, FindProgram("millrace-worker-ctl"));
  return ExecProgram(program, arguments);
}

}  // namespace

int WorkerMain(const Arguments& arguments) { return Report(Run(arguments)); }

}  // namespace millrace::cli
