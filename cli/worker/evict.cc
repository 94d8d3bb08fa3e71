// millrace worker evict: drops data from workers.
#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "cli/terminal.h"
#include "cli/worker/connection.h"
#include "cli/worker/worker_commands.h"
#include "common/base/flags.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace millrace::cli {
namespace {

base::HelpText Help() {
  return {.usage = "millrace worker evict [OPTION...] ADDRESS[,ADDRESS...] SOURCE [PATH...]",
          .summary =
              "Drops the data below the paths of a source (default: everything) from the caches of "
              "workers. Readers do not notice: what they read next comes from the store again. "
              "SOURCE is one that `millrace worker status` shows; `millrace evict` drops what a "
              "mount itself has kept.",
          .examples = {"millrace worker evict worker-0.cache s3://bucket/data",
                       "millrace worker evict dns:cache:7450 s3://bucket/data train/old"},
          .notes = "Exit status: 0 dropped; 1 a worker does not answer; 2 wrong usage."};
}

absl::StatusOr<uint64_t> EvictFrom(const proto::WorkerClientOptions& options,
                                   const std::string& source, const Arguments& paths) {
  ASSIGN_OR_RETURN(const std::unique_ptr<proto::WorkerClient> client,
                   proto::WorkerClient::Create(options));
  uint64_t freed = 0;
  for (const std::string& path : paths) {
    ASSIGN_OR_RETURN(const uint64_t bytes, client->Evict({source, path}));
    freed += bytes;
  }
  return freed;
}

// Tries all workers; the first error is told.
absl::Status Evict(const Arguments& words, bool json, ConnectionFlags connection) {
  NoteInterrupts();
  // Unlinking millions of files takes a while, and there is no progress to show.
  ASSIGN_OR_RETURN(std::vector<proto::WorkerClientOptions> workers,
                   FindWorkers({words[0]}, connection));
  Arguments paths(words.begin() + 2, words.end());
  if (paths.empty()) paths.push_back("");
  for (std::string& path : paths) path = std::string(absl::StripSuffix(path, "/"));
  uint64_t freed = 0;
  absl::Status status;
  for (proto::WorkerClientOptions& options : workers) {
    options.answer_timeout = std::max(options.answer_timeout, absl::Minutes(30));
    const absl::StatusOr<uint64_t> bytes = EvictFrom(options, words[1], paths);
    if (bytes.ok()) freed += *bytes;
    status.Update(bytes.status());
  }
  if (json) {
    printf("%s\n", base::JsonLine({{"bytes_freed", freed}}).c_str());
  } else {
    printf("%s freed\n", base::FormatBytes(freed).c_str());
  }
  return status;
}

}  // namespace

int WorkerEvictMain(const Arguments& arguments) {
  bool json = false;
  ConnectionFlags connection;
  base::FlagSet flags(Help());
  flags.Switch("json", &json, "print JSON");
  Declare(&connection, &flags);
  const absl::StatusOr<base::ParsedArguments> parsed = flags.Parse(arguments);
  if (!parsed.ok()) return Report(parsed.status());
  if (parsed->help) {
    fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (const absl::Status applied = flags.Apply(*parsed); !applied.ok()) return Report(applied);
  if (parsed->positionals.size() < 2) {
    return Report(absl::InvalidArgumentError(
        "of which workers, and which source? millrace worker evict ADDRESS SOURCE [PATH...]; "
        "millrace worker status ADDRESS shows its sources"));
  }
  return Report(Evict(parsed->positionals, json, connection));
}

}  // namespace millrace::cli
