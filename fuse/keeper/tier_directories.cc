#include "fuse/keeper/tier_directories.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace millrace::keeper {
namespace {

// The names of cache/tier/format.h, which this room does not see; its test compares them.
constexpr char kLockName[] = "lock";
constexpr char kLockHeader[] = "millrace tier\n";
constexpr char kSourcesName[] = "sources";
constexpr char kJournalName[] = "journal";
constexpr char kJournalNewName[] = "journal.new";
// sources/<source>/complete/<file>: nothing of ours is deeper.
constexpr int kDepthMax = 4;

// One directory on its way to its new owner.
class HandOver {
 public:
  HandOver(const std::string& path, const Identity& identity) : path_(path), identity_(identity) {}

  absl::Status Run() {
    RETURN_IF_ERROR(MakeParents());
    RETURN_IF_ERROR(Open());
    ASSIGN_OR_RETURN(const bool done, Done());
    if (done) return absl::OkStatus();
    RETURN_IF_ERROR(CheckOurs());
    ASSIGN_OR_RETURN(const base::UniqueFd lock, TakeLock());
    // The names that Done looks at come last: a hand-over that was interrupted goes on.
    RETURN_IF_ERROR(GiveTree(top_.get(), kSourcesName, kDepthMax));
    for (const char* const name : {kJournalNewName, kJournalName, kLockName}) {
      RETURN_IF_ERROR(GiveFile(top_.get(), name));
    }
    RETURN_IF_ERROR(GiveTop());
    if (files_ > 0) {
      base::Log(base::Severity::kInfo, "cache handed over",
                {{"tier", path_}, {"files", files_}, {"uid", identity_.uid}});
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Error(int error, absl::string_view what) const {
    const absl::string_view remedy =
        error == EPERM || error == EINVAL || error == EOPNOTSUPP
            ? "; it cannot be given to another user: choose another, or add --user root"
            : "";
    return base::WithErrno(
        absl::FailedPreconditionError(
            absl::StrCat("cache directory ", path_, ": ", what, ": ", strerror(error), remedy)),
        error);
  }

  // Whatever the umask: the daemon passes through them, and they hold nothing but caches.
  absl::Status MakeParents() const {
    for (size_t slash = path_.find('/', 1); slash != std::string::npos;
         slash = path_.find('/', slash + 1)) {
      const std::string parent = path_.substr(0, slash);
      if (mkdir(parent.c_str(), 0755) == 0) {
        const base::UniqueFd made(
            open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
        if (!made.valid() || fchmod(made.get(), 0755) != 0) return Error(errno, parent);
      } else if (errno != EEXIST && errno != EROFS) {
        return Error(errno, "creating " + parent);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Open() {
    const bool made = mkdir(path_.c_str(), 0700) == 0;
    if (!made && errno != EEXIST) return Error(errno, "creating it");
    // The path may end in a link of the user's, but what we just made is none.
    top_ = base::UniqueFd(
        open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | (made ? O_NOFOLLOW : 0)));
    if (!top_.valid()) return Error(errno, "opening it");
    return absl::OkStatus();
  }

  bool Owned(const struct stat& found) const {
    return found.st_uid == identity_.uid && found.st_gid == identity_.gid;
  }

  // Somebody else's directory that everybody may write to, as /dev/shm, is not ours to give away.
  static bool IsPublic(const struct stat& top) { return (top.st_mode & 0007) == 0007; }

  absl::StatusOr<bool> Done() const {
    struct stat found;
    if (fstat(top_.get(), &found) != 0) return Error(errno, "stat");
    if (!Owned(found) && !IsPublic(found)) return false;
    for (const char* const name : {kLockName, kJournalName, kSourcesName}) {
      if (fstatat(top_.get(), name, &found, AT_SYMLINK_NOFOLLOW) == 0) {
        if (!Owned(found)) return false;
      } else if (errno != ENOENT) {
        return Error(errno, name);
      }
    }
    return true;
  }

  absl::StatusOr<std::string> ReadLock() const {
    const base::UniqueFd lock(
        openat(top_.get(), kLockName, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!lock.valid()) return Error(errno, kLockName);
    char text[256];
    const ssize_t size = pread(lock.get(), text, sizeof(text), 0);
    if (size < 0) return Error(errno, kLockName);
    return std::string(text, static_cast<size_t>(size));
  }

  // The rule of tier::Tier, which says the same to a daemon: a lock file of ours, or nothing at
  // all.
  absl::Status CheckOurs() const {
    std::string first;
    bool has_lock = false;
    RETURN_IF_ERROR(ForEachName(top_.get(), [&](const dirent& entry) {
      if (absl::string_view(entry.d_name) == kLockName) has_lock = true;
      if (absl::string_view(entry.d_name) != "lost+found") first = entry.d_name;
      return absl::OkStatus();
    }));
    if (first.empty()) return absl::OkStatus();
    if (has_lock) {
      ASSIGN_OR_RETURN(const std::string lock, ReadLock());
      if (lock.empty() || absl::StartsWith(lock, kLockHeader)) return absl::OkStatus();
    }
    return absl::FailedPreconditionError(
        absl::StrCat("cache directory ", path_, " is not empty (it has \"", first,
                     "\") and is no millrace cache; name an empty or a new directory"));
  }

  // Held until all is handed over, so that no daemon uses the cache meanwhile.
  absl::StatusOr<base::UniqueFd> TakeLock() const {
    base::UniqueFd lock(
        openat(top_.get(), kLockName, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!lock.valid()) {
      if (errno == ENOENT) return lock;
      return Error(errno, kLockName);
    }
    if (flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return lock;
    if (errno != EWOULDBLOCK) return Error(errno, kLockName);
    const std::string text = ReadLock().value_or("");
    absl::string_view pid = text;
    absl::ConsumePrefix(&pid, kLockHeader);
    return absl::FailedPreconditionError(
        absl::StrCat("cache directory ", path_, " is in use by process ",
                     absl::StripSuffix(pid, "\n"), "; a directory serves one process"));
  }

  template <typename Each>
  absl::Status ForEachName(int directory, Each each) const {
    // A descriptor of its own: a directory stream moves the offset, and closes what it was given.
    const int own = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (own < 0) return Error(errno, "opening a directory");
    const std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(own), closedir);
    if (stream == nullptr) return Error(errno, "opening a directory");
    for (;;) {
      errno = 0;
      const dirent* const entry = readdir(stream.get());
      if (entry == nullptr) {
        return errno == 0 ? absl::OkStatus() : Error(errno, "reading a directory");
      }
      if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
      RETURN_IF_ERROR(each(*entry));
    }
  }

  // A regular file with one name. What was planted beside our files (a link, a device, a second
  // name of somebody's file) stays whose it is; the daemon removes what it does not know.
  absl::Status GiveFile(int directory, const char* name) {
    const base::UniqueFd file(openat(directory, name, O_PATH | O_CLOEXEC | O_NOFOLLOW));
    if (!file.valid()) return errno == ENOENT ? absl::OkStatus() : Error(errno, name);
    struct stat found;
    if (fstat(file.get(), &found) != 0) return Error(errno, name);
    if (!S_ISREG(found.st_mode) || found.st_nlink != 1 || Owned(found)) return absl::OkStatus();
    if (fchownat(file.get(), "", identity_.uid, identity_.gid, AT_EMPTY_PATH) != 0) {
      return Error(errno, name);
    }
    ++files_;
    return absl::OkStatus();
  }

  absl::Status GiveTree(int directory, const char* name, int depth) {
    const base::UniqueFd tree(
        openat(directory, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
    if (!tree.valid()) {
      // ENOTDIR and ELOOP: something that was planted.
      const bool nothing = errno == ENOENT || errno == ENOTDIR || errno == ELOOP;
      return nothing ? absl::OkStatus() : Error(errno, name);
    }
    if (depth > 1) {
      RETURN_IF_ERROR(ForEachName(tree.get(), [&](const dirent& entry) {
        return entry.d_type == DT_DIR || entry.d_type == DT_UNKNOWN
                   ? GiveEither(tree.get(), entry.d_name, depth - 1)
                   : GiveFile(tree.get(), entry.d_name);
      }));
    }
    if (fchown(tree.get(), identity_.uid, identity_.gid) != 0) return Error(errno, name);
    return absl::OkStatus();
  }

  // For file systems that do not tell the type of a name: nothing happens to what is not one.
  absl::Status GiveEither(int directory, const char* name, int depth) {
    RETURN_IF_ERROR(GiveTree(directory, name, depth));
    return GiveFile(directory, name);
  }

  absl::Status GiveTop() const {
    struct stat found;
    if (fstat(top_.get(), &found) != 0) return Error(errno, "stat");
    if (IsPublic(found)) return absl::OkStatus();
    if (fchown(top_.get(), identity_.uid, identity_.gid) != 0) return Error(errno, "chown");
    return absl::OkStatus();
  }

  const std::string& path_;
  const Identity identity_;
  base::UniqueFd top_;
  uint64_t files_ = 0;
};

}  // namespace

absl::Status PrepareTierDirectories(absl::Span<const std::string> paths, const Identity& identity) {
  for (const std::string& path : paths) RETURN_IF_ERROR(HandOver(path, identity).Run());
  return absl::OkStatus();
}

}  // namespace millrace::keeper
