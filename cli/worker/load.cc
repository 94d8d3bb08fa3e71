// millrace worker load: lets workers load data, without a mount.
#include <algorithm>
#include <cstdio>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cli/progress_reporter.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "cli/worker/connection.h"
#include "cli/worker/worker_commands.h"
#include "cli/worker/worker_view.h"
#include "common/base/clock.h"
#include "common/base/flags.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace millrace::cli {
namespace {

constexpr absl::Duration kShowEvery = absl::Milliseconds(250);
// Names are counted before the first byte: minutes, in a store of many millions.
constexpr absl::Duration kSilenceMax = absl::Minutes(30);

base::HelpText Help() {
  return {.usage = "millrace worker load [OPTION...] ADDRESS[,ADDRESS...] SOURCE [PATH...]",
          .summary =
              "Loads the data below the paths of a source (default: everything) into the caches of "
              "workers, each its share, all at once. Name all workers of the pool: what is placed "
              "on others is not loaded. Ctrl-C stops; what was loaded stays.",
          .examples = {"millrace worker load dns:cache:7450 s3://bucket/data",
                       "millrace worker load worker-0,worker-1 s3://bucket/data train"},
          .notes = "Exit status: 0 all is in the caches; 1 some is not; 2 wrong usage."};
}

// What the workers have told so far, and how each has ended.
class Shares {
 public:
  explicit Shares(size_t count) : shares_(count) {}

  void Set(size_t index, const proto::LoadProgress& progress) {
    base::MutexLock lock(&mutex_);
    shares_[index] = progress;
  }
  void End(const absl::Status& status) {
    base::MutexLock lock(&mutex_);
    status_.Update(status);
    ++ended_;
    changed_.NotifyAll();
  }
  // False after `timeout`, or when all have ended.
  bool WaitForMore(absl::Duration timeout) {
    base::MutexLock lock(&mutex_);
    if (ended_ < shares_.size()) changed_.WaitFor(&mutex_, timeout);
    return ended_ < shares_.size();
  }
  absl::Status status() const {
    base::MutexLock lock(&mutex_);
    return status_;
  }
  control::WarmProgress Sum(absl::Duration elapsed) const {
    base::MutexLock lock(&mutex_);
    return SumOf(shares_, elapsed);
  }

 private:
  mutable base::Mutex mutex_;
  base::CondVar changed_;
  std::vector<proto::LoadProgress> shares_ ABSL_GUARDED_BY(mutex_);
  size_t ended_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

absl::Status Verdict(const control::WarmProgress& result) {
  if (result.files_failed > 0) {
    return absl::UnavailableError(absl::StrCat(
        GroupDigits(result.files_failed), " files could not be loaded",
        result.last_error.empty() ? ""
                                  : absl::StrCat(", the last one: ", Printable(result.last_error)),
        "; run the command again to try them again"));
  }
  if (result.bytes_refused > 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the workers are full: ", base::FormatBytes(result.bytes_refused),
                     " were not kept; give them larger --tier quotas, or evict other data"));
  }
  return absl::OkStatus();
}

absl::Status Load(const Arguments& words, bool json, const ConnectionFlags& connection) {
  NoteInterrupts();
  ASSIGN_OR_RETURN(const std::vector<proto::WorkerClientOptions> workers,
                   FindWorkers({words[0]}, connection));
  proto::LoadRequest request{words[1], Arguments(words.begin() + 2, words.end())};
  for (std::string& path : request.paths) path = std::string(absl::StripSuffix(path, "/"));
  std::vector<std::unique_ptr<proto::WorkerClient>> clients;
  for (proto::WorkerClientOptions options : workers) {
    options.answer_timeout = std::max(options.answer_timeout, kSilenceMax);
    ASSIGN_OR_RETURN(std::unique_ptr<proto::WorkerClient> client,
                     proto::WorkerClient::Create(options));
    clients.push_back(std::move(client));
  }
  Shares shares(clients.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < clients.size(); ++i) {
    threads.emplace_back([&, i] {
      const absl::StatusOr<proto::LoadProgress> loaded =
          clients[i]->Load(request, [&](const proto::LoadProgress& progress) {
            shares.Set(i, progress);
            return true;
          });
      shares.End(loaded.status());
    });
  }
  // A file that lies on two workers is counted by both.
  ProgressReporter reporter(json, "parts");
  const absl::Duration start = base::RealClock()->Monotonic();
  const auto sum = [&] { return shares.Sum(base::RealClock()->Monotonic() - start); };
  while (shares.WaitForMore(kShowEvery)) {
    const control::WarmProgress now = sum();
    reporter.Show(now, control::ToJson(now));
  }
  for (std::thread& thread : threads) thread.join();
  reporter.Clear();
  if (absl::IsCancelled(shares.status())) {
    return absl::CancelledError("cancelled; what was loaded so far stays in the caches");
  }
  RETURN_IF_ERROR(shares.status());
  const control::WarmProgress result = sum();
  if (json) {
    printf("%s\n", base::JsonLine(control::ToJson(result)).c_str());
  } else {
    printf("%s are in the caches of %s (%s)\n",
           base::FormatBytes(result.bytes_done - std::min(result.bytes_done, result.bytes_refused))
               .c_str(),
           clients.size() == 1 ? "1 worker" : absl::StrCat(clients.size(), " workers").c_str(),
           ShortDuration(absl::ToInt64Seconds(base::RealClock()->Monotonic() - start +
                                              absl::Milliseconds(999)))
               .c_str());
  }
  return Verdict(result);
}

}  // namespace

int WorkerLoadMain(const Arguments& arguments) {
  bool json = false;
  ConnectionFlags connection;
  base::FlagSet flags(Help());
  flags.Switch("json", &json, "print JSON, one object a line");
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
        "into which workers, and of which source? millrace worker load ADDRESS SOURCE [PATH...]; "
        "millrace worker status ADDRESS shows its sources"));
  }
  return Report(Load(parsed->positionals, json, connection));
}

}  // namespace millrace::cli
