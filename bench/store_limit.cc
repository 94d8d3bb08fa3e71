// bench-store-limit: how fast the store itself is.
//
// The anchor of the cold benchmarks: the fastest parallel GETs of the same objects from the same
// server, with signatures and nothing of Millrace in the way. One blocking thread per connection,
// bodies received and forgotten, requests signed a microsecond before they leave.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "bench/store_limit/get_connection.h"
#include "bench/store_limit/sigv4.h"
#include "cli/bench/arguments.h"
#include "cli/bench/file_list.h"
#include "cli/bench/parallel.h"
#include "cli/bench/random.h"
#include "cli/bench/report.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace millrace::bench {
namespace {

struct Options {
  std::string host;
  std::string port;
  std::string bucket;
  std::string region = "us-east-1";
  std::string key;
  std::string listing;
  std::string walk;
  std::string prefix;
  uint64_t size = 0;
  uint64_t range = 8 * base::kMiB;
  uint64_t random = 0;
  uint64_t count = 200;
  uint64_t connections = 8;
  uint64_t passes = 1;
  uint64_t seed = 1;
  bool json = false;
};

struct Tally {
  Histogram latency;
  uint64_t bytes = 0;
  uint64_t reconnects = 0;
  absl::Status error;
};

absl::Status ParseEndpoint(absl::string_view endpoint, Options* options) {
  if (!absl::ConsumePrefix(&endpoint, "http://")) {
    return absl::InvalidArgumentError("--endpoint must begin with http:// (TLS is not measured)");
  }
  absl::ConsumeSuffix(&endpoint, "/");
  const size_t colon = endpoint.rfind(':');
  if (colon == absl::string_view::npos || endpoint.find('/') != absl::string_view::npos) {
    return absl::InvalidArgumentError("--endpoint must be http://HOST:PORT");
  }
  options->host = std::string(endpoint.substr(0, colon));
  options->port = std::string(endpoint.substr(colon + 1));
  return absl::OkStatus();
}

void DeclareFlags(base::FlagSet* flags, Options* options, std::string* endpoint) {
  flags->Text("endpoint", "URL", endpoint, "http://HOST:PORT of the server; TLS is not measured");
  flags->Text("bucket", "NAME", &options->bucket, "of the objects");
  flags->Text("region", "NAME", &options->region, "that requests are signed for (us-east-1)");
  flags->Text("key", "KEY", &options->key, "one large object, in ranges, all of it once");
  flags->Bytes("size", &options->size, 1, "of the object --key");
  flags->Bytes("range", &options->range, 1, "of one GET of --key (default 8Mi)");
  flags->Bytes("random", &options->random, 1,
               "instead: ranges of --key of this size at random offsets");
  AddNumber(flags, "count", &options->count, {.min = 1}, "random ranges (default 200)");
  flags->Text("listing", "FILE", &options->listing, "whole objects: their keys, one per line");
  flags->Text("walk", "DIR", &options->walk,
              "whole objects: the files below DIR, what the server serves");
  flags->Text("prefix", "TEXT", &options->prefix, "put before every key of --listing and --walk");
  AddNumber(flags, "connections", &options->connections, {.min = 1, .max = 1024},
            "kept alive, one thread each (default 8)");
  AddNumber(flags, "passes", &options->passes, {.min = 1},
            "over all objects or ranges (default 1)");
  AddNumber(flags, "seed", &options->seed, {},
            "of the order of objects, and of random offsets (default 1)");
  flags->Switch("json", &options->json, "print one JSON object");
}

absl::Status Validate(const Options& options) {
  if (options.bucket.empty()) return absl::InvalidArgumentError("--bucket is missing");
  if (options.key.empty() + options.listing.empty() + options.walk.empty() != 2) {
    return absl::InvalidArgumentError("takes exactly one of --key, --listing and --walk");
  }
  if (!options.key.empty() && options.size == 0) {
    return absl::InvalidArgumentError("--key needs the object's --size");
  }
  if (!options.key.empty() && options.random > options.size) {
    return absl::InvalidArgumentError("--random must not be above --size");
  }
  return absl::OkStatus();
}

// nullopt when only help was asked for.
absl::StatusOr<std::optional<Options>> ParseOptions(const std::vector<std::string>& arguments) {
  Options options;
  std::string endpoint;
  base::FlagSet flags(
      {.usage = "bench-store-limit --endpoint URL --bucket NAME --key KEY --size SIZE [OPTION...]\n"
                "bench-store-limit --endpoint URL --bucket NAME --listing FILE [OPTION...]\n"
                "bench-store-limit --endpoint URL --bucket NAME --walk DIR [OPTION...]",
       .summary = "The fastest parallel GET of objects of an S3 server: path style, plain HTTP, "
                  "signature V4 with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY from the "
                  "environment."});
  DeclareFlags(&flags, &options, &endpoint);
  ASSIGN_OR_RETURN(const auto positionals, ParseOrHelp(&flags, arguments));
  if (!positionals.has_value()) return std::nullopt;
  if (!positionals->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("unexpected argument \"", positionals->front(), "\""));
  }
  RETURN_IF_ERROR(ParseEndpoint(endpoint, &options));
  RETURN_IF_ERROR(Validate(options));
  return options;
}

GetToSign GetOf(const Options& options, absl::string_view key) {
  return {.host = absl::StrCat(options.host, ":", options.port),
          .path = EncodePath(absl::StrCat("/", options.bucket, "/", options.prefix, key)),
          .query = "",
          .range = ""};
}

absl::StatusOr<std::vector<GetToSign>> RangesOfKey(const Options& options) {
  std::vector<GetToSign> gets;
  const auto add = [&](uint64_t first, uint64_t length) {
    GetToSign get = GetOf(options, options.key);
    get.range = absl::StrCat("bytes=", first, "-", first + length - 1);
    gets.push_back(std::move(get));
  };
  if (options.random > 0) {
    Random random(options.seed);
    const uint64_t blocks = options.size / options.random;
    for (uint64_t i = 0; i < options.count; ++i) {
      add(random.Below(blocks) * options.random, options.random);
    }
  } else {
    for (uint64_t first = 0; first < options.size; first += options.range) {
      add(first, std::min(options.range, options.size - first));
    }
  }
  return gets;
}

absl::StatusOr<std::vector<GetToSign>> WholeObjects(const Options& options) {
  std::vector<GetToSign> gets;
  if (!options.listing.empty()) {
    std::ifstream listing(options.listing);
    if (!listing) return absl::NotFoundError(absl::StrCat(options.listing, ": cannot be read"));
    for (std::string key; std::getline(listing, key);) {
      if (!key.empty()) gets.push_back(GetOf(options, key));
    }
  } else {
    ASSIGN_OR_RETURN(const std::vector<std::string> files, ListFiles(options.walk));
    for (const std::string& file : files) {
      absl::string_view key = absl::string_view(file).substr(options.walk.size());
      absl::ConsumePrefix(&key, "/");
      gets.push_back(GetOf(options, key));
    }
  }
  if (gets.empty()) return absl::FailedPreconditionError("there is no object to get");
  Random(options.seed).Shuffle(&gets);
  return gets;
}

// Gets until none is left. A connection that the server closed between two requests is opened
// again, as every client would.
void RunConnection(const Options& options, const SigningKey& key,
                   const std::vector<GetToSign>& gets, std::atomic<size_t>* next, Tally* tally) {
  Signer signer(key);
  std::optional<GetConnection> connection;
  const auto get_once = [&](const GetToSign& get) -> absl::Status {
    if (!connection.has_value() || connection->closed()) {
      ASSIGN_OR_RETURN(connection, GetConnection::Open(options.host, options.port));
    }
    ASSIGN_OR_RETURN(const uint64_t bytes, connection->Get(signer.SignedHead(get, absl::Now())));
    tally->bytes += bytes;
    return absl::OkStatus();
  };
  const size_t total = gets.size() * options.passes;
  for (size_t i; (i = next->fetch_add(1, std::memory_order_relaxed)) < total;) {
    const GetToSign& get = gets[i % gets.size()];
    const uint64_t start = NowNanos();
    absl::Status status = get_once(get);
    if (absl::IsUnavailable(status) && connection.has_value()) {
      connection.reset();
      ++tally->reconnects;
      status = get_once(get);
    }
    if (!status.ok()) {
      tally->error = absl::Status(status.code(), absl::StrCat(get.path, ": ", status.message()));
      return;
    }
    tally->latency.Record(NowNanos() - start);
  }
}

void Print(const Options& options, double seconds, const Tally& total, const CpuTime& cpu) {
  const double mib_per_second = total.bytes / seconds / base::kMiB;
  const double requests_per_second = total.latency.count() / seconds;
  if (!options.json) {
    PrintLine(absl::StrFormat(
        "%d connections: %.1f MiB/s, %.0f requests/s, %s, CPU %.2f s user %.2f s system",
        options.connections, mib_per_second, requests_per_second, LatencyText(total.latency),
        cpu.user_seconds, cpu.system_seconds));
    return;
  }
  nlohmann::json json = {{"program", "store-limit"},
                         {"connections", options.connections},
                         {"seconds", seconds},
                         {"requests", total.latency.count()},
                         {"bytes", total.bytes},
                         {"reconnects", total.reconnects},
                         {"mib_per_second", mib_per_second},
                         {"requests_per_second", requests_per_second}};
  AddLatency(total.latency, &json);
  AddCpu(cpu, &json);
  PrintJson(json);
}

absl::StatusOr<SigningKey> KeyFromEnvironment(const std::string& region) {
  const char* access_key = std::getenv("AWS_ACCESS_KEY_ID");
  const char* secret_key = std::getenv("AWS_SECRET_ACCESS_KEY");
  if (access_key == nullptr || secret_key == nullptr) {
    return absl::InvalidArgumentError(
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be set in the environment");
  }
  return SigningKey{.access_key = access_key, .secret_key = secret_key, .region = region};
}

absl::Status Run(const std::vector<std::string>& arguments) {
  ASSIGN_OR_RETURN(const std::optional<Options> given, ParseOptions(arguments));
  if (!given.has_value()) return absl::OkStatus();
  const Options& options = *given;
  ASSIGN_OR_RETURN(const SigningKey key, KeyFromEnvironment(options.region));
  ASSIGN_OR_RETURN(const std::vector<GetToSign> gets,
                   options.key.empty() ? WholeObjects(options) : RangesOfKey(options));
  std::vector<Tally> tallies(options.connections);
  std::atomic<size_t> next = 0;
  const CpuTime cpu_before = CpuTime::Now();
  const uint64_t nanos = RunTogether(options.connections, [&](uint64_t i) {
    RunConnection(options, key, gets, &next, &tallies[i]);
  });
  const CpuTime cpu = CpuTime::Now().Since(cpu_before);
  Tally total;
  for (const Tally& tally : tallies) {
    total.latency.Add(tally.latency);
    total.bytes += tally.bytes;
    total.reconnects += tally.reconnects;
    total.error.Update(tally.error);
  }
  // A figure from a run with errors would be no limit.
  if (total.error.ok()) Print(options, nanos * 1e-9, total, cpu);
  return total.error;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  const absl::Status status = millrace::bench::Run(std::vector<std::string>(argv + 1, argv + argc));
  if (!status.ok()) {
    std::fprintf(stderr, "bench-store-limit: %s\n", millrace::base::ErrorText(status).c_str());
  }
  return millrace::base::ExitCode(status);
}
