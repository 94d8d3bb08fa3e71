// bench-index: the namespace index of a source, as a worker makes it and a client uses it.
//
// Lists the source, hands the index to a client, looks names up in it with one thread; then waits
// for a line on standard input, while somebody changes the source, lists it again and brings the
// client up to date. Keeper and client are the worker's and the mount's own, without the network
// between them: what it would carry is counted.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache/index/index_keeper.h"
#include "cache/pool/index_client.h"
#include "cache/store/registry.h"
#include "cli/bench/arguments.h"
#include "cli/bench/report.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"

namespace millrace::bench {
namespace {

struct Options {
  std::string source;
  std::string directory;
  uint64_t threads = 16;
  uint64_t seed = 1;
};

absl::StatusOr<std::optional<Options>> ParseOptions(const std::vector<std::string>& arguments) {
  Options options;
  base::FlagSet flags({.usage = "bench-index SOURCE [OPTION...]",
                       .summary = "Builds an index of SOURCE, looks names up in it, waits for a "
                                  "line on standard input, and brings it up to date. Prints a "
                                  "JSON object after each of the two."});
  flags.Text("directory", "DIR", &options.directory, "that keeps the index (default: memory)");
  AddNumber(&flags, "threads", &options.threads, {.min = 1, .max = 256},
            "calls to the store at a time (default 16)");
  AddNumber(&flags, "seed", &options.seed, {}, "of the order of lookups (default 1)");
  ASSIGN_OR_RETURN(const auto positionals, ParseOrHelp(&flags, arguments));
  if (!positionals.has_value()) return std::nullopt;
  ASSIGN_OR_RETURN(options.source, OnlyArgument(*positionals, "SOURCE"));
  return options;
}

// The answer of a worker as the client gets it.
absl::Status Send(const index::IndexAnswer& answer, store::BodySink sink) {
  std::string piece = EncodeAnswerHead(answer.head);
  if (answer.delta != nullptr) piece += *answer.delta;
  if (!sink(piece)) return absl::CancelledError("stopped");
  if (answer.index == nullptr) return absl::OkStatus();
  piece.resize(128 * 1024);
  for (uint64_t at = 0; at < answer.head.bytes;) {
    const ssize_t got =
        pread(answer.index->fd(), piece.data(), piece.size(), static_cast<off_t>(at));
    if (got <= 0) return absl::DataLossError("the index cannot be read");
    if (!sink(absl::string_view(piece.data(), got))) return absl::CancelledError("stopped");
    at += got;
  }
  return absl::OkStatus();
}

std::vector<std::string> ShuffledPaths(const index::Index& index, uint64_t seed) {
  std::vector<std::string> paths;
  index::RecordCursor cursor = index.Records();
  while (cursor.NextDirectory().value_or(false)) {
    while (cursor.NextEntry().value_or(false)) {
      if (cursor.entry().kind != store::EntryKind::kObject) continue;
      paths.push_back(cursor.directory().empty()
                          ? std::string(cursor.entry().name)
                          : absl::StrCat(cursor.directory(), "/", cursor.entry().name));
    }
  }
  std::shuffle(paths.begin(), paths.end(), std::mt19937_64(seed));
  // Copied in that order: whoever looks a name up has it at hand.
  return std::vector<std::string>(paths.begin(), paths.end());
}

double SecondsSince(uint64_t start) { return (NowNanos() - start) * 1e-9; }

// Of `find(path)`, which says whether it found it, over all paths.
template <typename Find>
absl::StatusOr<double> LookupsPerSecond(const std::vector<std::string>& paths, const Find& find) {
  const uint64_t start = NowNanos();
  size_t found = 0;
  for (const std::string& path : paths) found += find(path);
  const double seconds = SecondsSince(start);
  if (found != paths.size()) return absl::InternalError("a name of the index was not found in it");
  return paths.size() / seconds;
}

absl::Status Run(const std::vector<std::string>& arguments) {
  ASSIGN_OR_RETURN(const std::optional<Options> options, ParseOptions(arguments));
  if (!options.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(store::OpenedSource source, store::OpenSource(options->source));
  const std::shared_ptr<store::Store> store = store::NewRetryingStore(source.store, {});
  const std::string& identity = source.source.identity;
  const auto keeper = index::IndexKeeper::Create({.directory = options->directory,
                                                  .refresh_min = absl::ZeroDuration(),
                                                  .threads = options->threads},
                                                 {{identity, store}});
  const auto client = pool::IndexClient::Create(
      {.source = identity, .refresh = absl::Hours(1), .bytes_max = UINT64_MAX}, store,
      [&](const proto::IndexGet& get, store::BodySink sink,
          const store::CallOptions&) -> absl::Status {
        ASSIGN_OR_RETURN(const index::IndexAnswer answer,
                         keeper->Get(get.source, get.have, absl::InfiniteDuration()));
        return Send(answer, sink);
      });

  uint64_t start = NowNanos();
  RETURN_IF_ERROR(keeper->Refresh(identity));
  const double build_seconds = SecondsSince(start);
  start = NowNanos();
  RETURN_IF_ERROR(client->Update());
  const double fetch_seconds = SecondsSince(start);
  const uint64_t whole_bytes = client->Stats().bytes_received;
  ASSIGN_OR_RETURN(const index::IndexAnswer answer,
                   keeper->Get(identity, 0, absl::InfiniteDuration()));
  const std::vector<std::string> paths = ShuffledPaths(*answer.index, options->seed);
  ASSIGN_OR_RETURN(const double lookups, LookupsPerSecond(paths, [&](const std::string& path) {
                     const auto found = answer.index->Find(path);
                     return found.ok() && found->has_value();
                   }));
  store::CallOptions call;
  call.age_max = absl::InfiniteDuration();
  ASSIGN_OR_RETURN(const double stats, LookupsPerSecond(paths, [&](const std::string& path) {
                     return client->Stat(path, call).ok();
                   }));
  const index::IndexStatus status = keeper->Status().front();
  PrintJson({{"entries", status.entries},
             {"file_bytes", status.file_bytes},
             {"build_seconds", build_seconds},
             {"fetch_seconds", fetch_seconds},
             {"lookups_per_second", lookups},
             {"stats_per_second", stats}});

  std::string line;
  if (!std::getline(std::cin, line)) return absl::OkStatus();
  start = NowNanos();
  RETURN_IF_ERROR(keeper->Refresh(identity));
  const double rebuild_seconds = SecondsSince(start);
  start = NowNanos();
  RETURN_IF_ERROR(client->Update());
  PrintJson({{"rebuild_seconds", rebuild_seconds},
             {"refresh_seconds", SecondsSince(start)},
             {"refresh_bytes", client->Stats().bytes_received - whole_bytes},
             {"whole_bytes", whole_bytes}});
  return absl::OkStatus();
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  const absl::Status status = millrace::bench::Run(std::vector<std::string>(argv + 1, argv + argc));
  if (!status.ok()) {
    std::fprintf(stderr, "bench-index: %s\n", millrace::base::ErrorText(status).c_str());
  }
  return millrace::base::ExitCode(status);
}
