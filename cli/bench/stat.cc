#include <sys/stat.h>

#include <cerrno>

#include "absl/strings/str_format.h"
#include "cli/bench/file_list.h"
#include "cli/bench/flags.h"
#include "cli/bench/generators.h"
#include "cli/bench/parallel.h"
#include "cli/bench/report.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace millrace::bench {

const absl::string_view kStatUsage =
    R"(Usage: millrace bench stat DIR [--passes P] [--threads N] [--json]

Calls stat on every file below DIR, in P passes (2). The files are listed once, before anything is
timed; that look alone makes many file systems cache what stat will ask.

Example: millrace bench stat /data/train --passes 3
)";

absl::Status RunStat(const std::vector<std::string>& arguments) {
  uint64_t passes = 2;
  uint64_t threads = 1;
  bool as_json = false;
  Flags flags;
  flags.Number("passes", &passes, {.min = 1});
  flags.Number("threads", &threads, {.min = 1, .max = 4096});
  flags.Switch("json", &as_json);
  ASSIGN_OR_RETURN(const std::vector<std::string> positional, flags.Parse(arguments));
  ASSIGN_OR_RETURN(const std::string directory, OnlyArgument(positional, "DIR"));
  ASSIGN_OR_RETURN(const std::vector<std::string> files, ListFiles(directory));

  nlohmann::json report = {{"generator", "stat"},
                           {"directory", directory},
                           {"threads", threads},
                           {"files", files.size()},
                           {"passes", nlohmann::json::array()}};
  absl::Status result;
  for (uint64_t pass = 1; pass <= passes; ++pass) {
    std::vector<absl::Status> statuses(threads);
    const uint64_t nanos = RunTogether(threads, [&](uint64_t thread) {
      struct stat attributes;
      for (size_t i = thread; i < files.size(); i += threads) {
        if (stat(files[i].c_str(), &attributes) != 0) {
          statuses[thread].Update(base::ErrnoStatus(errno, files[i]));
        }
      }
    });
    for (const absl::Status& status : statuses) result.Update(status);
    const double seconds = nanos * 1e-9;
    report["passes"].push_back(
        {{"pass", pass}, {"seconds", seconds}, {"stats_per_second", files.size() / seconds}});
    if (!as_json) {
      PrintLine(absl::StrFormat("pass %d: %.0f stat/s (%d files in %.3f s)", pass,
                                files.size() / seconds, files.size(), seconds));
    }
  }
  if (as_json) PrintJson(report);
  return result;
}

}  // namespace millrace::bench
