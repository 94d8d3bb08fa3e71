// bench-limiter: a store as slow as a real one, on loopback. See bench/limiter/proxy.h.
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/limiter/proxy.h"
#include "cli/bench/arguments.h"
#include "cli/bench/report.h"
#include "common/base/errno_status.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"

namespace millrace::bench {
namespace {

struct Options {
  Proxy::Options proxy;
  std::string stats_file;
};

// nullopt when only help was asked for.
absl::StatusOr<std::optional<Options>> ParseOptions(const std::vector<std::string>& arguments) {
  Options options;
  base::FlagSet flags(
      {.usage = "bench-limiter --listen HOST:PORT --target HOST:PORT [OPTION...]",
       .summary = "Passes connections on to an HTTP server, holds all of them together to a rate, "
                  "and lets every request wait. Prints {\"listen\": \"HOST:PORT\"} when it is "
                  "ready; SIGTERM and SIGINT end it, and it prints its counters.",
       .examples = {"bench-limiter --listen 127.0.0.1:7071 --target 127.0.0.1:7070 --rate 200Mi "
                    "--delay 10ms"}});
  flags.Text("listen", "HOST:PORT", &options.proxy.listen, "port 0 takes a free one");
  flags.Text("target", "HOST:PORT", &options.proxy.target, "the server");
  flags.Bytes("rate", &options.proxy.bytes_per_second, 1024,
              "bytes per second, in each direction (default: no limit)");
  flags.Duration("delay", &options.proxy.delay, "before each request is passed on (default 0ms)");
  flags.Text("stats", "FILE", &options.stats_file,
             "the counters as JSON, written whole on SIGUSR1 and at the end; \"sequence\" grows "
             "with each writing");
  ASSIGN_OR_RETURN(const auto positionals, ParseOrHelp(&flags, arguments));
  if (!positionals.has_value()) return std::nullopt;
  if (!positionals->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("unexpected argument \"", positionals->front(), "\""));
  }
  if (options.proxy.listen.empty() || options.proxy.target.empty()) {
    return absl::InvalidArgumentError("--listen and --target are needed; see --help");
  }
  return options;
}

nlohmann::json CountersJson(const Proxy::Counters& counters, uint64_t sequence) {
  return {{"sequence", sequence},
          {"connections", counters.connections},
          {"connections_open", counters.connections_open},
          {"requests", counters.requests},
          {"bytes_to_store", counters.bytes_to_store},
          {"bytes_to_client", counters.bytes_to_client},
          {"malformed", counters.malformed}};
}

// Writes a new file and renames it: a reader never sees half of it.
absl::Status WriteStats(const std::string& path, const nlohmann::json& json) {
  if (path.empty()) return absl::OkStatus();
  const std::string temporary = path + ".new";
  FILE* const file = std::fopen(temporary.c_str(), "w");
  if (file == nullptr) return base::ErrnoStatus(errno, temporary);
  std::fprintf(file, "%s\n", json.dump().c_str());
  if (std::fclose(file) != 0) return base::ErrnoStatus(errno, temporary);
  if (std::rename(temporary.c_str(), path.c_str()) != 0) return base::ErrnoStatus(errno, path);
  return absl::OkStatus();
}

// Each connection needs four descriptors.
void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

absl::Status Run(const std::vector<std::string>& arguments) {
  ASSIGN_OR_RETURN(const std::optional<Options> given, ParseOptions(arguments));
  if (!given.has_value()) return absl::OkStatus();
  const Options& options = *given;
  RaiseDescriptorLimit();
  // Blocked before the thread exists, so that only sigwait below ever sees them.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGINT, SIGUSR1}) sigaddset(&signals, number);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  ASSIGN_OR_RETURN(const std::unique_ptr<Proxy> proxy, Proxy::Create(options.proxy));
  const std::string host = options.proxy.listen.substr(0, options.proxy.listen.rfind(':'));
  PrintJson({{"listen", absl::StrCat(host, ":", proxy->port())}});
  absl::Status served;
  std::thread server([&] {
    served = proxy->Run();
    // A proxy that failed ends the program as a signal would.
    if (!served.ok()) kill(getpid(), SIGTERM);
  });

  uint64_t sequence = 0;
  absl::Status result;
  int number = 0;
  do {
    sigwait(&signals, &number);
    if (number == SIGUSR1) {
      result.Update(WriteStats(options.stats_file, CountersJson(proxy->counters(), ++sequence)));
    }
  } while (number == SIGUSR1);
  const nlohmann::json last = CountersJson(proxy->counters(), ++sequence);
  proxy->Stop();
  server.join();
  PrintJson(last);
  result.Update(WriteStats(options.stats_file, last));
  result.Update(served);
  return result;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  const absl::Status status = millrace::bench::Run(std::vector<std::string>(argv + 1, argv + argc));
  if (!status.ok()) {
    std::fprintf(stderr, "bench-limiter: %s\n", millrace::base::ErrorText(status).c_str());
  }
  return millrace::base::ExitCode(status);
}
