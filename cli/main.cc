// millrace: the user's command. It holds nothing; daemons do the work (fuse/daemon).
#include <signal.h>

#include <cstdio>

#include "absl/strings/string_view.h"
#include "cli/bench/bench.h"
#include "cli/commands.h"
#include "common/base/version.h"

namespace millrace::cli {
namespace {

int Version() {
  printf("millrace %s\n", base::kVersion);
  return 0;
}

int Run(int argc, char** argv) {
  // A reader that leaves (`millrace status | head`) is an error of that write, not a death.
  signal(SIGPIPE, SIG_IGN);
  if (argc < 2) {
    fputs(HelpOfAll().c_str(), stderr);
    return 2;
  }
  absl::string_view command = argv[1];
  Arguments arguments(argv + 2, argv + argc);
  if (command == "help" || command == "--help" || command == "-h") {
    if (arguments.empty()) {
      fputs(HelpOfAll().c_str(), stdout);
      return 0;
    }
    command = argv[2];
    // `help worker drain` is `worker drain --help`.
    arguments.assign(argv + 3, argv + argc);
    arguments.push_back("--help");
  }
  if (command == "mount") return MountMain(arguments);
  if (command == "umount" || command == "unmount") return UmountMain(arguments);
  if (command == "warm") return WarmMain(arguments);
  if (command == "evict") return EvictMain(arguments);
  if (command == "status") return StatusMain(arguments);
  if (command == "upgrade") return UpgradeMain(arguments);
  if (command == "worker") return WorkerMain(arguments);
  if (command == "bench") return bench::BenchMain(argc - 1, argv + 1);
  if (command == "version" || command == "--version") return Version();
  fprintf(stderr, "millrace: %s\n", UnknownCommand(std::string(command)).c_str());
  return 2;
}

}  // namespace
}  // namespace millrace::cli

int main(int argc, char** argv) { return millrace::cli::Run(argc, argv); }
