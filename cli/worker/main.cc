// millrace-worker-ctl: what `millrace worker` starts.
#include <signal.h>

#include "cli/worker/worker_commands.h"
#include "common/base/log.h"

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  // What gRPC complains about is in the error that the command shows.
  millrace::base::SetLogThreshold(millrace::base::Severity::kError);
  return millrace::cli::WorkerCtlMain(millrace::cli::Arguments(argv + 1, argv + argc));
}
