#include <sys/stat.h>

#include <cerrno>

#include "absl/strings/str_format.h"
#include "cli/bench/arguments.h"
#include "cli/bench/file_list.h"
#include "cli/bench/generators.h"
#include "cli/bench/parallel.h"
#include "cli/bench/report.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace millrace::bench {

absl::Status RunStat(const std::vector<std::string>& arguments) {
  uint64_t passes = 2;
  uint64_t threads = 1;
  bool as_json = false;
  base::FlagSet flags(
      {.usage = "millrace bench stat [OPTION...] DIR",
       .summary = "Calls stat on every file below DIR. The files are listed once, before anything "
                  "is timed; that look alone makes many file systems cache what stat will ask.",
       .examples = {"millrace bench stat /data/train --passes 3"}});
  AddNumber(&flags, "passes", &passes, {.min = 1}, "over all files (default 2)");
  AddNumber(&flags, "threads", &threads, {.min = 1, .max = 4096}, "callers (default 1)");
  flags.Switch("json", &as_json, "print one JSON object");
  ASSIGN_OR_RETURN(const auto positionals, ParseOrHelp(&flags, arguments));
  if (!positionals.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string directory, OnlyArgument(*positionals, "DIR"));
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
