#include "common/base/paths.h"

#include <stdlib.h>
#include <unistd.h>

#include <climits>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace millrace::base {

std::string NormalizePath(absl::string_view path, absl::string_view cwd) {
  const std::string whole =
      absl::StartsWith(path, "/") ? std::string(path) : absl::StrCat(cwd, "/", path);
  std::vector<absl::string_view> kept;
  for (const absl::string_view part : absl::StrSplit(whole, '/', absl::SkipEmpty())) {
    if (part == "..") {
      if (!kept.empty()) kept.pop_back();
    } else if (part != ".") {
      kept.push_back(part);
    }
  }
  return absl::StrCat("/", absl::StrJoin(kept, "/"));
}

std::string ResolvePath(absl::string_view path) {
  char resolved[PATH_MAX];
  // realpath first, on the path as written: "link/.." is not what the text says.
  if (realpath(std::string(path).c_str(), resolved) != nullptr) return resolved;
  char cwd[PATH_MAX];
  const std::string normal = NormalizePath(path, getcwd(cwd, sizeof(cwd)) == nullptr ? "/" : cwd);
  // The longest parent that exists, and the rest as written.
  for (size_t slash = normal.rfind('/'); slash != 0 && slash != std::string::npos;
       slash = normal.rfind('/', slash - 1)) {
    if (realpath(normal.substr(0, slash).c_str(), resolved) != nullptr) {
      return absl::StrCat(resolved, normal.substr(slash));
    }
  }
  return normal;
}

bool IsAtOrBelow(absl::string_view path, absl::string_view directory) {
  if (directory == "/" || path == directory) return true;
  return absl::StartsWith(path, directory) && path[directory.size()] == '/';
}

}  // namespace millrace::base
