#include "cache/tier/directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/io/system_calls.h"

namespace millrace::tier {

absl::StatusOr<base::UniqueFd> OpenDirectoryAt(int at, const std::string& name) {
  // The last component may be a link in a tier's path, which the user gave; never below it.
  const int no_follow = at == AT_FDCWD ? 0 : O_NOFOLLOW;
  base::UniqueFd fd(openat(at, name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | no_follow));
  if (!fd.valid()) return base::ErrnoStatus(errno, absl::StrCat("opening the directory ", name));
  return fd;
}

absl::StatusOr<base::UniqueFd> MakeDirectoryAt(int at, const std::string& name) {
  if (mkdirat(at, name.c_str(), 0700) != 0 && errno != EEXIST) {
    return base::ErrnoStatus(errno, absl::StrCat("creating the directory ", name));
  }
  return OpenDirectoryAt(at, name);
}

void ForgoAccessTimes(int directory) {
  int flags = 0;
  if (ioctl(directory, FS_IOC_GETFLAGS, &flags) != 0 || (flags & FS_NOATIME_FL) != 0) return;
  flags |= FS_NOATIME_FL;
  ioctl(directory, FS_IOC_SETFLAGS, &flags);
}

absl::Status ForEachEntry(int directory, absl::FunctionRef<void(const dirent& entry)> each) {
  // A descriptor of its own: a directory stream moves the offset, and closes what it was given.
  const int own = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (own < 0) return base::ErrnoStatus(errno, "opening a directory");
  const auto close_stream = [](DIR* stream) { closedir(stream); };
  const std::unique_ptr<DIR, decltype(close_stream)> stream(fdopendir(own), close_stream);
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(stream.get());
    if (entry == nullptr) {
      return errno == 0 ? absl::OkStatus() : base::ErrnoStatus(errno, "reading a directory");
    }
    if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0) {
      each(*entry);
    }
  }
}

absl::Status ForEachName(int directory, absl::FunctionRef<void(const char* name)> each) {
  return ForEachEntry(directory, [&](const dirent& entry) { each(entry.d_name); });
}

absl::StatusOr<std::string> ReadSmallFile(int at, const char* name) {
  const base::UniqueFd fd(openat(at, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd.valid()) return base::ErrnoStatus(errno, absl::StrCat("opening ", name));
  std::string text(4096, '\0');
  absl::StatusOr<size_t> size = io::ReadFully(fd.get(), 0, absl::MakeSpan(&text[0], text.size()));
  if (!size.ok()) return size.status();
  text.resize(*size);
  return text;
}

}  // namespace millrace::tier
