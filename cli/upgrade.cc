// millrace upgrade: replaces daemons with the installed program, while their mounts are in use.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/keeper_process.h"
#include "cli/mount_lookup.h"
#include "cli/terminal.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"
#include "common/control/control_client.h"
#include "common/control/protocol.h"

namespace millrace::cli {
namespace {

// A keeper gives a new daemon half a minute to get ready, and as long to go on.
constexpr absl::Duration kUpgradeMax = absl::Minutes(3);

base::HelpText Help() {
  return {.usage = "millrace upgrade [OPTION...] [MOUNTPOINT...]",
          .summary =
              "Replaces the daemons of mounts (default: all of this user) with the version that is "
              "installed beside this command. Programs that read notice nothing: the same mount, "
              "the same open files. A mount whose keeper died gets a new one, and one whose daemon "
              "crashed too often to be started again is started again.",
          .examples = {"millrace upgrade", "millrace upgrade /data"},
          .notes =
              "Exit status: 0 replaced; 1 the new daemon did not become ready, and the old one "
              "serves on; 2 wrong usage."};
}

absl::StatusOr<control::UpgradeResult> Ask(const control::FoundMount& mount,
                                           const std::string& program) {
  control::CallOptions options;
  options.line_timeout = kUpgradeMax;
  const base::Json request = {{"op", std::string(control::kOpUpgrade)}, {"program", program}};
  ASSIGN_OR_RETURN(const base::Json answer, control::Call(mount.paths.keeper_socket(), request,
                                                          options, [](const base::Json&) {}));
  return control::UpgradeResultFromJson(answer);
}

bool HasKeeper(const control::FoundMount& mount) {
  return !absl::IsUnavailable(
      control::Call(mount.paths.keeper_socket(), control::kOpPing).status());
}

absl::Status Upgrade(const control::FoundMount& mount, bool json) {
  ASSIGN_OR_RETURN(const std::string program, FindProgram("millrace-fuse"));
  const std::string& mountpoint = mount.record.mountpoint;
  if (!HasKeeper(mount)) {
    ASSIGN_OR_RETURN(const std::string keeper, FindProgram("millrace-keeper"));
    RETURN_IF_ERROR(StartAdopting(keeper, mountpoint));
    if (!json) printf("%s  has a keeper again\n", Printable(mountpoint).c_str());
  }
  const absl::StatusOr<control::UpgradeResult> result = Ask(mount, program);
  if (!result.ok()) {
    return absl::Status(result.status().code(), absl::StrCat(Printable(mountpoint), ": ",
                                                             base::ErrorText(result.status())));
  }
  if (json) {
    base::Json line = control::ToJson(*result);
    line["mountpoint"] = mountpoint;
    printf("%s\n", base::JsonLine(line).c_str());
  } else if (result->from.empty()) {
    printf("%s  started again, millrace %s\n", Printable(mountpoint).c_str(), result->to.c_str());
  } else {
    printf("%s  millrace %s -> %s, %s ms without a daemon\n", Printable(mountpoint).c_str(),
           result->from.c_str(), result->to.c_str(),
           absl::StrFormat("%.1f", result->pause_ms).c_str());
  }
  return absl::OkStatus();
}

std::vector<control::FoundMount> LivingMounts() {
  std::vector<control::FoundMount> mounts = control::ListMountRecords();
  mounts.erase(std::remove_if(mounts.begin(), mounts.end(),
                              [](const control::FoundMount& mount) { return !mount.alive; }),
               mounts.end());
  return mounts;
}

}  // namespace

int UpgradeMain(const Arguments& arguments) {
  bool json = false;
  base::FlagSet flags(Help());
  flags.Switch("json", &json, "print JSON, one object a mount");
  const absl::StatusOr<base::ParsedArguments> parsed = flags.Parse(arguments);
  if (!parsed.ok()) return Report(parsed.status());
  if (parsed->help) {
    fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (const absl::Status applied = flags.Apply(*parsed); !applied.ok()) return Report(applied);
  int exit_code = 0;
  std::vector<control::FoundMount> mounts;
  if (parsed->positionals.empty()) {
    mounts = LivingMounts();
    if (mounts.empty() && !json) printf("no mounts\n");
  }
  for (const std::string& mountpoint : parsed->positionals) {
    absl::StatusOr<control::FoundMount> mount = FindLivingMount(mountpoint);
    exit_code = std::max(exit_code, Report(mount.status()));
    if (mount.ok()) mounts.push_back(*std::move(mount));
  }
  for (const control::FoundMount& mount : mounts) {
    exit_code = std::max(exit_code, Report(Upgrade(mount, json)));
    fflush(stdout);
  }
  return exit_code;
}

}  // namespace millrace::cli
