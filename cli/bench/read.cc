#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/bench/arguments.h"
#include "cli/bench/file_list.h"
#include "cli/bench/generators.h"
#include "cli/bench/parallel.h"
#include "cli/bench/random.h"
#include "cli/bench/report.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/base/units.h"

namespace millrace::bench {
namespace {

// What O_DIRECT asks of buffers on every disk in use.
constexpr size_t kAlignment = 4096;

struct Options {
  std::vector<std::string> files;
  std::string verify_against;
  uint64_t block_bytes = base::kMiB;
  uint64_t jobs = 1;
  uint64_t seed = 1;
  uint64_t count = 0;
  absl::Duration duration = absl::ZeroDuration();
  bool random = false;
  bool direct = false;
  bool json = false;
};

struct Tally {
  Histogram latency;
  uint64_t bytes = 0;
  uint64_t errors = 0;
  uint64_t mismatches = 0;
  absl::Status first_error;

  void Add(const Tally& other) {
    latency.Add(other.latency);
    bytes += other.bytes;
    errors += other.errors;
    mismatches += other.mismatches;
    first_error.Update(other.first_error);
  }
};

void DeclareFlags(base::FlagSet* flags, Options* options, uint64_t* seconds) {
  AddChoice(flags, "pattern", "sequential", "random", &options->random,
            "sequential (default), or random at multiples of the block");
  flags->Bytes("block", &options->block_bytes, 1, "size of one read (default 1Mi)");
  AddNumber(flags, "jobs", &options->jobs, {.min = 1, .max = 4096}, "threads (default 1)");
  AddNumber(flags, "seconds", seconds, {.min = 1, .max = 1'000'000},
            "read for that long, over and over");
  AddNumber(flags, "count", &options->count, {.min = 1},
            "reads in total over all jobs (default without --seconds: each file once)");
  AddChoice(flags, "direct", "off", "on", &options->direct, "O_DIRECT (default off)");
  AddNumber(flags, "seed", &options->seed, {}, "of the random offsets (default 1)");
  flags->Text("verify-against", "FILE", &options->verify_against,
              "compare every block with the same range of this file");
  flags->Switch("json", &options->json, "print one JSON object");
}

absl::Status Validate(const Options& options) {
  if (options.files.empty()) {
    return absl::InvalidArgumentError("takes at least one FILE or DIR; see --help");
  }
  if (options.block_bytes > base::kGiB) {
    return absl::InvalidArgumentError("--block: it must be at most 1Gi");
  }
  if (options.random && options.duration == absl::ZeroDuration() && options.count == 0) {
    return absl::InvalidArgumentError("--pattern random needs --seconds or --count");
  }
  if (options.direct && options.block_bytes % kAlignment != 0) {
    return absl::InvalidArgumentError("--direct on needs a --block that is a multiple of 4Ki");
  }
  if (!options.verify_against.empty() && options.files.size() != 1) {
    return absl::InvalidArgumentError("--verify-against compares exactly one FILE");
  }
  return absl::OkStatus();
}

// nullopt when only help was asked for.
absl::StatusOr<std::optional<Options>> ParseOptions(const std::vector<std::string>& arguments) {
  Options options;
  uint64_t seconds = 0;
  base::FlagSet flags(
      {.usage = "millrace bench read [OPTION...] FILE|DIR...",
       .summary = "Reads large files with pread, one call at a time per job. Job j reads file j "
                  "modulo the number of files; the jobs of one file that read sequentially share "
                  "it in equal parts.",
       .examples = {"millrace bench read /data/big.bin",
                    "millrace bench read /data/big.bin --pattern random --block 4Ki --jobs 2 "
                    "--seconds 5"}});
  DeclareFlags(&flags, &options, &seconds);
  ASSIGN_OR_RETURN(const auto positionals, ParseOrHelp(&flags, arguments));
  if (!positionals.has_value()) return std::nullopt;
  for (const std::string& path : *positionals) {
    ASSIGN_OR_RETURN(const std::vector<std::string> files, FilesAt(path));
    options.files.insert(options.files.end(), files.begin(), files.end());
  }
  options.duration = absl::Seconds(static_cast<int64_t>(seconds));
  RETURN_IF_ERROR(Validate(options));
  return options;
}

struct Freer {
  void operator()(char* memory) const { free(memory); }
};
using Buffer = std::unique_ptr<char, Freer>;

Buffer AlignedBuffer(size_t bytes) {
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  Buffer buffer(static_cast<char*>(std::aligned_alloc(kAlignment, rounded)));
  // Touched, so that page faults are not timed.
  std::memset(buffer.get(), 0, rounded);
  return buffer;
}

// Reads the whole range unless the file ends; counts a short read as what it is.
absl::StatusOr<size_t> ReadRange(int fd, const std::string& path, uint64_t offset, char* buffer,
                                 size_t size) {
  for (;;) {
    const ssize_t got = pread(fd, buffer, size, static_cast<off_t>(offset));
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR) return base::ErrnoStatus(errno, absl::StrCat(path, " at ", offset));
  }
}

// One thread's reads. Not shared, except for the count of reads left.
class Job {
 public:
  Job(const Options& options, uint64_t index, std::atomic<int64_t>* reads_left)
      : options_(options),
        index_(index),
        path_(options.files[index % options.files.size()]),
        reads_left_(reads_left),
        random_(options.seed, index),
        buffer_(AlignedBuffer(options.block_bytes)) {}

  absl::Status Open() {
    fd_ = base::UniqueFd(
        open(path_.c_str(), O_RDONLY | O_CLOEXEC | (options_.direct ? O_DIRECT : 0)));
    struct stat attributes;
    if (!fd_.valid() || fstat(fd_.get(), &attributes) != 0) return base::ErrnoStatus(errno, path_);
    size_ = attributes.st_size;
    if (size_ == 0) return absl::FailedPreconditionError(absl::StrCat(path_, " is empty"));
    if (!options_.verify_against.empty()) {
      reference_fd_ = base::UniqueFd(open(options_.verify_against.c_str(), O_RDONLY | O_CLOEXEC));
      if (!reference_fd_.valid()) return base::ErrnoStatus(errno, options_.verify_against);
      reference_ = AlignedBuffer(options_.block_bytes);
    }
    return absl::OkStatus();
  }

  void Run() {
    const bool timed = options_.duration > absl::ZeroDuration();
    const bool counted = options_.count > 0;
    const uint64_t end = NowNanos() + absl::ToInt64Nanoseconds(options_.duration);
    const uint64_t blocks = (size_ + options_.block_bytes - 1) / options_.block_bytes;
    const Part part = MyPart(blocks);
    for (uint64_t i = part.begin;;) {
      if (timed && NowNanos() >= end) return;
      if (counted && reads_left_->fetch_sub(1, std::memory_order_relaxed) <= 0) return;
      if (i >= part.end) {
        if (!timed && !counted) return;
        i = part.begin;
      }
      const uint64_t block = options_.random ? random_.Below(blocks) : i++;
      if (!ReadBlock(block * options_.block_bytes)) return;
    }
  }

  const Tally& tally() const { return tally_; }

 private:
  struct Part {
    uint64_t begin;
    uint64_t end;
  };

  // The blocks that this job reads when it reads sequentially.
  Part MyPart(uint64_t blocks) const {
    const uint64_t files = options_.files.size();
    const uint64_t file = index_ % files;
    const uint64_t sharers = (options_.jobs - file + files - 1) / files;
    const uint64_t mine = index_ / files;
    const Part part = {.begin = blocks * mine / sharers, .end = blocks * (mine + 1) / sharers};
    return part.begin < part.end ? part : Part{.begin = 0, .end = blocks};
  }

  // Returns false when going on makes no sense.
  bool ReadBlock(uint64_t offset) {
    const uint64_t start = NowNanos();
    const absl::StatusOr<size_t> got =
        ReadRange(fd_.get(), path_, offset, buffer_.get(), options_.block_bytes);
    tally_.latency.Record(NowNanos() - start);
    const uint64_t expected = std::min(options_.block_bytes, size_ - offset);
    absl::Status status = got.status();
    if (status.ok() && *got != expected) {
      status = absl::DataLossError(
          absl::StrCat(path_, " at ", offset, ": read ", *got, " bytes of ", expected));
    }
    if (!status.ok()) {
      ++tally_.errors;
      tally_.first_error.Update(status);
      return false;
    }
    tally_.bytes += *got;
    if (reference_fd_.valid()) Compare(offset, *got);
    return true;
  }

  void Compare(uint64_t offset, size_t size) {
    const absl::StatusOr<size_t> got = ReadRange(reference_fd_.get(), options_.verify_against,
                                                 offset, reference_.get(), options_.block_bytes);
    if (got.ok() && *got == size && std::memcmp(buffer_.get(), reference_.get(), size) == 0) return;
    ++tally_.mismatches;
    tally_.first_error.Update(absl::DataLossError(
        absl::StrCat(path_, " differs from ", options_.verify_against, " at ", offset)));
  }

  const Options& options_;
  const uint64_t index_;
  const std::string& path_;
  std::atomic<int64_t>* const reads_left_;
  Random random_;
  const Buffer buffer_;
  Buffer reference_;
  base::UniqueFd fd_;
  base::UniqueFd reference_fd_;
  uint64_t size_ = 0;
  Tally tally_;
};

void Print(const Options& options, double seconds, const Tally& tally, const CpuTime& cpu) {
  if (!options.json) {
    PrintLine(absl::StrFormat(
        "%s %s: %.1f MiB/s, %.0f IOPS, %s, %d errors, %d mismatches, CPU %.2f s user %.2f s system",
        options.random ? "random" : "sequential", base::FormatBytes(options.block_bytes),
        tally.bytes / seconds / base::kMiB, tally.latency.count() / seconds,
        LatencyText(tally.latency), tally.errors, tally.mismatches, cpu.user_seconds,
        cpu.system_seconds));
    return;
  }
  nlohmann::json json = {{"generator", "read"},
                         {"files", options.files.size()},
                         {"pattern", options.random ? "random" : "sequential"},
                         {"block_bytes", options.block_bytes},
                         {"jobs", options.jobs},
                         {"direct", options.direct},
                         {"seconds", seconds},
                         {"reads", tally.latency.count()},
                         {"bytes", tally.bytes},
                         {"errors", tally.errors},
                         {"mismatches", tally.mismatches},
                         {"mib_per_second", tally.bytes / seconds / base::kMiB},
                         {"iops", tally.latency.count() / seconds}};
  AddLatency(tally.latency, &json);
  AddCpu(cpu, &json);
  PrintJson(json);
}

}  // namespace

absl::Status RunRead(const std::vector<std::string>& arguments) {
  ASSIGN_OR_RETURN(const std::optional<Options> given, ParseOptions(arguments));
  if (!given.has_value()) return absl::OkStatus();
  const Options& options = *given;
  std::atomic<int64_t> reads_left = static_cast<int64_t>(options.count);
  std::vector<std::unique_ptr<Job>> jobs;
  for (uint64_t i = 0; i < options.jobs; ++i) {
    jobs.push_back(std::make_unique<Job>(options, i, &reads_left));
    RETURN_IF_ERROR(jobs.back()->Open());
  }
  const CpuTime cpu_before = CpuTime::Now();
  const uint64_t nanos = RunTogether(options.jobs, [&](uint64_t i) { jobs[i]->Run(); });
  const CpuTime cpu = CpuTime::Now().Since(cpu_before);
  Tally total;
  for (const std::unique_ptr<Job>& job : jobs) total.Add(job->tally());
  Print(options, nanos * 1e-9, total, cpu);
  return total.first_error;
}

}  // namespace millrace::bench
