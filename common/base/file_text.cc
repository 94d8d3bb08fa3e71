#include "common/base/file_text.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/unique_fd.h"

namespace millrace::base {

absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t size_max) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, path);
  std::string text;
  char buffer[16384];
  while (true) {
    const ssize_t size = read(fd.get(), buffer, sizeof(buffer));
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) return ErrnoStatus(errno, path);
    if (size == 0) return text;
    if (text.size() + size > size_max) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is larger than the ", size_max, " bytes such a file may have"));
    }
    text.append(buffer, size);
  }
}

absl::Status WriteTextFile(const std::string& path, absl::string_view text, mode_t mode) {
  const std::string fresh = absl::StrCat(path, ".", getpid(), ".new");
  const UniqueFd fd(open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode));
  if (!fd.valid()) return ErrnoStatus(errno, fresh);
  while (!text.empty()) {
    const ssize_t size = write(fd.get(), text.data(), text.size());
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) {
      const int error = errno;
      unlink(fresh.c_str());
      return ErrnoStatus(error, fresh);
    }
    text.remove_prefix(size);
  }
  if (rename(fresh.c_str(), path.c_str()) != 0) {
    const int error = errno;
    unlink(fresh.c_str());
    return ErrnoStatus(error, path);
  }
  return absl::OkStatus();
}

}  // namespace millrace::base
