#include "cache/store/file_store.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cache/store/sample.h"
#include "common/base/clock.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/base/units.h"

namespace millrace::store {
namespace {

// What one read takes: large enough that the system calls do not show, small enough for many
// readers at once.
constexpr size_t kPieceBytes = base::kMiB;
constexpr size_t kDirectoryBufferBytes = 64 * base::kKiB;
constexpr size_t kSampleDirectoriesMax = 64;

// The record of getdents64(2), which no header of the C library declares.
struct DirectoryRecord {
  uint64_t inode;
  int64_t next_position;
  uint16_t record_bytes;
  uint8_t type;
  char name[];
};

std::string VersionOf(const struct stat& st) {
  return absl::StrCat(st.st_mtim.tv_sec * 1'000'000'000 + st.st_mtim.tv_nsec, "-", st.st_size);
}

Entry MakeEntry(absl::string_view name, const struct stat& st) {
  Entry entry;
  entry.name = std::string(name);
  entry.mtime = absl::TimeFromTimespec(st.st_mtim);
  if (S_ISDIR(st.st_mode)) {
    entry.kind = EntryKind::kDirectory;
    return entry;
  }
  entry.size = static_cast<uint64_t>(st.st_size);
  entry.version = VersionOf(st);
  return entry;
}

bool IsShown(const struct stat& st) { return S_ISREG(st.st_mode) || S_ISDIR(st.st_mode); }

absl::string_view LastComponent(absl::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == absl::string_view::npos ? path : path.substr(slash + 1);
}

// "", "a", "a/b" are; "/a", "a//b", "../a", "a/." and names with NUL are not: the kernel would
// resolve some of them, to another object than the store's caller named.
bool IsPlainPath(absl::string_view path) {
  if (absl::StrContains(path, '\0')) return false;
  if (path.empty()) return true;
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (part.empty() || part == "." || part == "..") return false;
  }
  return true;
}

class FileStore : public Store {
 public:
  FileStore(std::string root, base::UniqueFd fd)
      : root_(std::move(root)), root_fd_(std::move(fd)) {}

  absl::string_view kind() const override { return "file"; }
  uint64_t range_unit() const override { return kRangeUnitPage; }
  absl::StatusOr<ListPage> List(const std::string& path, const std::string& token,
                                size_t max_entries, const CallOptions& call) override;
  absl::StatusOr<Entry> Stat(const std::string& path, const CallOptions& call) override;
  absl::Status Get(const GetRequest& request, BodySink sink, const CallOptions& call) override;
  absl::StatusOr<std::vector<Entry>> Sample(size_t max_objects, const CallOptions& call) override;

 private:
  // The descriptor of `path` below the root, or -1 with errno.
  int OpenBeneath(const std::string& path, int flags) const;
  int OpenWithoutLinks(const std::string& path, int flags) const;
  // Attributes of the entry `name` of the open directory `directory`, whose path is `parent`.
  bool StatEntry(int directory, const std::string& parent, const char* name, struct stat* st) const;

  absl::Status Error(int error, absl::string_view operation, absl::string_view path) const;
  absl::Status Changed(absl::string_view path) const;

  const std::string root_;
  const base::UniqueFd root_fd_;
  mutable std::atomic<bool> has_openat2_{true};
};

absl::Status FileStore::Error(int error, absl::string_view operation,
                              absl::string_view path) const {
  const std::string what = absl::StrCat("file: ", operation, " ", root_, path.empty() ? "" : "/",
                                        path, ": ", std::strerror(error));
  switch (error) {
    // EXDEV and ELOOP: a symbolic link leads out of the root, or nowhere.
    case ENOENT:
    case ENOTDIR:
    case ENAMETOOLONG:
    case EXDEV:
    case ELOOP:
    case ENXIO:
      return base::WithErrno(absl::NotFoundError(what), error);
    case EACCES:
    case EPERM:
      return base::WithErrno(absl::PermissionDeniedError(what), error);
    case EIO:
    case ESTALE:
    case ETIMEDOUT:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EAGAIN:
      return base::WithErrno(absl::UnavailableError(what), error);
    default:
      return base::WithErrno(absl::InvalidArgumentError(what), error);
  }
}

absl::Status FileStore::Changed(absl::string_view path) const {
  return absl::FailedPreconditionError(
      absl::StrCat("file: get ", root_, "/", path, ": the file changed since it was listed"));
}

int FileStore::OpenBeneath(const std::string& path, int flags) const {
  if (!IsPlainPath(path)) {
    errno = ENOENT;
    return -1;
  }
  if (has_openat2_.load(std::memory_order_relaxed)) {
    open_how how{};
    how.flags = static_cast<uint64_t>(flags | O_CLOEXEC);
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
    const char* const name = path.empty() ? "." : path.c_str();
    // EAGAIN: a rename elsewhere raced with the resolution; openat2(2) asks to try again.
    for (int tries = 0; tries < 8; ++tries) {
      const long fd = syscall(SYS_openat2, root_fd_.get(), name, &how, sizeof(how));
      if (fd >= 0) return static_cast<int>(fd);
      if (errno != EAGAIN) break;
    }
    if (errno != ENOSYS) return -1;
    has_openat2_.store(false, std::memory_order_relaxed);
  }
  return OpenWithoutLinks(path, flags);
}

int FileStore::OpenWithoutLinks(const std::string& path, int flags) const {
  if (path.empty()) return openat(root_fd_.get(), ".", flags | O_CLOEXEC);
  base::UniqueFd parent;
  const std::vector<std::string> parts = absl::StrSplit(path, '/');
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    const int at = parent.valid() ? parent.get() : root_fd_.get();
    base::UniqueFd next(
        openat(at, parts[i].c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!next.valid()) return -1;
    parent = std::move(next);
  }
  const int at = parent.valid() ? parent.get() : root_fd_.get();
  return openat(at, parts.back().c_str(), flags | O_NOFOLLOW | O_CLOEXEC);
}

bool FileStore::StatEntry(int directory, const std::string& parent, const char* name,
                          struct stat* st) const {
  if (fstatat(directory, name, st, AT_SYMLINK_NOFOLLOW) != 0) return false;
  if (S_ISLNK(st->st_mode)) {
    const base::UniqueFd target(
        OpenBeneath(parent.empty() ? name : absl::StrCat(parent, "/", name), O_PATH));
    if (!target.valid() || fstat(target.get(), st) != 0) return false;
  }
  return IsShown(*st);
}

absl::StatusOr<ListPage> FileStore::List(const std::string& path, const std::string& token,
                                         size_t max_entries, const CallOptions& call) {
  // A token is the directory position behind the last entry, as getdents64(2) gives it.
  int64_t position = 0;
  if (!token.empty() && !absl::SimpleAtoi(token, &position)) {
    return absl::InvalidArgumentError("file: list: the page token is not one of this store");
  }
  const base::UniqueFd fd(OpenBeneath(path, O_RDONLY | O_DIRECTORY));
  if (!fd.valid()) return Error(errno, "list", path);
  if (position != 0 && lseek(fd.get(), position, SEEK_SET) < 0) return Error(errno, "list", path);

  ListPage page;
  const auto buffer = std::make_unique<char[]>(kDirectoryBufferBytes);
  const absl::Duration give_up = base::RealClock()->Monotonic() + call.timeout;
  while (true) {
    const long bytes = syscall(SYS_getdents64, fd.get(), buffer.get(), kDirectoryBufferBytes);
    if (bytes < 0) return Error(errno, "list", path);
    if (bytes == 0) return page;
    if (call.cancelled != nullptr && call.cancelled->load(std::memory_order_relaxed)) {
      return absl::CancelledError("file: list: cancelled");
    }
    if (base::RealClock()->Monotonic() > give_up) {
      return absl::DeadlineExceededError(absl::StrCat("file: list ", root_, "/", path));
    }
    for (long at = 0; at < bytes;) {
      const auto* const record = reinterpret_cast<const DirectoryRecord*>(buffer.get() + at);
      at += record->record_bytes;
      const absl::string_view name(record->name);
      struct stat st;
      if (name != "." && name != ".." && StatEntry(fd.get(), path, record->name, &st)) {
        page.entries.push_back(MakeEntry(name, st));
      }
      if (page.entries.size() >= std::max<size_t>(max_entries, 1)) {
        page.next_token = absl::StrCat(record->next_position);
        return page;
      }
    }
  }
}

absl::StatusOr<Entry> FileStore::Stat(const std::string& path, const CallOptions&) {
  const base::UniqueFd fd(OpenBeneath(path, O_PATH));
  struct stat st;
  if (!fd.valid() || fstat(fd.get(), &st) != 0) return Error(errno, "stat", path);
  if (!IsShown(st)) return Error(ENOENT, "stat", path);
  return MakeEntry(LastComponent(path), st);
}

absl::Status FileStore::Get(const GetRequest& request, BodySink sink, const CallOptions& call) {
  // O_NONBLOCK: opening a pipe put in place of a file must not wait for its writer.
  const base::UniqueFd fd(OpenBeneath(request.path, O_RDONLY | O_NONBLOCK | O_NOCTTY));
  struct stat st;
  if (!fd.valid() || fstat(fd.get(), &st) != 0) return Error(errno, "get", request.path);
  if (!S_ISREG(st.st_mode)) return Error(ENOENT, "get", request.path);
  const std::string version = VersionOf(st);
  const auto size = static_cast<uint64_t>(st.st_size);
  if ((!request.version.empty() && request.version != version) || request.length > size ||
      request.offset > size - request.length) {
    return Changed(request.path);
  }
  if (request.length >= kPieceBytes) {
    posix_fadvise(fd.get(), static_cast<off_t>(request.offset), static_cast<off_t>(request.length),
                  POSIX_FADV_SEQUENTIAL);
  }
  const size_t buffer_bytes = std::min<uint64_t>(request.length, kPieceBytes);
  const std::unique_ptr<char[]> buffer(request.room == nullptr ? new char[buffer_bytes] : nullptr);
  const absl::Duration give_up = base::RealClock()->Monotonic() + call.timeout;
  for (uint64_t done = 0; done < request.length;) {
    if (call.cancelled != nullptr && call.cancelled->load(std::memory_order_relaxed)) {
      return absl::CancelledError("file: get: cancelled");
    }
    if (base::RealClock()->Monotonic() > give_up) {
      return absl::DeadlineExceededError(absl::StrCat("file: get ", root_, "/", request.path));
    }
    const absl::Span<char> space =
        request.room == nullptr ? absl::MakeSpan(buffer.get(), buffer_bytes) : (*request.room)();
    const ssize_t bytes =
        pread(fd.get(), space.data(), std::min<uint64_t>(space.size(), request.length - done),
              static_cast<off_t>(request.offset + done));
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0) return Error(errno, "get", request.path);
    // Checked before the piece is passed on: what the sink has seen is of one version.
    if (fstat(fd.get(), &st) != 0) return Error(errno, "get", request.path);
    if (bytes == 0 || VersionOf(st) != version) return Changed(request.path);
    if (!sink(absl::string_view(space.data(), static_cast<size_t>(bytes)))) {
      return absl::CancelledError("file: get: stopped by the reader");
    }
    done += static_cast<uint64_t>(bytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Entry>> FileStore::Sample(size_t max_objects, const CallOptions& call) {
  return SampleDirectories(*this, max_objects, kSampleDirectoriesMax, call);
}

}  // namespace

absl::StatusOr<std::shared_ptr<Store>> NewFileStore(const std::string& root) {
  base::UniqueFd fd(open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) {
    const int error = errno;
    const std::string what = absl::StrCat("file: ", root, ": ", std::strerror(error),
                                          "; name an existing directory you may read");
    const absl::Status status = error == ENOENT || error == ENOTDIR ? absl::NotFoundError(what)
                                : error == EACCES ? absl::PermissionDeniedError(what)
                                                  : absl::UnavailableError(what);
    return base::WithErrno(status, error);
  }
  return std::make_shared<FileStore>(root, std::move(fd));
}

}  // namespace millrace::store
