#include "common/control/run_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/base/errno_status.h"
#include "common/base/file_text.h"
#include "common/base/hash.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"

namespace millrace::control {
namespace {

constexpr size_t kRecordSizeMax = 1 << 20;
constexpr off_t kTailBytes = 64 * 1024;

std::string EnvironmentPath(const char* name) {
  const char* const value = getenv(name);
  // The XDG specification: a relative path is to be ignored.
  return value != nullptr && value[0] == '/' ? value : "";
}

// Makes `path` unless it is there, and refuses one that somebody else could write to: a socket or
// a log below it would be theirs.
absl::Status EnsurePrivateDirectory(const std::string& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return base::ErrnoStatus(errno, absl::StrCat("cannot make the directory ", path));
  }
  struct stat found;
  if (lstat(path.c_str(), &found) != 0) return base::ErrnoStatus(errno, path);
  if (!S_ISDIR(found.st_mode) || found.st_uid != geteuid() || (found.st_mode & 022) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path,
                     " is not a directory that only this user can write to; remove it, or "
                     "set XDG_RUNTIME_DIR to a private directory"));
  }
  return absl::OkStatus();
}

base::Json RecordToJson(const MountRecord& record) {
  return {{"mountpoint", record.mountpoint},
          {"pid", record.pid},
          {"keeper_pid", record.keeper_pid},
          {"sources", record.sources},
          {"started_unix", absl::ToUnixSeconds(record.started)},
          {"version", record.version}};
}

absl::StatusOr<MountRecord> ReadRecord(const RunPaths& paths) {
  ASSIGN_OR_RETURN(const std::string text, base::ReadTextFile(paths.record(), kRecordSizeMax));
  ASSIGN_OR_RETURN(const base::Json json, base::ParseJson(text));
  MountRecord record;
  record.mountpoint = base::JsonString(json, "mountpoint");
  record.pid = static_cast<pid_t>(base::JsonUnsigned(json, "pid"));
  record.keeper_pid = static_cast<pid_t>(base::JsonUnsigned(json, "keeper_pid"));
  record.started =
      absl::FromUnixSeconds(static_cast<int64_t>(base::JsonUnsigned(json, "started_unix")));
  record.version = base::JsonString(json, "version");
  for (const base::Json& source : base::JsonField(json, "sources")) {
    if (source.is_string()) record.sources.push_back(source.get_ref<const std::string&>());
  }
  if (record.mountpoint.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(paths.record(), " names no mountpoint"));
  }
  return record;
}

struct flock WholeFileLock() {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

// False when another process holds the lock.
absl::StatusOr<bool> TryLock(int fd, const RunPaths& paths) {
  struct flock lock = WholeFileLock();
  if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return true;
  if (errno == EAGAIN || errno == EACCES) return false;
  return base::ErrnoStatus(errno, paths.lock());
}

bool IsFileAt(int fd, const std::string& path) {
  struct stat opened;
  struct stat named;
  return fstat(fd, &opened) == 0 && stat(path.c_str(), &named) == 0 &&
         opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

// For the error below only: the lock is what counts.
void WritePid(int fd) {
  const std::string text = absl::StrCat(getpid(), "\n");
  if (ftruncate(fd, 0) != 0) return;
  [[maybe_unused]] const ssize_t written = pwrite(fd, text.data(), text.size(), 0);
}

// What exists for as long as the mount does.
void RemoveFiles(const RunPaths& paths) {
  for (const std::string& path :
       {paths.record(), paths.socket(), paths.keeper_socket(), paths.adoption_socket()}) {
    unlink(path.c_str());
  }
}

absl::Status AlreadyServed(const RunPaths& paths, absl::string_view mountpoint) {
  const std::string text = base::ReadTextFile(paths.lock(), 64).value_or("");
  const std::string process =
      text.empty() ? "" : absl::StrCat(" (process ", absl::StripAsciiWhitespace(text), ")");
  if (ReadRecord(paths).ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("another millrace-keeper", process, " serves ", mountpoint,
                     "; unmount it first: millrace umount ", mountpoint));
  }
  return absl::FailedPreconditionError(absl::StrCat("another millrace-keeper", process,
                                                    " is just starting or ending at ", mountpoint,
                                                    "; wait for it, or end that process"));
}

}  // namespace

std::string MountHash(absl::string_view mountpoint) {
  return absl::StrFormat("%016x", base::StableHash64({mountpoint}));
}

std::string RuntimeBase() {
  if (geteuid() == 0) return "/run/millrace";
  const std::string xdg = EnvironmentPath("XDG_RUNTIME_DIR");
  return xdg.empty() ? absl::StrCat("/tmp/millrace-", geteuid()) : xdg + "/millrace";
}

std::string CacheBase() {
  if (geteuid() == 0) return "/var/cache/millrace";
  const std::string xdg = EnvironmentPath("XDG_CACHE_HOME");
  if (!xdg.empty()) return xdg + "/millrace";
  const std::string home = EnvironmentPath("HOME");
  return home.empty() ? absl::StrCat("/tmp/millrace-cache-", geteuid()) : home + "/.cache/millrace";
}

RunPaths RunPathsOf(absl::string_view mountpoint) {
  return {absl::StrCat(RuntimeBase(), "/", MountHash(mountpoint))};
}

absl::StatusOr<RunDirectory> RunDirectory::Create(absl::string_view mountpoint) {
  return CreateBelow(RuntimeBase(), mountpoint);
}

absl::StatusOr<RunDirectory> RunDirectory::CreateBelow(const std::string& base,
                                                       absl::string_view mountpoint) {
  RETURN_IF_ERROR(EnsurePrivateDirectory(base));
  const RunPaths paths = {absl::StrCat(base, "/", MountHash(mountpoint))};
  // A clean-up (RemoveStale) may take the file away between our open and our lock: then it is
  // nobody's lock, and we start again.
  for (int attempt = 0; attempt < 8; ++attempt) {
    RETURN_IF_ERROR(EnsurePrivateDirectory(paths.directory));
    base::UniqueFd lock_file(open(paths.lock().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!lock_file.valid()) {
      if (errno == ENOENT) continue;
      return base::ErrnoStatus(errno, paths.lock());
    }
    ASSIGN_OR_RETURN(const bool locked, TryLock(lock_file.get(), paths));
    if (!locked) {
      return AlreadyServed(paths, mountpoint);
    }
    if (!IsFileAt(lock_file.get(), paths.lock())) continue;
    WritePid(lock_file.get());
    // What a killed predecessor left must not be taken for ours.
    RemoveFiles(paths);
    // One generation is kept for whoever asks why the last mount ended; more would fill /run.
    rename(paths.log().c_str(), paths.old_log().c_str());
    return RunDirectory(paths, std::move(lock_file));
  }
  return absl::UnavailableError(
      absl::StrCat(paths.directory, " is being cleaned up again and again; try once more"));
}

absl::Status RunDirectory::WriteRecord(const MountRecord& record) const {
  return base::WriteTextFile(paths_.record(), base::JsonPretty(RecordToJson(record)) + "\n", 0600);
}

void RunDirectory::Clear() const { RemoveFiles(paths_); }

bool IsAlive(const RunPaths& paths) {
  const base::UniqueFd lock_file(open(paths.lock().c_str(), O_RDWR | O_CLOEXEC));
  if (!lock_file.valid()) return false;
  struct flock lock = WholeFileLock();
  return fcntl(lock_file.get(), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

absl::StatusOr<FoundMount> FindMountRecord(absl::string_view mountpoint) {
  FoundMount found;
  found.paths = RunPathsOf(mountpoint);
  absl::StatusOr<MountRecord> record = ReadRecord(found.paths);
  if (!record.ok()) return std::move(record).status();
  found.record = *std::move(record);
  found.alive = IsAlive(found.paths);
  return found;
}

std::vector<FoundMount> ListMountRecords() { return ListMountRecordsBelow(RuntimeBase()); }

std::vector<FoundMount> ListMountRecordsBelow(const std::string& base) {
  std::vector<FoundMount> mounts;
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(opendir(base.c_str()), closedir);
  if (listing == nullptr) return mounts;
  while (const dirent* const entry = readdir(listing.get())) {
    if (strlen(entry->d_name) != 16) continue;
    FoundMount found;
    found.paths.directory = absl::StrCat(base, "/", entry->d_name);
    absl::StatusOr<MountRecord> record = ReadRecord(found.paths);
    if (!record.ok()) continue;
    found.record = *std::move(record);
    found.alive = IsAlive(found.paths);
    mounts.push_back(std::move(found));
  }
  std::sort(mounts.begin(), mounts.end(), [](const FoundMount& a, const FoundMount& b) {
    return a.record.mountpoint < b.record.mountpoint;
  });
  return mounts;
}

void RemoveStale(const RunPaths& paths) {
  const base::UniqueFd lock_file(open(paths.lock().c_str(), O_RDWR | O_CLOEXEC));
  if (lock_file.valid()) {
    // A daemon that starts now waits for nobody: it sees the lock, or the file that is gone.
    const absl::StatusOr<bool> locked = TryLock(lock_file.get(), paths);
    if (!locked.ok() || !*locked) return;
  }
  RemoveFiles(paths);
  for (const std::string& path : {paths.log(), paths.old_log(), paths.lock()}) {
    unlink(path.c_str());
  }
  rmdir(paths.directory.c_str());
}

std::string LogTail(const std::string& path, size_t lines) {
  const base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return "";
  const off_t size = lseek(fd.get(), 0, SEEK_END);
  const off_t start = std::max<off_t>(0, size - kTailBytes);
  std::string text(static_cast<size_t>(std::min<off_t>(std::max<off_t>(size, 0), kTailBytes)), 0);
  const ssize_t got = pread(fd.get(), text.data(), text.size(), start);
  text.resize(std::max<ssize_t>(got, 0));
  std::vector<absl::string_view> all = absl::StrSplit(text, '\n', absl::SkipEmpty());
  if (all.size() > lines) all.erase(all.begin(), all.end() - lines);
  std::string tail;
  for (const absl::string_view line : all) absl::StrAppend(&tail, "  ", line, "\n");
  return tail;
}

}  // namespace millrace::control
