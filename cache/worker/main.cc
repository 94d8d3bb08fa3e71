// millrace-worker: a cache worker. This file only wires.
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cache/worker/control_service.h"
#include "cache/worker/options.h"
#include "cache/worker/worker.h"
#include "common/base/flags.h"
#include "common/base/log.h"
#include "common/base/sandbox.h"
#include "common/control/ready.h"
#include "common/net/address.h"

namespace millrace::worker {
namespace {

// Of requests on their way when the worker is told to end.
constexpr absl::Duration kGrace = absl::Seconds(5);

// Taken by the main thread, which waits for them. REQUIRES: called before any thread starts.
sigset_t BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGINT}) sigaddset(&signals, number);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  return signals;
}

// --ready-fd without parsing the rest, so that even a wrong option is reported through it.
int FindReadyFd(const std::vector<std::string>& arguments) {
  int fd = -1;
  for (size_t i = 0; i < arguments.size(); ++i) {
    absl::string_view value = arguments[i];
    if (value == "--ready-fd" && i + 1 < arguments.size()) {
      value = arguments[i + 1];
    } else if (!absl::ConsumePrefix(&value, "--ready-fd=")) {
      continue;
    }
    if (!absl::SimpleAtoi(value, &fd)) fd = -1;
  }
  return fd;
}

std::string HostPort(const std::string& host, int port) {
  return net::Address{.host = host, .port = static_cast<uint16_t>(port)}.ToString();
}

void TellReady(const WorkerOptions& options, const Worker& worker, int control_port,
               control::ReadyNotifier* ready) {
  const std::vector<std::pair<std::string, std::string>> facts = {
      {"id", options.id},
      {"data", worker.data_address().ToString()},
      {"control", HostPort(options.listen_host, control_port)},
      {"metrics", HostPort(options.listen_host, worker.metrics_port())},
      {"socket", worker.socket_path()}};
  std::string line = "ready";
  for (const auto& [name, value] : facts) {
    if (!value.empty()) absl::StrAppend(&line, " ", name, "=", value);
  }
  std::puts(line.c_str());
  std::fflush(stdout);
  if (options.ready_fd >= 0) ready->Ready({.facts = facts});
}

int Run(const std::vector<std::string>& arguments) {
  control::ReadyNotifier ready(FindReadyFd(arguments));
  const auto fail = [&](const absl::Status& status) {
    return ready.Failed(absl::Status(status.code(), absl::StrCat("worker: ", status.message())));
  };
  const absl::StatusOr<ParsedWorker> parsed = ParseWorkerOptions(arguments);
  if (!parsed.ok()) return fail(parsed.status());
  if (parsed->help) {
    std::fputs(WorkerHelp().c_str(), stdout);
    return 0;
  }
  const WorkerOptions& options = parsed->options;
  base::SetLogThreshold(options.log_level);
  const sigset_t signals = BlockSignals();
  if (const absl::Status status = base::InstallSandbox(); !status.ok()) {
    base::Log(base::Severity::kWarning, "serving without a filter of system calls",
              {{"cause", status.ToString()}});
  }
  for (const std::string& note : options.notes) {
    base::Log(base::Severity::kWarning, "option ignored", {{"note", note}});
  }

  absl::StatusOr<std::unique_ptr<Worker>> worker = Worker::Start(options);
  if (!worker.ok()) return fail(worker.status());
  ControlOptions control;
  control.address = HostPort(options.listen_host, options.control_port);
  control.certificate = options.certificate;
  control.key = options.key;
  control.authority = options.authority;
  absl::StatusOr<std::unique_ptr<ControlService>> service =
      ControlService::Start(control, worker->get());
  if (!service.ok()) return fail(service.status());
  TellReady(options, **worker, (*service)->port(), &ready);

  int signal = 0;
  sigwait(&signals, &signal);
  base::Log(base::Severity::kInfo, "ending", {{"signal", signal}});
  service->reset();
  const absl::Status stopped = (*worker)->Stop(kGrace);
  if (!stopped.ok()) {
    base::Log(base::Severity::kError, "the cache was not closed cleanly",
              {{"cause", stopped.ToString()}});
  }
  // Without the destructors: what must outlive the process is on disk, and the page of the metrics
  // takes two seconds to end.
  std::fflush(nullptr);
  _exit(stopped.ok() ? 0 : 1);
}

}  // namespace
}  // namespace millrace::worker

int main(int argc, char** argv) {
  return millrace::worker::Run(std::vector<std::string>(argv + 1, argv + argc));
}
