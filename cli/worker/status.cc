// millrace worker status: what workers hold, serve and see of each other.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cli/terminal.h"
#include "cli/worker/connection.h"
#include "cli/worker/worker_commands.h"
#include "cli/worker/worker_view.h"
#include "common/base/clock.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"

namespace millrace::cli {
namespace {

// Workers asked at once: one that does not answer must not keep the others waiting.
constexpr size_t kThreadsMax = 32;

struct StatusFlags {
  bool json = false;
  bool watch = false;
  absl::Duration interval = absl::Seconds(1);
  ConnectionFlags connection;
};

base::HelpText Help() {
  return {.usage = "millrace worker status [OPTION...] [ADDRESS...]",
          .summary =
              "Shows one worker in full, or a line for each of several: what they hold and serve, "
              "how much of that came from the store, and whom of the pool they reach. ADDRESS is "
              "HOST, HOST:PORT or dns:NAME:PORT, which is every worker behind the name; without a "
              "port 7450, without an address the worker of this machine.",
          .examples = {"millrace worker status", "millrace worker status worker-0.cache --watch",
                       "millrace worker status --json dns:cache.default.svc:7450"},
          .notes = "Exit status: 0 shown; 1 a worker does not answer; 2 wrong usage."};
}

class Workers {
 public:
  static absl::StatusOr<Workers> Find(const Arguments& words, const ConnectionFlags& connection) {
    ASSIGN_OR_RETURN(const std::vector<proto::WorkerClientOptions> found,
                     FindWorkers(words, connection));
    Workers workers;
    for (const proto::WorkerClientOptions& options : found) {
      ASSIGN_OR_RETURN(std::unique_ptr<proto::WorkerClient> client,
                       proto::WorkerClient::Create(options));
      workers.clients_.push_back(std::move(client));
      workers.addresses_.push_back(options.address);
    }
    return workers;
  }

  std::vector<AskedWorker> Ask() {
    std::vector<AskedWorker> asked;
    for (const std::string& address : addresses_) {
      asked.push_back({address, absl::UnknownError("not asked")});
    }
    std::atomic<size_t> next{0};
    const auto ask = [&] {
      for (size_t i; (i = next.fetch_add(1)) < asked.size();)
        asked[i].report = clients_[i]->Report();
    };
    std::vector<std::thread> threads;
    for (size_t i = 1; i < std::min(asked.size(), kThreadsMax); ++i) threads.emplace_back(ask);
    ask();
    for (std::thread& thread : threads) thread.join();
    return asked;
  }

 private:
  std::vector<std::string> addresses_;
  std::vector<std::unique_ptr<proto::WorkerClient>> clients_;
};

std::string Render(const std::vector<AskedWorker>& workers, const StatusFlags& flags) {
  if (flags.json) {
    const base::Json json = WorkersToJson(workers);
    return absl::StrCat(flags.watch ? base::JsonLine(json) : base::JsonPretty(json), "\n");
  }
  if (workers.size() > 1) return RenderWorkers(workers);
  if (!workers[0].report.ok()) return "";
  return RenderWorker(workers[0], base::RealClock()->Now());
}

// Of those that did not answer. One alone is told as an error; of several the table tells.
absl::Status Verdict(const std::vector<AskedWorker>& workers) {
  const auto silent = std::count_if(workers.begin(), workers.end(),
                                    [](const AskedWorker& worker) { return !worker.report.ok(); });
  if (silent == 0) return absl::OkStatus();
  if (workers.size() == 1) return workers[0].report.status();
  return absl::UnavailableError(
      absl::StrCat(silent, " of ", workers.size(), " workers did not answer"));
}

absl::Status Watch(Workers& workers, const StatusFlags& flags) {
  NoteInterrupts();
  const bool clear = !flags.json && IsTerminal(STDOUT_FILENO);
  while (!Interrupted().load()) {
    const std::vector<AskedWorker> asked = workers.Ask();
    if (Interrupted().load()) break;
    std::string text = Render(asked, flags);
    // A worker that is restarted comes back: watching goes on.
    if (text.empty()) text = absl::StrCat(base::ErrorText(Verdict(asked)), "\n");
    const std::string screen = clear ? absl::StrCat("\033[H\033[2J", text) : text;
    if (fputs(screen.c_str(), stdout) < 0 || fflush(stdout) != 0) break;
    poll(nullptr, 0, static_cast<int>(absl::ToInt64Milliseconds(flags.interval)));
  }
  return absl::OkStatus();
}

absl::Status Run(const Arguments& words, const StatusFlags& flags) {
  if (flags.interval < absl::Milliseconds(100) || flags.interval > absl::Hours(1)) {
    return absl::InvalidArgumentError("--interval must be between 100ms and 1h");
  }
  ASSIGN_OR_RETURN(Workers workers, Workers::Find(words, flags.connection));
  if (flags.watch) return Watch(workers, flags);
  const std::vector<AskedWorker> asked = workers.Ask();
  fputs(Render(asked, flags).c_str(), stdout);
  fflush(stdout);
  return Verdict(asked);
}

}  // namespace

int WorkerStatusMain(const Arguments& arguments) {
  StatusFlags chosen;
  base::FlagSet flags(Help());
  flags.Switch("json", &chosen.json,
               "print JSON: {\"workers\": [...]} (with --watch one line each time)");
  flags.Switch("watch", &chosen.watch, "show again every second until Ctrl-C");
  flags.Duration("interval", &chosen.interval, "with --watch: how often (default 1s)");
  Declare(&chosen.connection, &flags);
  const absl::StatusOr<base::ParsedArguments> parsed = flags.Parse(arguments);
  if (!parsed.ok()) return Report(parsed.status());
  if (parsed->help) {
    fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (const absl::Status applied = flags.Apply(*parsed); !applied.ok()) return Report(applied);
  return Report(Run(parsed->positionals, chosen));
}

}  // namespace millrace::cli
