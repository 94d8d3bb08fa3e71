#include "fuse/options/options.h"

#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "cache/config/runtime_config.h"
#include "cache/pool/resolver.h"
#include "common/base/file_text.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"

namespace millrace::options {
namespace {

constexpr size_t kConfigSizeMax = 4 << 20;

// Options that say how this process was started: a file must not set them.
constexpr absl::string_view kNotFromFile[] = {"config", "foreground", "ready-fd", "custody-fd"};

constexpr absl::string_view kProfileNames[] = {"small-files", "large-files", "auto"};
constexpr absl::string_view kSeverityNames[] = {"debug", "info", "warning", "error"};

base::HelpText HelpOfMount() {
  return {
      .usage =
          "millrace mount [OPTION...] SOURCE... MOUNTPOINT\n"
          "millrace mount [OPTION...] --config FILE",
      .summary =
          "Shows the data of a store as files below MOUNTPOINT, and keeps what is read in a cache "
          "on this machine. SOURCE is a URL, or NAME=URL: then NAME becomes a directory, and "
          "several sources join in one tree. Returns when the mount answers.",
      .examples =
          {
              "millrace mount s3://bucket/imagenet /data",
              "millrace mount 's3://bucket/set?endpoint=http://minio:9000&path-style=true' /data",
              "millrace mount train=s3://bucket/train val=file:///srv/val /data",
              "millrace mount --tier mem:/dev/shm/m:4Gi --tier ssd:/nvme/m:200Gi s3://b/set /data",
              "millrace mount --config /etc/fluid/config/runtime.json",
          },
      .notes =
          "URLs: file:///dir, s3://bucket/prefix, oss://bucket/prefix, http(s)://host/dir/. "
          "Options of a store follow its URL: ?endpoint=...&region=...&path-style=true. Secrets "
          "come from AWS_* in the environment, a profile file, or a file named by the option "
          "access-key-file, never from the command line.\n\n"
          "Sizes: 512Mi, 4Gi, 1.5Ti. Times: 250ms, 30s, 5m, 1h30m.\n\n"
          "Exit status: 0 the mount answers; 1 it could not be made; 2 wrong usage.",
  };
}

absl::Status SetMode(absl::string_view value, mode_t* target) {
  mode_t mode = 0;
  for (const char c : value) {
    if (c < '0' || c > '7' || value.size() > 5) {
      mode = 01000;
      break;
    }
    mode = mode * 8 + static_cast<mode_t>(c - '0');
  }
  if (value.empty() || mode > 0777) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", value, "\" is not an octal mode from 0 to 0777; write it like 0444"));
  }
  *target = mode;
  return absl::OkStatus();
}

absl::Status SetId(absl::string_view value, uint32_t* target) {
  uint32_t id = 0;
  // The highest value means "no user" to the kernel.
  if (!absl::SimpleAtoi(value, &id) || id == UINT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", value, "\" is not a numeric id; find one with: id NAME"));
  }
  *target = id;
  return absl::OkStatus();
}

void DeclareAccess(MountOptions* options, base::FlagSet* flags) {
  flags->Custom(
      "read-only", "",
      [options](absl::string_view value) {
        // "false" is how a file asks for the opposite.
        options->read_write = value == "false";
        return absl::OkStatus();
      },
      "no file can be changed (default)");
  flags->Custom(
      "read-write", "",
      [options](absl::string_view value) {
        options->read_write = value != "false";
        return absl::OkStatus();
      },
      "not in this version: refused");
  flags->Switch("allow-other", &options->allow_other,
                "let other users read the mount too; needs root, or user_allow_other in "
                "/etc/fuse.conf");
  flags->Custom(
      "uid", "ID", [options](absl::string_view value) { return SetId(value, &options->uid); },
      "owner of all files (default: the caller)");
  flags->Custom(
      "gid", "ID", [options](absl::string_view value) { return SetId(value, &options->gid); },
      "group of all files (default: the caller's)");
  flags->Custom(
      "file-mode", "MODE",
      [options](absl::string_view value) { return SetMode(value, &options->file_mode); },
      "permissions of files (default 0444)");
  flags->Custom(
      "dir-mode", "MODE",
      [options](absl::string_view value) { return SetMode(value, &options->dir_mode); },
      "permissions of directories (default 0555)");
  flags->Text("user", "NAME", &options->user,
              "the user whose rights the daemon has when root mounts (default: the system user "
              "millrace if there is one, else nobody); root keeps root, without its privileges");
}

void DeclareCache(MountOptions* options, base::FlagSet* flags) {
  flags->Custom(
      "tier", "MEDIUM:PATH:QUOTA[,high=0.95][,low=0.70]",
      [options](absl::string_view value) -> absl::Status {
        ASSIGN_OR_RETURN(tier::TierOptions tier, tier::ParseTier(value));
        options->tiers.push_back(std::move(tier));
        return absl::OkStatus();
      },
      "a place of the cache, fastest first, repeatable; MEDIUM is mem, ssd or hdd (default: up to "
      "10Gi below /var/cache/millrace, or ~/.cache/millrace without root)");
  flags->Choice(
      "eviction", {"epoch", "sieve"},
      [options](size_t i) {
        options->eviction = i == 0 ? tier::EvictionPolicy::kEpoch : tier::EvictionPolicy::kSieve;
      },
      "what a full cache does: epoch (default) keeps what it has, best for training; sieve lets "
      "new files push out old ones");
  flags->Bytes("memory-limit", &options->memory_limit_bytes, 64 * base::kMiB,
               "budget for data in flight (default 512Mi, at least 64Mi)");
}

void DeclareWorkers(MountOptions* options, base::FlagSet* flags) {
  flags->Custom(
      "workers", "ADDRESS[,ADDRESS...]",
      [options](absl::string_view value) -> absl::Status {
        options->workers.emplace_back(value);
        return pool::ParseWorkers(options->workers).status();
      },
      "cache workers to read through, repeatable: HOST:PORT, dns:NAME:PORT (a name of all of them) "
      "and unix:PATH (the socket of this node's own); without --tier nothing is then cached here");
  flags->Text("cluster", "ID", &options->cluster,
              "the cluster that the workers must be of (default millrace)");
  flags->Text(
      "worker-certificate", "FILE", &options->worker_certificate,
      "certificate (PEM) that this mount shows to workers: they are then spoken to with TLS");
  flags->Text("worker-key", "FILE", &options->worker_key, "its key");
  flags->Text("worker-authority", "FILE", &options->worker_authority,
              "certificates of the authority that the workers' must come from");
}

void DeclareCustody(MountOptions* options, base::FlagSet* flags) {
  flags->Custom(
      "hang-deadline", "TIME",
      [options](absl::string_view value) -> absl::Status {
        ASSIGN_OR_RETURN(const absl::Duration deadline, base::ParseDuration(value));
        if (deadline < absl::Seconds(2)) {
          return absl::InvalidArgumentError("the least is 2s: a busy machine is no hung daemon");
        }
        options->hang_deadline = deadline;
        return absl::OkStatus();
      },
      "how long the mount may go without an answer before its daemon is replaced (default 5s; inf: "
      "for ever)");
  flags->Integer(
      "crash-limit", &options->crash_limit, 0, 1'000'000,
      "after how many crashes of the daemon within a minute it is not started again, and "
      "reads fail (default 5; 0: it always is)");
  flags->Integer("custody-fd", &options->custody_fd, -1, 1 << 20, "descriptor of the keeper");
  flags->Hide();
}

void DeclareReading(MountOptions* options, base::FlagSet* flags) {
  flags->Choice(
      "profile", {"small-files", "large-files", "auto"},
      [options](size_t i) {
        constexpr Profile kProfiles[] = {Profile::kSmallFiles, Profile::kLargeFiles,
                                         Profile::kAuto};
        options->profile = kProfiles[i];
      },
      "what the mount is tuned for; auto (default) looks at a sample of the files");
  flags->Custom(
      "refresh", "TIME",
      [options](absl::string_view value) -> absl::Status {
        ASSIGN_OR_RETURN(const absl::Duration interval, base::ParseDuration(value));
        if (interval < absl::Seconds(1)) {
          return absl::InvalidArgumentError(
              "the least is 1s: every directory in use is listed again that often");
        }
        options->refresh = interval;
        return absl::OkStatus();
      },
      "how old a listing may get (default 60s; inf: never look again)");
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
      "how long a read is tried again before it fails with EIO (default 60s)");
  flags->Integer("connections", &options->connections, 1, 1024,
                 "parallel requests to the stores (default 16)");
  flags->Choice(
      "look-ahead", {"on", "off"}, [options](size_t i) { options->look_ahead = i == 0; },
      "fetch the neighbours of small files before they are asked for (default on)");
  flags->Choice(
      "io", {"uring", "posix", "auto"},
      [options](size_t i) {
        constexpr Io kIos[] = {Io::kUring, Io::kPosix, Io::kAuto};
        options->io = kIos[i];
      },
      "how cache files are read; auto (default) takes io_uring where the kernel allows it");
  flags->Choice(
      "fuse-transport", {"device", "uring"},
      [options](size_t i) { options->transport = i == 0 ? Transport::kDevice : Transport::kUring; },
      "how requests come from the kernel; uring is faster for small requests and direct reads, but "
      "open files do not survive the death of the daemon (default device)");
  flags->Custom(
      "no-passthrough", "",
      [options](absl::string_view value) {
        options->passthrough = value == "false";
        return absl::OkStatus();
      },
      "never let the kernel read complete files by itself");
}

base::FlagSet DeclareFlags(MountOptions* options, std::string* config_path) {
  base::FlagSet flags(HelpOfMount());
  DeclareCache(options, &flags);
  DeclareWorkers(options, &flags);
  DeclareReading(options, &flags);
  DeclareAccess(options, &flags);
  DeclareCustody(options, &flags);
  flags.Text("config", "FILE", config_path,
             "a runtime.json with sources, mountpoint and options; options given here override it");
  flags.Text("metrics", "HOST:PORT", &options->metrics_address,
             "serve Prometheus metrics there, as in 127.0.0.1:7462 or :7462");
  flags.Choice(
      "log-level", {"debug", "info", "warning", "error"},
      [options](size_t i) { options->log_level = static_cast<base::Severity>(i); },
      "the least severe lines that are logged (default info)");
  flags.Switch("foreground", &options->foreground,
               "stay in the foreground, log to the terminal, unmount on Ctrl-C");
  flags.Integer("ready-fd", &options->ready_fd, -1, 1 << 20, "descriptor of the command's pipe");
  flags.Hide();
  return flags;
}

// The last --config, which must be read before any other option is applied.
std::string ConfigPath(const base::ParsedArguments& parsed) {
  std::string path;
  for (const base::GivenFlag& flag : parsed.flags) {
    if (flag.name == "config") path = flag.value;
  }
  return path;
}

absl::Status ApplyConfig(absl::string_view json, const base::ParsedArguments& parsed,
                         base::FlagSet* flags, MountOptions* options) {
  ASSIGN_OR_RETURN(config::RuntimeConfig config, config::ParseRuntimeConfig(json, "client"));
  options->sources = std::move(config.sources);
  options->mountpoint = std::move(config.target_path);
  options->read_write = config.read_write;
  for (const auto& [name, value] : config.options) {
    const std::string origin = absl::StrCat("client.options.", name);
    const bool forbidden =
        std::find(std::begin(kNotFromFile), std::end(kNotFromFile), name) != std::end(kNotFromFile);
    if (forbidden || !flags->Known(name)) {
      options->notes.push_back(absl::StrCat(origin, " is no option of a mount: ignored"));
      continue;
    }
    RETURN_IF_ERROR(flags->Set(name, value, origin));
  }
  // Tiers do not add up over their origins: the more particular one replaces the others.
  if (!config.tiers.empty()) options->tiers = std::move(config.tiers);
  if (parsed.Has("tier")) options->tiers.clear();
  // What the cluster says of its workers is the least particular of all.
  if (options->workers.empty()) options->workers = std::move(config.workers);
  if (parsed.Has("workers")) options->workers.clear();
  return absl::OkStatus();
}

absl::Status TakePositionals(std::vector<std::string> positionals, MountOptions* options) {
  if (!positionals.empty()) {
    options->mountpoint = std::move(positionals.back());
    positionals.pop_back();
  }
  if (!positionals.empty()) options->sources = std::move(positionals);
  if (options->mountpoint.empty()) {
    return absl::InvalidArgumentError(
        "neither source nor mountpoint is given: millrace mount SOURCE... MOUNTPOINT, as in "
        "millrace mount s3://bucket/dir /data");
  }
  if (options->sources.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("no source is given, only \"", options->mountpoint,
                     "\": millrace mount SOURCE... "
                     "MOUNTPOINT, as in millrace mount s3://bucket/dir /data"));
  }
  // "millrace mount s3://a s3://b": a forgotten mountpoint, not a directory of that name.
  if (absl::StrContains(options->mountpoint, "://")) {
    return absl::InvalidArgumentError(
        absl::StrCat("the mountpoint comes last, but \"", options->mountpoint,
                     "\" is a URL: millrace mount SOURCE... MOUNTPOINT"));
  }
  return absl::OkStatus();
}

// What can be said about a source without opening it.
absl::Status CheckSources(const std::vector<std::string>& sources) {
  std::set<absl::string_view> names;
  for (const std::string& source : sources) {
    const absl::string_view name = SourceName(source);
    const absl::string_view url =
        name.empty() ? source : absl::string_view(source).substr(name.size() + 1);
    if (!absl::StrContains(url, "://")) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the source \"", url, "\" is not a URL; write it like s3://bucket/dir, or file:///",
          absl::StripPrefix(url, "/"), " for a directory of this machine"));
    }
    if (absl::StrContains(name, '/') || name == "." || name == "..") {
      return absl::InvalidArgumentError(
          absl::StrCat("the source name \"", name,
                       "\" becomes one directory of the mount; use letters, digits, "
                       "\".\", \"_\" and \"-\""));
    }
    if (name.empty() && sources.size() > 1) {
      return absl::InvalidArgumentError(absl::StrCat("several sources need names, and \"",
                                                     url.substr(0, url.find('?')),
                                                     "\" has none; write NAME=URL for "
                                                     "each, as in train=s3://bucket/train"));
    }
    if (!names.insert(name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("two sources have the name \"", name, "\"; give each its own"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ParsedMount> Parse(absl::Span<const std::string> arguments,
                                  const absl::string_view* config_text,
                                  absl::string_view config_name) {
  ParsedMount mount;
  mount.options.uid = geteuid();
  mount.options.gid = getegid();
  std::string config_path;
  base::FlagSet flags = DeclareFlags(&mount.options, &config_path);
  ASSIGN_OR_RETURN(base::ParsedArguments parsed, flags.Parse(arguments));
  if (parsed.help) {
    mount.help = true;
    return mount;
  }
  std::string from_disk;
  const std::string path = ConfigPath(parsed);
  absl::string_view text;
  if (config_text != nullptr) {
    text = *config_text;
  } else if (parsed.Has("config")) {
    absl::StatusOr<std::string> read = base::ReadTextFile(path, kConfigSizeMax);
    if (!read.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--config: cannot read ", read.status().message()));
    }
    from_disk = *std::move(read);
    text = from_disk;
    config_name = path;
  }
  if (config_text != nullptr || parsed.Has("config")) {
    const absl::Status status = ApplyConfig(text, parsed, &flags, &mount.options);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(config_name, ": ", status.message()));
    }
  }
  RETURN_IF_ERROR(flags.Apply(parsed));
  RETURN_IF_ERROR(TakePositionals(std::move(parsed.positionals), &mount.options));
  RETURN_IF_ERROR(CheckSources(mount.options.sources));
  if (mount.options.read_write) {
    return absl::InvalidArgumentError(
        "writing is not in this version; mount read-only: leave --read-write out, or give "
        "--read-only to override the accessModes of a configuration file");
  }
  return mount;
}

}  // namespace

absl::StatusOr<ParsedMount> ParseMountOptions(absl::Span<const std::string> arguments) {
  return Parse(arguments, nullptr, "");
}

absl::StatusOr<ParsedMount> ParseMountOptionsWithConfig(absl::Span<const std::string> arguments,
                                                        absl::string_view config_json,
                                                        absl::string_view config_path) {
  return Parse(arguments, &config_json, config_path);
}

int FindReadyFd(absl::Span<const std::string> arguments) {
  int fd = -1;
  for (size_t i = 0; i < arguments.size(); ++i) {
    absl::string_view value = arguments[i];
    if (value == "--ready-fd" && i + 1 < arguments.size()) {
      value = arguments[i + 1];
    } else if (!absl::ConsumePrefix(&value, "--ready-fd=")) {
      continue;
    }
    if (!absl::SimpleAtoi(value, &fd) || fd < 0) fd = -1;
  }
  return fd;
}

std::vector<std::string> ToArguments(const MountOptions& options) {
  std::vector<std::string> words;
  const auto add = [&words](absl::string_view name, const absl::AlphaNum& value) {
    words.push_back(absl::StrCat("--", name, "=", value));
  };
  for (const tier::TierOptions& tier : options.tiers) {
    add("tier", absl::StrCat(tier::MediumName(tier.medium), ":", tier.path, ":", tier.quota_bytes,
                             ",high=", tier.high_water, ",low=", tier.low_water));
  }
  for (const std::string& workers : options.workers) add("workers", workers);
  add("cluster", options.cluster);
  if (!options.worker_certificate.empty()) add("worker-certificate", options.worker_certificate);
  if (!options.worker_key.empty()) add("worker-key", options.worker_key);
  if (!options.worker_authority.empty()) add("worker-authority", options.worker_authority);
  add("eviction", options.eviction == tier::EvictionPolicy::kEpoch ? "epoch" : "sieve");
  add("memory-limit", options.memory_limit_bytes);
  add("profile", kProfileNames[static_cast<size_t>(options.profile)]);
  add("refresh", absl::FormatDuration(options.refresh));
  add("store-deadline", absl::FormatDuration(options.store_deadline));
  add("connections", options.connections);
  add("look-ahead", options.look_ahead ? "on" : "off");
  add("io", options.io == Io::kAuto ? "auto" : options.io == Io::kUring ? "uring" : "posix");
  add("fuse-transport", options.transport == Transport::kUring ? "uring" : "device");
  if (!options.passthrough) words.push_back("--no-passthrough");
  if (options.allow_other) words.push_back("--allow-other");
  add("uid", options.uid);
  add("gid", options.gid);
  add("file-mode", absl::StrFormat("%04o", options.file_mode));
  add("dir-mode", absl::StrFormat("%04o", options.dir_mode));
  if (!options.user.empty()) add("user", options.user);
  add("hang-deadline", absl::FormatDuration(options.hang_deadline));
  add("crash-limit", options.crash_limit);
  if (!options.metrics_address.empty()) add("metrics", options.metrics_address);
  add("log-level", kSeverityNames[static_cast<size_t>(options.log_level)]);
  if (options.foreground) words.push_back("--foreground");
  words.push_back("--");
  words.insert(words.end(), options.sources.begin(), options.sources.end());
  words.push_back(options.mountpoint);
  return words;
}

std::string MountHelp() {
  MountOptions options;
  std::string config_path;
  return DeclareFlags(&options, &config_path).Help();
}

absl::string_view SourceName(absl::string_view source) {
  const size_t equals = source.find('=');
  if (equals == absl::string_view::npos || equals > source.find("://")) return "";
  return source.substr(0, equals);
}

}  // namespace millrace::options
