#include <dirent.h>

#include <cerrno>

#include "absl/strings/str_format.h"
#include "cli/bench/arguments.h"
#include "cli/bench/generators.h"
#include "cli/bench/report.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace millrace::bench {

absl::Status RunList(const std::vector<std::string>& arguments) {
  bool as_json = false;
  base::FlagSet flags(
      {.usage = "millrace bench list [OPTION...] DIR",
       .summary = "Lists DIR itself, unsorted like `ls -f`: the time to the first entry, and to "
                  "the last.",
       .examples = {"millrace bench list /data/train"}});
  flags.Switch("json", &as_json, "print one JSON object");
  ASSIGN_OR_RETURN(const auto positionals, ParseOrHelp(&flags, arguments));
  if (!positionals.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string path, OnlyArgument(*positionals, "DIR"));

  const uint64_t start = NowNanos();
  DIR* const directory = opendir(path.c_str());
  if (directory == nullptr) return base::ErrnoStatus(errno, path);
  uint64_t entries = 0;
  uint64_t first_nanos = 0;
  errno = 0;
  while (const dirent* entry = readdir(directory)) {
    const absl::string_view name = entry->d_name;
    // These two need no store: the first name after them is what a user waits for.
    if (name == "." || name == "..") continue;
    if (entries++ == 0) first_nanos = NowNanos() - start;
  }
  const int error = errno;
  const uint64_t total_nanos = NowNanos() - start;
  closedir(directory);

  const double seconds = total_nanos * 1e-9;
  if (as_json) {
    const nlohmann::json json = {{"generator", "list"}, {"directory", path},
                                 {"entries", entries},  {"first_entry_seconds", first_nanos * 1e-9},
                                 {"seconds", seconds},  {"entries_per_second", entries / seconds}};
    PrintJson(json);
  } else {
    PrintLine(absl::StrFormat("%d entries: first after %.3f s, all after %.3f s, %.0f entries/s",
                              entries, first_nanos * 1e-9, seconds, entries / seconds));
  }
  return error == 0 ? absl::OkStatus() : base::ErrnoStatus(error, path);
}

}  // namespace millrace::bench
