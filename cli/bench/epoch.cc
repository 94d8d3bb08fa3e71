#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/bench/arguments.h"
#include "cli/bench/file_list.h"
#include "cli/bench/generators.h"
#include "cli/bench/parallel.h"
#include "cli/bench/random.h"
#include "cli/bench/report.h"
#include "common/base/crc32c.h"
#include "common/base/errno_status.h"
#include "common/base/hash.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/base/units.h"

namespace millrace::bench {
namespace {

// Small files fit; a larger one is read in pieces of this size.
constexpr size_t kBufferBytes = 4 * base::kMiB;

struct Options {
  std::string directory;
  uint64_t threads = 1;
  uint64_t epochs = 1;
  uint64_t seed = 1;
  bool sequential = false;
  bool verify = false;
  bool json = false;
};

// What one reader saw in one epoch.
struct Tally {
  Histogram latency;
  uint64_t files = 0;
  uint64_t bytes = 0;
  uint64_t errors = 0;
  // Sum over the files, so that the order of reading does not matter.
  uint64_t digest = 0;
  absl::Status first_error;

  void Add(const Tally& other) {
    latency.Add(other.latency);
    files += other.files;
    bytes += other.bytes;
    errors += other.errors;
    digest += other.digest;
    first_error.Update(other.first_error);
  }
};

// nullopt when only help was asked for.
absl::StatusOr<std::optional<Options>> ParseOptions(const std::vector<std::string>& arguments) {
  Options options;
  base::FlagSet flags(
      {.usage = "millrace bench epoch [OPTION...] DIR",
       .summary = "Opens, reads and closes every file below DIR once per epoch, as a training job "
                  "does. The files are listed once, before anything is timed.",
       .examples = {"millrace bench epoch /data/train --threads 8 --epochs 3"}});
  AddNumber(&flags, "threads", &options.threads, {.min = 1, .max = 4096}, "readers (default 1)");
  AddNumber(&flags, "epochs", &options.epochs, {.min = 1}, "passes over all files (default 1)");
  AddChoice(&flags, "order", "shuffled", "sequential", &options.sequential,
            "shuffled (default): a new permutation for each epoch");
  AddNumber(&flags, "seed", &options.seed, {}, "of the permutations (default 1)");
  flags.Switch("verify", &options.verify,
               "print a digest of all names and contents, the same for equal trees, and fail when "
               "two epochs differ");
  flags.Switch("json", &options.json, "print one JSON object");
  ASSIGN_OR_RETURN(const auto positionals, ParseOrHelp(&flags, arguments));
  if (!positionals.has_value()) return std::nullopt;
  ASSIGN_OR_RETURN(options.directory, OnlyArgument(*positionals, "DIR"));
  return options;
}

// Reads one file the way a data loader does: open, fstat for the size, read until the end, close.
absl::Status ReadFile(const std::string& path, char* buffer, uint64_t* bytes, uint32_t* crc) {
  const base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return base::ErrnoStatus(errno, path);
  struct stat attributes;
  if (fstat(fd.get(), &attributes) != 0) return base::ErrnoStatus(errno, path);
  uint64_t total = 0;
  for (;;) {
    const ssize_t got = read(fd.get(), buffer, kBufferBytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return base::ErrnoStatus(errno, path);
    if (got == 0) break;
    if (crc != nullptr) *crc = base::Crc32c(*crc, absl::string_view(buffer, got));
    total += got;
  }
  *bytes += total;
  if (total != static_cast<uint64_t>(attributes.st_size)) {
    return absl::DataLossError(
        absl::StrCat(path, ": read ", total, " bytes of ", attributes.st_size));
  }
  return absl::OkStatus();
}

uint64_t FileDigest(absl::string_view relative_path, uint64_t bytes, uint32_t crc) {
  return base::StableHash64({relative_path, absl::StrCat(bytes), absl::StrCat(crc)});
}

Tally RunReader(const Options& options, const std::vector<std::string>& files,
                std::atomic<size_t>* next, char* buffer) {
  Tally tally;
  for (;;) {
    const size_t i = next->fetch_add(1, std::memory_order_relaxed);
    if (i >= files.size()) return tally;
    uint64_t bytes = 0;
    uint32_t crc = 0;
    const uint64_t start = NowNanos();
    const absl::Status status = ReadFile(files[i], buffer, &bytes, options.verify ? &crc : nullptr);
    tally.latency.Record(NowNanos() - start);
    ++tally.files;
    tally.bytes += bytes;
    if (!status.ok()) ++tally.errors;
    tally.first_error.Update(status);
    if (options.verify) {
      const absl::string_view relative =
          absl::string_view(files[i]).substr(options.directory.size());
      tally.digest += FileDigest(relative.substr(relative.find_first_not_of('/')), bytes, crc);
    }
  }
}

nlohmann::json EpochJson(const Options& options, uint64_t epoch, double seconds, const Tally& tally,
                         const CpuTime& cpu) {
  nlohmann::json json = {{"epoch", epoch},
                         {"seconds", seconds},
                         {"files", tally.files},
                         {"bytes", tally.bytes},
                         {"errors", tally.errors},
                         {"files_per_second", tally.files / seconds},
                         {"bytes_per_second", tally.bytes / seconds}};
  AddLatency(tally.latency, &json);
  AddCpu(cpu, &json);
  if (options.verify) json["digest"] = absl::StrFormat("%016x", tally.digest);
  return json;
}

std::string EpochText(const Options& options, uint64_t epoch, double seconds, const Tally& tally,
                      const CpuTime& cpu) {
  std::string text = absl::StrFormat(
      "epoch %d: %.0f files/s, %s/s, %s, %d errors, CPU %.2f s user %.2f s system", epoch,
      tally.files / seconds, base::FormatBytes(tally.bytes / seconds), LatencyText(tally.latency),
      tally.errors, cpu.user_seconds, cpu.system_seconds);
  if (options.verify) absl::StrAppendFormat(&text, ", digest %016x", tally.digest);
  return text;
}

}  // namespace

absl::Status RunEpoch(const std::vector<std::string>& arguments) {
  ASSIGN_OR_RETURN(const std::optional<Options> given, ParseOptions(arguments));
  if (!given.has_value()) return absl::OkStatus();
  const Options& options = *given;
  ASSIGN_OR_RETURN(std::vector<std::string> files, ListFiles(options.directory));
  // Zeroed, so that page faults of the buffers are not timed.
  std::vector<std::vector<char>> buffers(options.threads, std::vector<char>(kBufferBytes));

  nlohmann::json report = {
      {"generator", "epoch"},       {"directory", options.directory},
      {"threads", options.threads}, {"order", options.sequential ? "sequential" : "shuffled"},
      {"seed", options.seed},       {"epochs", nlohmann::json::array()}};
  absl::Status result;
  uint64_t first_digest = 0;
  for (uint64_t epoch = 1; epoch <= options.epochs; ++epoch) {
    if (!options.sequential) Random(options.seed, epoch).Shuffle(&files);
    std::vector<Tally> tallies(options.threads);
    std::atomic<size_t> next = 0;
    const CpuTime cpu_before = CpuTime::Now();
    const uint64_t nanos = RunTogether(options.threads, [&](uint64_t i) {
      tallies[i] = RunReader(options, files, &next, buffers[i].data());
    });
    const CpuTime cpu = CpuTime::Now().Since(cpu_before);
    Tally total;
    for (const Tally& tally : tallies) total.Add(tally);
    const double seconds = nanos * 1e-9;
    report["epochs"].push_back(EpochJson(options, epoch, seconds, total, cpu));
    if (!options.json) PrintLine(EpochText(options, epoch, seconds, total, cpu));

    result.Update(total.first_error);
    if (epoch == 1) first_digest = total.digest;
    if (total.digest != first_digest) {
      result.Update(absl::DataLossError(absl::StrCat(
          "epoch ", epoch, " read other bytes than epoch 1 below ", options.directory)));
    }
  }
  if (options.json) PrintJson(report);
  return result;
}

}  // namespace millrace::bench
