#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/bench/arguments.h"
#include "cli/bench/generators.h"
#include "cli/bench/random.h"
#include "cli/bench/report.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/base/units.h"

namespace millrace::bench {
namespace {

constexpr size_t kChunkBytes = base::kMiB;
// The stream of random bytes of big.bin; small files use their number.
constexpr uint64_t kBigStream = UINT64_MAX;

// With its parents; one that exists is fine.
absl::Status MakeDirectory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  return error ? base::ErrnoStatus(error.value(), path) : absl::OkStatus();
}

absl::Status WriteFile(const std::string& path, uint64_t size, Random random,
                       std::vector<char>* chunk) {
  const base::UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd.valid()) return base::ErrnoStatus(errno, path);
  for (uint64_t written = 0; written < size;) {
    const size_t step = std::min<uint64_t>(chunk->size(), size - written);
    random.Fill(chunk->data(), step);
    for (size_t done = 0; done < step;) {
      const ssize_t put = write(fd.get(), chunk->data() + done, step - done);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return base::ErrnoStatus(errno, path);
      done += put;
    }
    written += step;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunMake(const std::vector<std::string>& arguments) {
  uint64_t files = 10'000;
  uint64_t size_min = 60 * base::kKiB;
  uint64_t size_max = 160 * base::kKiB;
  uint64_t directories = 100;
  uint64_t big_bytes = 2 * base::kGiB;
  uint64_t seed = 1;
  bool as_json = false;
  base::FlagSet flags(
      {.usage = "millrace bench make [OPTION...] DIR",
       .summary = "Writes a training set below DIR: small files in DIR/small/dNNN/, and "
                  "DIR/big.bin. Sizes and bytes follow from the seed alone, so that two machines "
                  "measure the same; the bytes do not compress.",
       .examples = {"millrace bench make /tmp/train --files 2000 --big 512Mi"}});
  AddNumber(&flags, "files", &files, {.max = 100'000'000}, "small files (default 10000)");
  flags.Bytes("size-min", &size_min, 0, "of a small file (default 60Ki)");
  flags.Bytes("size-max", &size_max, 0, "sizes are spread evenly up to it (default 160Ki)");
  AddNumber(&flags, "directories", &directories, {.min = 1, .max = 1'000'000},
            "that hold the small files (default 100)");
  flags.Bytes("big", &big_bytes, 0, "size of big.bin (default 2Gi); 0 leaves it out");
  AddNumber(&flags, "seed", &seed, {}, "of all sizes and bytes (default 1)");
  flags.Switch("json", &as_json, "print one JSON object");
  ASSIGN_OR_RETURN(const auto positionals, ParseOrHelp(&flags, arguments));
  if (!positionals.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string root, OnlyArgument(*positionals, "DIR"));
  if (size_min > size_max) {
    return absl::InvalidArgumentError("--size-min must not be above --size-max");
  }

  const uint64_t start = NowNanos();
  RETURN_IF_ERROR(MakeDirectory(root));
  const std::string small = absl::StrCat(root, "/small");
  if (files > 0) RETURN_IF_ERROR(MakeDirectory(small));
  for (uint64_t i = 0; i < std::min(directories, files); ++i) {
    RETURN_IF_ERROR(MakeDirectory(absl::StrFormat("%s/d%03d", small, i)));
  }
  std::vector<char> chunk(kChunkBytes);
  uint64_t bytes = 0;
  for (uint64_t i = 0; i < files; ++i) {
    Random random(seed, i);
    const uint64_t size = size_min + random.Below(size_max - size_min + 1);
    const std::string path = absl::StrFormat("%s/d%03d/f%06d.bin", small, i % directories, i);
    RETURN_IF_ERROR(WriteFile(path, size, random, &chunk));
    bytes += size;
  }
  if (big_bytes > 0) {
    RETURN_IF_ERROR(
        WriteFile(absl::StrCat(root, "/big.bin"), big_bytes, Random(seed, kBigStream), &chunk));
    bytes += big_bytes;
  }
  const double seconds = (NowNanos() - start) * 1e-9;
  if (as_json) {
    const nlohmann::json json = {
        {"generator", "make"}, {"directory", root},  {"files", files}, {"big_bytes", big_bytes},
        {"bytes", bytes},      {"seconds", seconds}, {"seed", seed}};
    PrintJson(json);
  } else {
    PrintLine(absl::StrFormat("made %d small files and a big one of %s: %s in %.1f s", files,
                              base::FormatBytes(big_bytes), base::FormatBytes(bytes), seconds));
  }
  return absl::OkStatus();
}

}  // namespace millrace::bench
