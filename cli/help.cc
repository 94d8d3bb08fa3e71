#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "common/base/flags.h"

namespace millrace::cli {
namespace {

constexpr char kHelp[] = R"(Usage: millrace COMMAND [ARGUMENT...]

Shows the data of a store as files, at the speed of the local disk.

Commands:
  mount SOURCE... MOUNTPOINT    show a store below a directory
  umount MOUNTPOINT             end a mount; its cache stays
  status [MOUNTPOINT]           what the mounts do: cache, hit ratio, throughput, errors
  warm MOUNTPOINT [PATH...]     load data into the cache before it is needed
  evict MOUNTPOINT [PATH...]    drop data from the cache
  upgrade [MOUNTPOINT...]       replace the daemons of mounts with the installed version, in use
  worker status|drain|load|...  what cache workers have, and how they leave
  bench epoch|read|stat|...     load generators, against any directory
  version                       print the version
  help [COMMAND]                print this text, or that of a command

Examples:
  millrace mount s3://bucket/imagenet /data
  millrace warm /data train
  millrace status /data --watch
  millrace umount /data

Exit status: 0 done; 1 failed; 2 wrong usage.
)";

}  // namespace

std::string HelpOfAll() { return kHelp; }

std::string UnknownCommand(const std::string& word) {
  const std::string nearest =
      base::Nearest(word, {"mount", "umount", "status", "warm", "evict", "upgrade", "worker",
                           "bench", "version", "help"});
  return absl::StrCat("unknown command \"", word, "\"",
                      nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"),
                      nearest.empty() ? ";" : "", " millrace help lists all commands");
}

int Report(const absl::Status& status) {
  if (!status.ok()) fprintf(stderr, "millrace: %s\n", base::ErrorText(status).c_str());
  return base::ExitCode(status);
}

}  // namespace millrace::cli
