#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/bench/arguments.h"
#include "cli/bench/file_list.h"
#include "cli/bench/generators.h"
#include "cli/bench/report.h"
#include "common/base/errno_status.h"
#include "common/base/page_cache.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace millrace::bench {
namespace {

struct Tally {
  uint64_t files = 0;
  uint64_t pages_before = 0;
  uint64_t pages_after = 0;
  bool counted = true;
};

absl::Status DropOne(const std::string& path, Tally* tally) {
  const base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return base::ErrnoStatus(errno, path);
  const absl::optional<uint64_t> before = base::CachedPages(fd.get(), 0, 0);
  if (const int error = posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED); error != 0) {
    return base::ErrnoStatus(error, path);
  }
  const absl::optional<uint64_t> after = base::CachedPages(fd.get(), 0, 0);
  ++tally->files;
  tally->pages_before += before.value_or(0);
  tally->pages_after += after.value_or(0);
  if (!before.has_value() || !after.has_value()) tally->counted = false;
  return absl::OkStatus();
}

}  // namespace

absl::Status RunDrop(const std::vector<std::string>& arguments) {
  bool as_json = false;
  base::FlagSet flags(
      {.usage = "millrace bench drop [OPTION...] FILE|DIR",
       .summary = "Drops the files at or below a path from the page cache of their own file "
                  "system. On a mount, the pages of the mount go and the cache files beneath it "
                  "keep theirs, unlike with /proc/sys/vm/drop_caches. Says how many pages were "
                  "cached before and are left.",
       .examples = {"millrace bench drop /data/train"}});
  flags.Switch("json", &as_json, "print one JSON object");
  ASSIGN_OR_RETURN(const auto positionals, ParseOrHelp(&flags, arguments));
  if (!positionals.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string path, OnlyArgument(*positionals, "FILE or DIR"));
  ASSIGN_OR_RETURN(const std::vector<std::string> files, FilesAt(path));
  Tally tally;
  absl::Status result;
  for (const std::string& file : files) result.Update(DropOne(file, &tally));
  if (as_json) {
    const nlohmann::json json = {{"generator", "drop"},
                                 {"files", tally.files},
                                 {"counted", tally.counted},
                                 {"cached_pages_before", tally.pages_before},
                                 {"cached_pages_after", tally.pages_after}};
    PrintJson(json);
  } else if (tally.counted) {
    PrintLine(absl::StrFormat("%d files: %d cached pages before, %d after", tally.files,
                              tally.pages_before, tally.pages_after));
  } else {
    PrintLine(
        absl::StrFormat("%d files dropped (this kernel cannot count cached pages)", tally.files));
  }
  return result;
}

}  // namespace millrace::bench
