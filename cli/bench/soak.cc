#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "cli/bench/arguments.h"
#include "cli/bench/generators.h"
#include "cli/bench/report.h"
#include "cli/bench/soak_reader.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace millrace::bench {
namespace {

constexpr uint64_t kTickNanos = 5'000'000;

struct Options {
  std::string directory;
  std::string reference;
  std::vector<SoakKind> kinds;
  uint64_t readers = 8;
  uint64_t seed = 1;
  absl::Duration time = absl::Seconds(10);
  absl::Duration slow = absl::Milliseconds(5);
  absl::Duration think = absl::ZeroDuration();
  absl::Duration patience = absl::Seconds(60);
  bool json = false;
};

absl::Status SetKinds(absl::string_view value, std::vector<SoakKind>* kinds) {
  kinds->clear();
  for (const absl::string_view word : absl::StrSplit(value, ',')) {
    const auto found = std::find(kSoakKindNames.begin(), kSoakKindNames.end(), word);
    if (found == kSoakKindNames.end()) {
      return absl::InvalidArgumentError(absl::StrCat("no kind of reader is called \"", word,
                                                     "\"; there are ",
                                                     absl::StrJoin(kSoakKindNames, ", ")));
    }
    kinds->push_back(static_cast<SoakKind>(found - kSoakKindNames.begin()));
  }
  return absl::OkStatus();
}

// nullopt when only help was asked for.
absl::StatusOr<std::optional<Options>> ParseOptions(const std::vector<std::string>& arguments) {
  Options options;
  for (size_t i = 0; i < kSoakKindNames.size(); ++i) {
    options.kinds.push_back(static_cast<SoakKind>(i));
  }
  base::FlagSet flags(
      {.usage = "millrace bench soak [OPTION...] --against REFERENCE DIR",
       .summary = "Reads DIR with several processes at once, in every way a program can, and "
                  "compares every byte, name, size and inode number with REFERENCE, a directory "
                  "with the same files. Says what went wrong and how long the longest operation "
                  "took. Ends after a while, or with SIGTERM or Ctrl-C. Kill the daemon of the "
                  "mount meanwhile.",
       .examples = {"millrace bench soak --against /srv/train /data --for 60s"}});
  flags.Text("against", "REFERENCE", &options.reference, "the files as they must be");
  flags.Custom(
      "kinds", "KIND[,KIND...]",
      [&](absl::string_view value) { return SetKinds(value, &options.kinds); },
      "of readers, dealt out in turn: buffered, direct (O_DIRECT), mapped (mmap), held "
      "(one descriptor all the time), walk (names and attributes), fresh (open, read "
      "all, close); default all");
  AddNumber(&flags, "readers", &options.readers, {.min = 1, .max = 256}, "processes (default 8)");
  flags.Duration("for", &options.time, "how long (default 10s)");
  AddNumber(&flags, "seed", &options.seed, {}, "of what is read (default 1)");
  flags.Duration("slow", &options.slow,
                 "list operations that take longer, with --json (default 5ms)");
  flags.Duration("think", &options.think, "what a reader waits after each operation (default 0s)");
  flags.Duration("patience", &options.patience,
                 "a reader that does not end by then hangs (default 60s)");
  flags.Switch("json", &options.json,
               "print {\"ready\": true} when every reader reads, and one JSON object at the end");
  ASSIGN_OR_RETURN(const auto positionals, ParseOrHelp(&flags, arguments));
  if (!positionals.has_value()) return std::nullopt;
  ASSIGN_OR_RETURN(options.directory, OnlyArgument(*positionals, "DIR"));
  if (options.reference.empty()) {
    return absl::InvalidArgumentError("--against REFERENCE is needed; see --help");
  }
  return options;
}

std::atomic<bool> g_interrupted = false;

void OnSignal(int) { g_interrupted = true; }

void Tick() {
  const timespec time = {.tv_sec = 0, .tv_nsec = kTickNanos};
  nanosleep(&time, nullptr);
}

struct Shared {
  std::atomic<bool> stop = false;
};

// Memory that a child shares with its parent, zeroed. It lives as long as the process.
template <typename T>
absl::StatusOr<T*> MakeShared(uint64_t count) {
  void* const memory = mmap(nullptr, sizeof(T) * count, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return base::ErrnoStatus(errno, "memory of the readers");
  return static_cast<T*>(memory);
}

// How a reader ended.
struct End {
  pid_t pid = 0;
  bool ended = false;
  bool hung = false;
  int status = 0;  // Of waitpid.
};

class Soak {
 public:
  Soak(const Options& options, SoakPlan plan) : options_(options), plan_(std::move(plan)) {}

  absl::Status Start() {
    ASSIGN_OR_RETURN(shared_, MakeShared<Shared>(1));
    new (shared_) Shared;
    ASSIGN_OR_RETURN(results_, MakeShared<SoakResult>(options_.readers));
    struct sigaction action = {};
    action.sa_handler = OnSignal;
    sigaction(SIGTERM, &action, nullptr);
    sigaction(SIGINT, &action, nullptr);
    for (uint64_t i = 0; i < options_.readers; ++i) {
      new (&results_[i]) SoakResult;
      RETURN_IF_ERROR(StartReader(i));
    }
    return absl::OkStatus();
  }

  // Until every reader has done something, or is not going to.
  void WaitUntilReady() {
    const uint64_t deadline = NowNanos() + absl::ToInt64Nanoseconds(options_.patience);
    while (!g_interrupted && NowNanos() < deadline) {
      uint64_t ready = 0;
      for (uint64_t i = 0; i < options_.readers; ++i) ready += results_[i].operations > 0;
      if (ready == options_.readers) return;
      Tick();
    }
  }

  void WaitForTheEnd() {
    const uint64_t begin = NowNanos();
    const auto nanos = static_cast<uint64_t>(absl::ToInt64Nanoseconds(options_.time));
    while (!g_interrupted && NowNanos() - begin < nanos) Tick();
    seconds_ = static_cast<double>(NowNanos() - begin) * 1e-9;
    shared_->stop = true;
    const uint64_t deadline = NowNanos() + absl::ToInt64Nanoseconds(options_.patience);
    while (!Reap() && NowNanos() < deadline) Tick();
    for (End& end : ends_) {
      if (end.ended) continue;
      end.hung = true;
      kill(end.pid, SIGKILL);
    }
    // A process in an uninterruptible wait does not even die.
    const uint64_t last = NowNanos() + 5'000'000'000;
    while (!Reap() && NowNanos() < last) Tick();
  }

  nlohmann::json Report() const {
    nlohmann::json report = {{"generator", "soak"},
                             {"directory", options_.directory},
                             {"seconds", seconds_},
                             {"files", plan_.files.size()},
                             {"operations", 0},
                             {"bytes", 0},
                             {"errors", 0},
                             {"wrong_bytes", 0},
                             {"changed", 0},
                             {"hung", 0},
                             {"longest_ms", 0.0},
                             {"readers", nlohmann::json::array()},
                             {"problems", nlohmann::json::array()},
                             {"slow", nlohmann::json::array()}};
    for (uint64_t i = 0; i < options_.readers; ++i) AddReader(i, &report);
    return report;
  }

 private:
  absl::Status StartReader(uint64_t index) {
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid < 0) return base::ErrnoStatus(errno, "fork");
    if (pid == 0) {
      // Ctrl-C is for the parent, which ends the readers; they do not outlive it.
      signal(SIGINT, SIG_IGN);
      signal(SIGTERM, SIG_DFL);
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(1);
      RunSoakReader(plan_, KindOf(index), index, shared_->stop, &results_[index]);
      _exit(0);
    }
    ends_.push_back({.pid = pid});
    return absl::OkStatus();
  }

  SoakKind KindOf(uint64_t index) const { return options_.kinds[index % options_.kinds.size()]; }

  // True when all have ended.
  bool Reap() {
    bool all = true;
    for (End& end : ends_) {
      if (!end.ended) end.ended = waitpid(end.pid, &end.status, WNOHANG) == end.pid;
      all = all && end.ended;
    }
    return all;
  }

  void AddReader(uint64_t index, nlohmann::json* report) const {
    const SoakResult& result = results_[index];
    const End& end = ends_[index];
    const absl::string_view kind = kSoakKindNames[static_cast<size_t>(KindOf(index))];
    const double longest_ms = static_cast<double>(result.longest_nanos.load()) * 1e-6;
    (*report)["readers"].push_back({{"kind", kind},
                                    {"operations", result.operations.load()},
                                    {"bytes", result.bytes.load()},
                                    {"longest_ms", longest_ms}});
    const auto add = [&](const char* name, uint64_t count) {
      (*report)[name] = (*report)[name].get<uint64_t>() + count;
    };
    add("operations", result.operations);
    add("bytes", result.bytes);
    add("errors", result.problem_counts[0]);
    add("wrong_bytes", result.problem_counts[1]);
    add("changed", result.problem_counts[2]);
    (*report)["longest_ms"] = std::max((*report)["longest_ms"].get<double>(), longest_ms);
    for (uint64_t i = 0; i < result.problems_kept; ++i) {
      (*report)["problems"].push_back(ProblemJson(result.problems[i], kind));
    }
    for (uint64_t i = 0; i < result.slow_kept; ++i) {
      const SoakSlow& slow = result.slow[i];
      (*report)["slow"].push_back({slow.begin_nanos, slow.end_nanos, kind, slow.call});
    }
    if (end.hung) {
      add("hung", 1);
      const uint64_t since = result.busy_since_nanos;
      (*report)["problems"].push_back(
          {{"reader", kind},
           {"what", "hangs"},
           {"call", result.busy_with.load()},
           {"seconds", since == 0 ? 0.0 : static_cast<double>(NowNanos() - since) * 1e-9}});
    } else if (!WIFEXITED(end.status) || WEXITSTATUS(end.status) != 0) {
      add("errors", 1);
      (*report)["problems"].push_back(
          {{"reader", kind}, {"what", "the reader itself failed"}, {"status", end.status}});
    }
  }

  static nlohmann::json ProblemJson(const SoakProblem& problem, absl::string_view kind) {
    nlohmann::json json = {{"reader", kind},
                           {"call", problem.call},
                           {"path", problem.path},
                           {"offset", problem.offset},
                           {"at_ns", problem.at_nanos}};
    switch (problem.kind) {
      case SoakProblem::Kind::kError:
        json["what"] = problem.error == 0 ? "not what was asked for" : std::strerror(problem.error);
        break;
      case SoakProblem::Kind::kWrongBytes:
        json["what"] = "wrong bytes";
        break;
      case SoakProblem::Kind::kChanged:
        json["what"] = "changed";
        break;
    }
    return json;
  }

  const Options& options_;
  const SoakPlan plan_;
  Shared* shared_ = nullptr;
  SoakResult* results_ = nullptr;
  std::vector<End> ends_;
  double seconds_ = 0;
};

std::string Summary(const nlohmann::json& report) {
  return absl::StrFormat(
      "%d readers, %d operations, %s in %.1f s: %d errors, %d wrong bytes, %d changed, %d hung; "
      "longest operation %.1f ms",
      report["readers"].size(), report["operations"].get<uint64_t>(),
      base::FormatBytes(report["bytes"].get<uint64_t>()), report["seconds"].get<double>(),
      report["errors"].get<uint64_t>(), report["wrong_bytes"].get<uint64_t>(),
      report["changed"].get<uint64_t>(), report["hung"].get<uint64_t>(),
      report["longest_ms"].get<double>());
}

}  // namespace

absl::Status RunSoak(const std::vector<std::string>& arguments) {
  ASSIGN_OR_RETURN(const std::optional<Options> options, ParseOptions(arguments));
  if (!options.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(SoakPlan plan, MakeSoakPlan(options->directory, options->reference));
  plan.seed = options->seed;
  plan.slow_nanos = static_cast<uint64_t>(absl::ToInt64Nanoseconds(options->slow));
  plan.think_nanos = static_cast<uint64_t>(absl::ToInt64Nanoseconds(options->think));
  Soak soak(*options, std::move(plan));
  RETURN_IF_ERROR(soak.Start());
  soak.WaitUntilReady();
  if (options->json) PrintJson({{"ready", true}});
  soak.WaitForTheEnd();
  const nlohmann::json report = soak.Report();
  if (options->json) {
    PrintJson(report);
  } else {
    for (const nlohmann::json& problem : report["problems"]) PrintJson(problem);
    PrintLine(Summary(report));
  }
  const bool clean = report["errors"] == 0 && report["wrong_bytes"] == 0 &&
                     report["changed"] == 0 && report["hung"] == 0;
  if (clean) return absl::OkStatus();
  return absl::DataLossError(Summary(report));
}

}  // namespace millrace::bench
