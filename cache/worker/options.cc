#include "cache/worker/options.h"

#include <unistd.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cache/config/runtime_config.h"
#include "common/base/file_text.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"
#include "common/net/address.h"

namespace millrace::worker {
namespace {

constexpr size_t kConfigSizeMax = 1 << 20;
constexpr size_t kIdMax = 256;
constexpr uint64_t kExtentMin = 1 << 20;
constexpr int64_t kReplicasMax = 16;
constexpr double kGuestShareMax = 0.9;

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "worker";
}

base::HelpText HelpOfWorker() {
  return {
      .usage = "millrace-worker SOURCE... --tier TIER [OPTION...]",
      .summary =
          "Keeps data of the sources near the nodes that read it: serves it to mounts with "
          "--workers and to the other workers of its pool, and asks the store for each part once. "
          "A SOURCE is a URL as for millrace mount; NAME=URL is taken too.",
      .examples = {"millrace-worker s3://bucket/train --tier ssd:/var/cache/millrace:500Gi",
                   "millrace-worker s3://bucket/train --tier ssd:/cache:500Gi --members "
                   "dns:workers.cache.svc:7451 --replicas 2 --dir /run/millrace",
                   "millrace-worker --config /etc/millrace/runtime.json --listen 10.0.0.7"},
      .notes =
          "Sizes: 512Mi, 10Gi, 1.5T. Durations: 250ms, 30s, 5m.\n\n"
          "It needs no privilege. Once it serves it prints one line, ready ID and where it "
          "listens. SIGTERM ends it: requests end first, then the cache is closed.\n\n"
          "Exit status: 0 it was told to end; 1 it could not start; 2 wrong usage.",
  };
}

void DeclareCache(WorkerOptions* options, base::FlagSet* flags) {
  flags->Custom(
      "tier", "MEDIUM:PATH:QUOTA[,high=0.95][,low=0.70]",
      [options](absl::string_view value) -> absl::Status {
        ASSIGN_OR_RETURN(tier::TierOptions tier, tier::ParseTier(value));
        options->tiers.push_back(std::move(tier));
        return absl::OkStatus();
      },
      "a place of the cache, fastest first, repeatable; MEDIUM is mem, ssd or hdd");
  flags->Choice(
      "eviction", {"epoch", "sieve"},
      [options](size_t i) {
        options->eviction = i == 0 ? tier::EvictionPolicy::kEpoch : tier::EvictionPolicy::kSieve;
      },
      "what a full cache does: epoch (default) keeps what it has, best for training; sieve lets "
      "new files push out old ones");
  flags->Custom(
      "guest-share", "SHARE",
      [options](absl::string_view value) -> absl::Status {
        double share = 0;
        if (!absl::SimpleAtod(value, &share) || !(share >= 0 && share <= kGuestShareMax)) {
          return absl::InvalidArgumentError(
              absl::StrCat("\"", value, "\" is not a share from 0 to ", kGuestShareMax));
        }
        options->guest_share = share;
        return absl::OkStatus();
      },
      "of the cache, at most: copies of what this node reads although others own it (default 0.3)");
  flags->Bytes("memory-limit", &options->memory_limit_bytes, 64 * base::kMiB,
               "budget for data in flight (default 512Mi, at least 64Mi)");
  flags->Integer("connections", &options->connections, 1, 1024,
                 "parallel requests to the stores and to other workers (default 16)");
  flags->Custom(
      "store-deadline", "TIME",
      [options](absl::string_view value) -> absl::Status {
        ASSIGN_OR_RETURN(const absl::Duration deadline, base::ParseDuration(value));
        if (deadline < absl::Seconds(1) || deadline > absl::Hours(24)) {
          return absl::InvalidArgumentError("it must be between 1s and 24h");
        }
        options->store_deadline = deadline;
        return absl::OkStatus();
      },
      "how long a fetch is tried again before it fails (default 60s)");
}

void DeclarePool(WorkerOptions* options, base::FlagSet* flags) {
  flags->Custom(
      "members", "HOST:PORT[,...]|dns:NAME:PORT",
      [options](absl::string_view value) {
        options->members.emplace_back(value);
        return absl::OkStatus();
      },
      "the workers of the pool, this one among them, repeatable; dns: follows the SRV or A records "
      "of a name (default: this worker alone)");
  flags->Text("id", "NAME", &options->id,
              "this worker's name in the pool, unique there, the same after a restart (default: "
              "the host's name)");
  flags->Text("cluster", "NAME", &options->cluster,
              "name of the pool; others of another name are refused (default millrace)");
  flags->Custom(
      "replicas", "N",
      [options](absl::string_view value) -> absl::Status {
        int64_t replicas = 0;
        if (!absl::SimpleAtoi(value, &replicas) || replicas < 1 || replicas > kReplicasMax) {
          return absl::InvalidArgumentError(
              absl::StrCat("\"", value, "\" is not a number from 1 to ", kReplicasMax));
        }
        options->replicas = static_cast<uint32_t>(replicas);
        return absl::OkStatus();
      },
      "workers that keep each part (default 1); the same in the whole pool");
  flags->Custom(
      "extent-size", "SIZE",
      [options](absl::string_view value) -> absl::Status {
        ASSIGN_OR_RETURN(const uint64_t size, base::ParseBytes(value));
        if (size < kExtentMin || size % tier::kBlockSize != 0) {
          return absl::InvalidArgumentError("it must be a multiple of 128Ki, at least 1Mi");
        }
        options->extent_size = size;
        return absl::OkStatus();
      },
      "parts in which large files are spread over the workers (default 64Mi); the same in the "
      "whole pool");
}

void DeclareDoors(WorkerOptions* options, base::FlagSet* flags) {
  flags->Text("listen", "HOST", &options->listen_host,
              "address to listen at (default: every interface)");
  const auto port = [flags](absl::string_view name, uint16_t* target, absl::string_view help) {
    flags->Custom(
        name, "PORT",
        [target](absl::string_view value) -> absl::Status {
          uint32_t number = 0;
          if (!absl::SimpleAtoi(value, &number) || number > 65535) {
            return absl::InvalidArgumentError(
                absl::StrCat("\"", value, "\" is not a port from 0 to 65535"));
          }
          *target = static_cast<uint16_t>(number);
          return absl::OkStatus();
        },
        help);
  };
  port("data-port", &options->data_port, "port of the data (default 7451; 0: any free one)");
  port("control-port", &options->control_port, "port of the control service (default 7450)");
  port("metrics-port", &options->metrics_port,
       "port of the Prometheus metrics, /healthz and /readyz (default 7452)");
  flags->Text(
      "dir", "DIR", &options->directory,
      "directory of worker.sock, through which mounts on this node get whole files as "
      "descriptors, and of indexes; made with mode 0700 (default: no socket, and indexes in "
      "memory)");
  flags->Text("socket-group", "GROUP", &options->socket_group,
              "group whose members may use worker.sock, beside root and this user");
  flags->Text("certificate", "FILE", &options->certificate,
              "PEM certificate of this worker: with --key and --authority, TLS with certificates "
              "on both sides for data and control");
  flags->Text("key", "FILE", &options->key, "PEM key of the certificate");
  flags->Text("authority", "FILE", &options->authority,
              "PEM certificates of the authorities that the others' must come from");
}

base::FlagSet DeclareFlags(WorkerOptions* options, std::string* config_path) {
  base::FlagSet flags(HelpOfWorker());
  DeclareCache(options, &flags);
  DeclarePool(options, &flags);
  DeclareDoors(options, &flags);
  flags.Text("config", "FILE", config_path,
             "a runtime.json with sources, tiers and options; options given here override it");
  flags.Choice(
      "log-level", {"debug", "info", "warning", "error"},
      [options](size_t i) { options->log_level = static_cast<base::Severity>(i); },
      "the least severe lines that are logged (default info)");
  flags.Integer("ready-fd", &options->ready_fd, -1, 1 << 20, "descriptor to tell of readiness");
  flags.Hide();
  return flags;
}

absl::Status ApplyConfig(const std::string& path, const base::ParsedArguments& parsed,
                         base::FlagSet* flags, WorkerOptions* options) {
  const absl::StatusOr<std::string> text = base::ReadTextFile(path, kConfigSizeMax);
  if (!text.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--config: cannot read ", text.status().message()));
  }
  ASSIGN_OR_RETURN(config::RuntimeConfig config, config::ParseRuntimeConfig(*text, "worker"));
  options->sources = std::move(config.sources);
  for (const auto& [name, value] : config.options) {
    const std::string origin = absl::StrCat("worker.options.", name);
    if (name == "config" || name == "ready-fd" || !flags->Known(name)) {
      options->notes.push_back(absl::StrCat(origin, " is no option of a worker: ignored"));
      continue;
    }
    RETURN_IF_ERROR(flags->Set(name, value, origin));
  }
  if (!config.tiers.empty()) options->tiers = std::move(config.tiers);
  // Lists do not add up over their origins: the more particular one replaces the others.
  if (parsed.Has("tier")) options->tiers.clear();
  if (parsed.Has("members")) options->members.clear();
  return absl::OkStatus();
}

absl::Status Check(const WorkerOptions& options) {
  if (options.sources.empty()) {
    return absl::InvalidArgumentError(
        "no source is given: millrace-worker SOURCE... --tier TIER, as in millrace-worker "
        "s3://bucket/train --tier ssd:/var/cache/millrace:500Gi");
  }
  std::set<std::string> sources;
  for (const std::string& source : options.sources) {
    if (!absl::StrContains(source, "://")) {
      return absl::InvalidArgumentError(
          absl::StrCat("the source \"", source,
                       "\" is not a URL; write it like s3://bucket/dir, or file:///dir "
                       "for a directory of this machine"));
    }
    if (!sources.insert(source).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("the source \"", source.substr(0, source.find('?')), "\" is given twice"));
    }
  }
  if (options.tiers.empty()) {
    return absl::InvalidArgumentError(
        "no tier is given: a worker keeps data; add --tier, as in --tier "
        "ssd:/var/cache/millrace:500Gi");
  }
  if (options.id.empty() || options.id.size() > kIdMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--id: a name has 1 to ", kIdMax, " characters"));
  }
  const size_t files = (options.certificate.empty() ? 0 : 1) + (options.key.empty() ? 0 : 1) +
                       (options.authority.empty() ? 0 : 1);
  if (files != 0 && files != 3) {
    return absl::InvalidArgumentError(
        "--certificate, --key and --authority belong together: give all three, or none");
  }
  if (!options.directory.empty() && options.directory[0] != '/') {
    return absl::InvalidArgumentError("--dir: give an absolute path");
  }
  if (!options.socket_group.empty() && options.directory.empty()) {
    return absl::InvalidArgumentError(
        "--socket-group says who may use the socket in --dir: give "
        "that too");
  }
  const bool ipv6 = absl::StrContains(options.listen_host, ':') && options.listen_host[0] != '[';
  const absl::Status host =
      net::ParseAddress(absl::StrCat(ipv6 ? "[" : "", options.listen_host, ipv6 ? "]" : "", ":1"))
          .status();
  if (!host.ok()) return absl::InvalidArgumentError(absl::StrCat("--listen: ", host.message()));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ParsedWorker> ParseWorkerOptions(absl::Span<const std::string> arguments) {
  ParsedWorker worker;
  WorkerOptions& options = worker.options;
  options.id = HostName();
  std::string config_path;
  base::FlagSet flags = DeclareFlags(&options, &config_path);
  ASSIGN_OR_RETURN(base::ParsedArguments parsed, flags.Parse(arguments));
  if (parsed.help) {
    worker.help = true;
    return worker;
  }
  for (const base::GivenFlag& flag : parsed.flags) {
    if (flag.name == "config") config_path = flag.value;
  }
  if (!config_path.empty()) {
    const absl::Status status = ApplyConfig(config_path, parsed, &flags, &options);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(config_path, ": ", status.message()));
    }
  }
  RETURN_IF_ERROR(flags.Apply(parsed));
  if (!parsed.positionals.empty()) options.sources = std::move(parsed.positionals);
  RETURN_IF_ERROR(Check(options));
  return worker;
}

std::string WorkerHelp() {
  WorkerOptions options;
  std::string config_path;
  return DeclareFlags(&options, &config_path).Help();
}

}  // namespace millrace::worker
