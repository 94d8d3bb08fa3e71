// millrace evict: drops data from the cache of a mount.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/mount_lookup.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/control/control_client.h"
#include "common/control/protocol.h"

namespace millrace::cli {
namespace {

absl::Status Evict(const std::string& mountpoint, const Arguments& paths, bool json) {
  ASSIGN_OR_RETURN(const control::FoundMount mount, FindLivingMount(mountpoint));
  control::PathsRequest request;
  request.op = control::kOpEvict;
  ASSIGN_OR_RETURN(request.paths, PathsInside(mount.record.mountpoint, CurrentDirectory(), paths));
  control::CallOptions options;
  // Unlinking millions of files takes a while, and there is no progress to show.
  options.line_timeout = absl::Minutes(30);
  ASSIGN_OR_RETURN(const base::Json answer,
                   control::Call(mount.paths.socket(), control::ToJson(request), options,
                                 [](const base::Json&) {}));
  if (json) {
    printf("%s\n", base::JsonLine(answer).c_str());
  } else {
    printf("%s freed\n", base::FormatBytes(base::JsonUnsigned(answer, "bytes_freed")).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

int EvictMain(const Arguments& arguments) {
  bool json = false;
  base::FlagSet flags(
      {.usage = "millrace evict [OPTION...] MOUNTPOINT [PATH...]",
       .summary =
           "Drops the data below the paths (default: everything) from the cache of a mount. "
           "Readers do not notice: what they read next comes from the store again. What cache "
           "workers have stays there; millrace worker evict drops it.",
       .examples = {"millrace evict /data", "millrace evict /data train/old"}});
  flags.Switch("json", &json, "print JSON");
  const absl::StatusOr<base::ParsedArguments> parsed = flags.Parse(arguments);
  if (!parsed.ok()) return Report(parsed.status());
  if (parsed->help) {
    fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (const absl::Status applied = flags.Apply(*parsed); !applied.ok()) return Report(applied);
  if (parsed->positionals.empty()) {
    return Report(absl::InvalidArgumentError(
        "which mount? millrace evict MOUNTPOINT [PATH...]; millrace status lists the mounts"));
  }
  const Arguments paths(parsed->positionals.begin() + 1, parsed->positionals.end());
  return Report(Evict(parsed->positionals[0], paths, json));
}

}  // namespace millrace::cli
