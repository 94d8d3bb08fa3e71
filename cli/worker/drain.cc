// millrace worker drain: hands what a worker has to those who own it once it has left.
#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "cli/progress_reporter.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "cli/worker/connection.h"
#include "cli/worker/worker_commands.h"
#include "cli/worker/worker_view.h"
#include "common/base/clock.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace millrace::cli {
namespace {

// A worker reports at least every half second, and may have a slow disk to look through first.
constexpr absl::Duration kSilenceMax = absl::Minutes(1);

struct DrainFlags {
  bool json = false;
  bool wait = true;
  bool no_wait = false;
  ConnectionFlags connection;
};

base::HelpText Help() {
  return {.usage = "millrace worker drain [OPTION...] ADDRESS",
          .summary =
              "Hands what a worker has over to the workers that own it once this one has left, "
              "without asking the store again, and shows how far that is. The worker serves on, "
              "also afterwards, until it is ended with SIGTERM; from now on it gets nothing new. "
              "Ctrl-C stops watching, not the drain: the same command shows it again.",
          .examples = {"millrace worker drain worker-2.cache",
                       "millrace worker drain --no-wait localhost",
                       "millrace worker drain --json 10.0.0.7:7450"},
          .notes =
              "Exit status: 0 all was handed over, or with --no-wait the drain has begun; 1 the "
              "worker does not answer, or parts were not handed over (readers get them from the "
              "store); 2 wrong usage."};
}

absl::Status Verdict(const proto::DrainProgress& result) {
  if (result.extents_failed == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(
      GroupDigits(result.extents_failed), " of ", GroupDigits(result.extents_total),
      " extents were taken by nobody",
      result.last_error.empty() ? ""
                                : absl::StrCat(", the last one: ", Printable(result.last_error)),
      "; readers get them from the store"));
}

absl::Status Drain(const std::string& word, const DrainFlags& flags) {
  NoteInterrupts();
  ASSIGN_OR_RETURN(std::vector<proto::WorkerClientOptions> found,
                   FindWorkers({word}, flags.connection));
  if (found.size() != 1) {
    return absl::InvalidArgumentError(absl::StrCat("\"", Printable(word), "\" names ", found.size(),
                                                   " workers; they are drained one by one"));
  }
  proto::WorkerClientOptions& options = found[0];
  options.answer_timeout = std::max(options.answer_timeout, kSilenceMax);
  ASSIGN_OR_RETURN(const std::unique_ptr<proto::WorkerClient> client,
                   proto::WorkerClient::Create(options));
  ProgressReporter reporter(flags.json, "extents");
  bool begun = false;
  const absl::Duration start = base::RealClock()->Monotonic();
  const absl::StatusOr<proto::DrainProgress> drained =
      client->Drain(/*watch_only=*/false, [&](const proto::DrainProgress& progress) {
        begun = true;
        if (flags.wait) reporter.Show(BarOf(progress), ToJson(progress));
        return flags.wait;
      });
  reporter.Clear();
  const std::string again = absl::StrCat("millrace worker drain ", options.address);
  if (!flags.wait && begun) {
    if (!flags.json)
      printf("%s is being drained; watch it with: %s\n", options.address.c_str(), again.c_str());
    return absl::OkStatus();
  }
  if (absl::IsCancelled(drained.status()) && Interrupted().load()) {
    return absl::CancelledError(begun ? absl::StrCat("the drain goes on; watch it with: ", again)
                                      : "cancelled");
  }
  RETURN_IF_ERROR(drained.status());
  if (flags.json) {
    printf("%s\n", base::JsonLine(ToJson(*drained)).c_str());
  } else {
    const absl::Duration elapsed = base::RealClock()->Monotonic() - start;
    printf("%s handed over %s in %s extents (%s); it serves on until it is ended\n",
           options.address.c_str(), base::FormatBytes(drained->bytes_done).c_str(),
           GroupDigits(drained->extents_done).c_str(),
           ShortDuration(absl::ToInt64Seconds(elapsed + absl::Milliseconds(999))).c_str());
  }
  return Verdict(*drained);
}

}  // namespace

int WorkerDrainMain(const Arguments& arguments) {
  DrainFlags chosen;
  base::FlagSet flags(Help());
  flags.Switch("wait", &chosen.wait, "watch until all is handed over (the default)");
  flags.Switch("no-wait", &chosen.no_wait, "return when the drain has begun");
  flags.Switch("json", &chosen.json, "print JSON, one object a line");
  Declare(&chosen.connection, &flags);
  const absl::StatusOr<base::ParsedArguments> parsed = flags.Parse(arguments);
  if (!parsed.ok()) return Report(parsed.status());
  if (parsed->help) {
    fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (const absl::Status applied = flags.Apply(*parsed); !applied.ok()) return Report(applied);
  if (parsed->positionals.size() != 1) {
    return Report(absl::InvalidArgumentError(
        "one worker at a time: millrace worker drain ADDRESS, as in worker-2.cache:7450"));
  }
  if (chosen.no_wait) chosen.wait = false;
  return Report(Drain(parsed->positionals[0], chosen));
}

}  // namespace millrace::cli
