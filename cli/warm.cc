// millrace warm: loads data into the cache before somebody waits for it.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/mount_lookup.h"
#include "cli/progress_reporter.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "common/base/clock.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/control/control_client.h"
#include "common/control/protocol.h"

namespace millrace::cli {
namespace {

base::HelpText Help() {
  return {
      .usage = "millrace warm [OPTION...] MOUNTPOINT [PATH...]",
      .summary =
          "Loads the data below the paths (default: everything) into the cache of a mount; what "
          "the mount does not keep itself, into the caches of its workers, all at once. What is "
          "there already is not loaded again. Ctrl-C stops; what was loaded stays.",
      .examples = {"millrace warm /data", "millrace warm /data train val/000",
                   "millrace warm --json /data"},
      .notes = "Exit status: 0 all is in the cache; 1 some is not; 2 wrong usage."};
}

absl::Status Verdict(const control::WarmProgress& result) {
  if (result.files_failed > 0) {
    return absl::UnavailableError(absl::StrCat(
        GroupDigits(result.files_failed), " of ", GroupDigits(result.files_total),
        " files could not be loaded",
        result.last_error.empty() ? ""
                                  : absl::StrCat(", the last one: ", Printable(result.last_error)),
        "; run the command again to try them again"));
  }
  if (result.bytes_refused > 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the cache is full: ", base::FormatBytes(result.bytes_refused),
        " were not kept; give the mount or its workers a larger --tier quota, or evict "
        "other data"));
  }
  return absl::OkStatus();
}

absl::Status Warm(const std::string& mountpoint, const Arguments& paths, bool json) {
  ASSIGN_OR_RETURN(const control::FoundMount mount, FindLivingMount(mountpoint));
  control::PathsRequest request;
  request.op = control::kOpWarm;
  ASSIGN_OR_RETURN(request.paths, PathsInside(mount.record.mountpoint, CurrentDirectory(), paths));
  NoteInterrupts();
  control::CallOptions options;
  options.cancelled = &Interrupted();
  // Names are counted before the first line of progress: minutes, in a store of many millions.
  options.line_timeout = absl::Minutes(30);
  ProgressReporter reporter(json, "files");
  const absl::Duration start = base::RealClock()->Monotonic();
  const absl::StatusOr<base::Json> answer = control::Call(
      mount.paths.socket(), control::ToJson(request), options,
      [&](const base::Json& line) { reporter.Show(control::WarmProgressFromJson(line), line); });
  reporter.Clear();
  if (absl::IsCancelled(answer.status())) {
    return absl::CancelledError("cancelled; what was loaded so far stays in the cache");
  }
  RETURN_IF_ERROR(answer.status());
  const control::WarmProgress result = control::WarmProgressFromJson(*answer);
  if (json) {
    printf("%s\n", base::JsonLine(*answer).c_str());
  } else {
    const absl::Duration elapsed = base::RealClock()->Monotonic() - start;
    printf("%s in %s files are in the cache (%s)\n",
           base::FormatBytes(result.bytes_done - std::min(result.bytes_done, result.bytes_refused))
               .c_str(),
           GroupDigits(result.files_done).c_str(),
           ShortDuration(absl::ToInt64Seconds(elapsed + absl::Milliseconds(999))).c_str());
  }
  return Verdict(result);
}

}  // namespace

int WarmMain(const Arguments& arguments) {
  bool json = false;
  base::FlagSet flags(Help());
  flags.Switch("json", &json, "print JSON, one object a line");
  const absl::StatusOr<base::ParsedArguments> parsed = flags.Parse(arguments);
  if (!parsed.ok()) return Report(parsed.status());
  if (parsed->help) {
    fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (const absl::Status applied = flags.Apply(*parsed); !applied.ok()) return Report(applied);
  if (parsed->positionals.empty()) {
    return Report(absl::InvalidArgumentError(
        "which mount? millrace warm MOUNTPOINT [PATH...]; millrace status lists the mounts"));
  }
  const Arguments paths(parsed->positionals.begin() + 1, parsed->positionals.end());
  return Report(Warm(parsed->positionals[0], paths, json));
}

}  // namespace millrace::cli
