#include "cli/bench/file_list.h"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace millrace::bench {
namespace {

struct DirCloser {
  void operator()(DIR* directory) const { closedir(directory); }
};

unsigned char TypeOf(const dirent& entry, const std::string& path) {
  if (entry.d_type != DT_UNKNOWN) return entry.d_type;
  struct stat attributes;
  if (lstat(path.c_str(), &attributes) != 0) return DT_UNKNOWN;
  return IFTODT(attributes.st_mode);
}

// Appends the files of one directory to `files` and its directories to `directories`.
absl::Status ListOne(const std::string& path, std::vector<std::string>* files,
                     std::vector<std::string>* directories) {
  const std::unique_ptr<DIR, DirCloser> directory(opendir(path.c_str()));
  if (directory == nullptr) return base::ErrnoStatus(errno, path);
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(directory.get());
    if (entry == nullptr) break;
    const absl::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    std::string child = absl::StrCat(path, path.back() == '/' ? "" : "/", name);
    const unsigned char type = TypeOf(*entry, child);
    if (type == DT_REG) {
      files->push_back(std::move(child));
    } else if (type == DT_DIR) {
      directories->push_back(std::move(child));
    }
  }
  return errno == 0 ? absl::OkStatus() : base::ErrnoStatus(errno, path);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ListFiles(const std::string& directory) {
  if (directory.empty()) return absl::InvalidArgumentError("the directory's name is empty");
  std::vector<std::string> files;
  std::vector<std::string> pending = {directory};
  while (!pending.empty()) {
    const std::string next = std::move(pending.back());
    pending.pop_back();
    RETURN_IF_ERROR(ListOne(next, &files, &pending));
  }
  if (files.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("there is no file below ", directory));
  }
  std::sort(files.begin(), files.end());
  return files;
}

absl::StatusOr<std::vector<std::string>> FilesAt(const std::string& path) {
  struct stat attributes;
  if (stat(path.c_str(), &attributes) != 0) return base::ErrnoStatus(errno, path);
  if (S_ISDIR(attributes.st_mode)) return ListFiles(path);
  return std::vector<std::string>{path};
}

}  // namespace millrace::bench
