// millrace status: what the mounts of this user do.
#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <set>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/mount_lookup.h"
#include "cli/status_view.h"
#include "cli/terminal.h"
#include "common/base/clock.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"
#include "common/control/control_client.h"
#include "common/control/protocol.h"

namespace millrace::cli {
namespace {

enum class Format { kText, kJson, kJsonLine };

struct StatusFlags {
  bool json = false;
  bool watch = false;
  absl::Duration interval = absl::Seconds(1);
};

base::HelpText Help() {
  return {.usage = "millrace status [OPTION...] [MOUNTPOINT]",
          .summary =
              "Shows the mounts of this user, or one of them in full: cache tiers, hit "
              "ratio, throughput, errors. Reads that the kernel serves by itself are not "
              "counted in any figure.",
          .examples = {"millrace status", "millrace status /data --watch",
                       "millrace status --json /data"},
          .notes =
              "Exit status: 0 shown; 1 the mount does not exist or does not answer; 2 wrong "
              "usage."};
}

std::string ToText(const base::Json& json, Format format) {
  return (format == Format::kJson ? base::JsonPretty(json) : base::JsonLine(json)) + "\n";
}

// The fields a program reads: the daemon's own answer, plus its state.
absl::StatusOr<base::Json> Ask(const control::FoundMount& mount) {
  ASSIGN_OR_RETURN(base::Json answer, control::Call(mount.paths.socket(), control::kOpStatus));
  base::Json status = base::JsonField(answer, "status");
  if (!status.is_object()) {
    return absl::InternalError(absl::StrCat("the daemon of ", mount.record.mountpoint,
                                            " gave no status; is it of another version?"));
  }
  const std::string crash_loop = base::JsonString(base::JsonField(status, "keeper"), "crash_loop");
  status["state"] = crash_loop.empty() ? "serving" : "crash loop";
  return status;
}

absl::StatusOr<std::string> ShowOne(const std::string& mountpoint, Format format) {
  ASSIGN_OR_RETURN(const control::FoundMount mount, FindLivingMount(mountpoint));
  ASSIGN_OR_RETURN(const base::Json status, Ask(mount));
  if (format != Format::kText) return ToText(status, format);
  return RenderStatus(control::StatusReportFromJson(status), base::RealClock()->Now());
}

// Mounts with a record. One whose daemon died is shown while the kernel still has the mount;
// otherwise nothing but its run directory is left, and that goes now.
std::vector<control::FoundMount> KnownMounts() {
  std::set<std::string> mounted;
  const absl::StatusOr<std::vector<base::MountEntry>> table = base::ReadMountTable();
  if (table.ok()) {
    for (const base::MountEntry& entry : *table) mounted.insert(entry.mountpoint);
  }
  std::vector<control::FoundMount> known;
  for (control::FoundMount& mount : control::ListMountRecords()) {
    if (table.ok() && !mount.alive && mounted.count(mount.record.mountpoint) == 0) {
      fprintf(stderr, "millrace: the daemon of %s died; cleaned up what it left\n",
              Printable(mount.record.mountpoint).c_str());
      control::RemoveStale(mount.paths);
      continue;
    }
    known.push_back(std::move(mount));
  }
  return known;
}

absl::StatusOr<std::string> ShowAll(Format format) {
  std::vector<MountLine> lines;
  base::Json objects = base::Json::array();
  for (const control::FoundMount& mount : KnownMounts()) {
    MountLine line;
    line.mountpoint = mount.record.mountpoint;
    line.sources = mount.record.sources;
    base::Json object = {{"mountpoint", line.mountpoint}, {"pid", mount.record.pid}};
    const absl::StatusOr<base::Json> status =
        mount.alive ? Ask(mount) : absl::UnavailableError("the daemon is gone");
    if (status.ok()) {
      line.state = base::JsonString(*status, "state");
      line.report = control::StatusReportFromJson(*status);
      object = *status;
    } else {
      line.state = mount.alive ? "no answer" : "dead";
      object["state"] = line.state;
      object["error"] = base::ErrorText(status.status());
    }
    lines.push_back(std::move(line));
    objects.push_back(std::move(object));
  }
  if (format != Format::kText) return ToText({{"mounts", std::move(objects)}}, format);
  std::string text = RenderMounts(lines, base::RealClock()->Now());
  for (const MountLine& line : lines) {
    if (line.state == "dead") {
      absl::StrAppend(&text, "\nthe processes of ", Printable(line.mountpoint),
                      " died; clean up with: millrace umount ", Printable(line.mountpoint), "\n");
    } else if (line.state == "crash loop") {
      absl::StrAppend(&text, "\n", Printable(line.mountpoint), ": ",
                      Printable(line.report.keeper.crash_loop),
                      "; mend it, then: millrace upgrade ", Printable(line.mountpoint), "\n");
    }
  }
  return text;
}

absl::StatusOr<std::string> Show(const Arguments& mountpoints, Format format) {
  return mountpoints.empty() ? ShowAll(format) : ShowOne(mountpoints[0], format);
}

// Shows again and again until a signal, or until the mount is gone.
absl::Status Watch(const Arguments& mountpoints, const StatusFlags& flags) {
  NoteInterrupts();
  const bool clear = !flags.json && IsTerminal(STDOUT_FILENO);
  while (!Interrupted().load()) {
    ASSIGN_OR_RETURN(const std::string text,
                     Show(mountpoints, flags.json ? Format::kJsonLine : Format::kText));
    // One write: a screen that is cleared and drawn in two would flicker.
    const std::string screen = clear ? absl::StrCat("\033[H\033[2J", text) : text;
    if (fputs(screen.c_str(), stdout) < 0 || fflush(stdout) != 0) return absl::OkStatus();
    poll(nullptr, 0, static_cast<int>(absl::ToInt64Milliseconds(flags.interval)));
  }
  return absl::OkStatus();
}

}  // namespace

int StatusMain(const Arguments& arguments) {
  StatusFlags chosen;
  base::FlagSet flags(Help());
  flags.Switch(
      "json", &chosen.json,
      "print JSON (with --watch one line each time); without a mountpoint {\"mounts\": [...]}");
  flags.Switch("watch", &chosen.watch, "show again every second until Ctrl-C");
  flags.Duration("interval", &chosen.interval, "with --watch: how often (default 1s)");
  const absl::StatusOr<base::ParsedArguments> parsed = flags.Parse(arguments);
  if (!parsed.ok()) return Report(parsed.status());
  if (parsed->help) {
    fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (const absl::Status applied = flags.Apply(*parsed); !applied.ok()) return Report(applied);
  if (parsed->positionals.size() > 1) {
    return Report(absl::InvalidArgumentError(
        "one mountpoint at a time; without one, status lists all mounts"));
  }
  if (chosen.interval < absl::Milliseconds(100) || chosen.interval > absl::Hours(1)) {
    return Report(absl::InvalidArgumentError("--interval must be between 100ms and 1h"));
  }
  if (chosen.watch) return Report(Watch(parsed->positionals, chosen));
  const absl::StatusOr<std::string> text =
      Show(parsed->positionals, chosen.json ? Format::kJson : Format::kText);
  if (text.ok()) fputs(text->c_str(), stdout);
  return Report(text.status());
}

}  // namespace millrace::cli
