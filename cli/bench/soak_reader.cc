#include "cli/bench/soak_reader.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/bench/file_list.h"
#include "cli/bench/random.h"
#include "cli/bench/report.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace millrace::bench {
namespace {

// What O_DIRECT asks of buffers and offsets on every disk in use.
constexpr uint64_t kAlignment = 4096;
constexpr uint64_t kReadMax = base::kMiB;
// How often a reader reads from one file before it takes another, so that opens are frequent and
// descriptors still live through a take-over.
constexpr int kRoundsPerFile = 24;
// A page cache that is never dropped would leave the file system nothing to do.
constexpr uint64_t kDropOneIn = 4;
// A dead mount answers at once: do not count a million times that it is dead.
constexpr timespec kPauseAfterError = {.tv_sec = 0, .tv_nsec = 2'000'000};
constexpr char kVersionAttribute[] = "user.millrace.version";

// A page of a mapping that cannot be read is SIGBUS. The handler goes back to where the copy began;
// a reader is a process with one thread.
sigjmp_buf g_copy_failed;

void OnBusError(int) { siglongjmp(g_copy_failed, 1); }

// False when a page cannot be read. Nothing here needs a destructor, which the jump would skip.
bool CopyMapped(char* target, const char* mapped, size_t size) {
  if (sigsetjmp(g_copy_failed, 1) != 0) return false;
  std::memcpy(target, mapped, size);
  return true;
}

struct Freer {
  void operator()(char* memory) const { free(memory); }
};

class Reader {
 public:
  Reader(const SoakPlan& plan, uint64_t index, const std::atomic<bool>& stop, SoakResult* result)
      : plan_(plan),
        index_(index),
        stop_(stop),
        result_(result),
        random_(plan.seed, index),
        buffer_(static_cast<char*>(std::aligned_alloc(kAlignment, kReadMax))),
        references_(plan.files.size(), nullptr),
        identities_(plan.files.size()) {}

  void Run(SoakKind kind) {
    switch (kind) {
      case SoakKind::kBuffered:
        return Repeat([this] { ReadOneFile(0); });
      case SoakKind::kDirect:
        return Repeat([this] { ReadOneFile(O_DIRECT); });
      case SoakKind::kMapped:
        return Repeat([this] { MapOneFile(); });
      case SoakKind::kHeld:
        return Hold();
      case SoakKind::kWalk:
        return Walk();
      case SoakKind::kFresh:
        return Repeat([this] { ReadWholeFile(random_.Below(4) == 0 ? O_DIRECT : 0); });
    }
  }

 private:
  struct Identity {
    dev_t device = 0;
    ino_t inode = 0;
  };

  template <typename Round>
  void Repeat(const Round& round) {
    while (!stop_.load(std::memory_order_relaxed)) round();
  }

  // --- Noting ------------------------------------------------------------------------------------

  // Runs one operation, and times it.
  template <typename Call>
  auto Timed(const char* name, const Call& call) {
    const uint64_t begin = NowNanos();
    result_->busy_with = name;
    result_->busy_since_nanos = begin;
    const auto got = call();
    const int error = errno;
    const uint64_t end = NowNanos();
    result_->busy_since_nanos = 0;
    result_->operations.fetch_add(1, std::memory_order_relaxed);
    if (end - begin > result_->longest_nanos) result_->longest_nanos = end - begin;
    const uint64_t kept = result_->slow_kept;
    if (end - begin >= plan_.slow_nanos && kept < SoakResult::kSlowMax) {
      result_->slow[kept] = {.begin_nanos = begin, .end_nanos = end, .call = name};
      result_->slow_kept = kept + 1;
    }
    if (plan_.think_nanos > 0) Wait(plan_.think_nanos);
    errno = error;
    return got;
  }

  static void Wait(uint64_t nanos) {
    const timespec time = {.tv_sec = static_cast<time_t>(nanos / 1'000'000'000),
                           .tv_nsec = static_cast<long>(nanos % 1'000'000'000)};
    nanosleep(&time, nullptr);
  }

  void Note(SoakProblem::Kind kind, const char* call, absl::string_view path, uint64_t offset,
            int error) {
    result_->problem_counts[static_cast<size_t>(kind)].fetch_add(1);
    const uint64_t kept = result_->problems_kept;
    if (kept < SoakResult::kProblemsMax) {
      SoakProblem& problem = result_->problems[kept];
      problem = {.kind = kind, .error = error, .offset = offset, .at_nanos = NowNanos()};
      std::snprintf(problem.call, sizeof(problem.call), "%s", call);
      std::snprintf(problem.path, sizeof(problem.path), "%.*s", static_cast<int>(path.size()),
                    path.data());
      result_->problems_kept = kept + 1;
    }
    nanosleep(&kPauseAfterError, nullptr);
  }

  void NoteError(const char* call, absl::string_view path, uint64_t offset = 0) {
    Note(SoakProblem::Kind::kError, call, path, offset, errno);
  }

  // --- Comparing ---------------------------------------------------------------------------------

  // The bytes that a file must have, mapped once. Null for an empty file; the end of this process
  // when the reference cannot be read, which its parent reports.
  const char* Reference(size_t file) {
    const SoakFile& facts = plan_.files[file];
    if (references_[file] != nullptr || facts.size == 0) return references_[file];
    const int fd = open(absl::StrCat(plan_.reference, "/", facts.path).c_str(), O_RDONLY);
    void* const mapped = mmap(nullptr, facts.size, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) _exit(2);
    close(fd);
    references_[file] = static_cast<const char*>(mapped);
    return references_[file];
  }

  // `got` is what a read of `size` bytes at `offset` gave, the bytes are in the buffer.
  void Compare(const char* call, size_t file, uint64_t offset, size_t size, ssize_t got) {
    const SoakFile& facts = plan_.files[file];
    if (got < 0) return NoteError(call, facts.path, offset);
    const uint64_t expected = offset >= facts.size ? 0 : std::min(size, facts.size - offset);
    if (static_cast<uint64_t>(got) != expected) {
      errno = 0;
      return NoteError(call, facts.path, offset + static_cast<uint64_t>(got));
    }
    result_->bytes.fetch_add(expected, std::memory_order_relaxed);
    const char* const reference = Reference(file) + offset;
    if (std::memcmp(buffer_.get(), reference, expected) == 0) return;
    const char* const differs =
        std::mismatch(buffer_.get(), buffer_.get() + expected, reference).first;
    Note(SoakProblem::Kind::kWrongBytes, call, facts.path, offset + (differs - buffer_.get()), 0);
  }

  // A file keeps its size and its inode number, and stays on the same mount.
  void CompareIdentity(const char* call, size_t file, const struct stat& attributes) {
    Identity& known = identities_[file];
    if (known.inode == 0) known = {attributes.st_dev, attributes.st_ino};
    if (known.device == attributes.st_dev && known.inode == attributes.st_ino &&
        plan_.files[file].size == static_cast<uint64_t>(attributes.st_size)) {
      return;
    }
    Note(SoakProblem::Kind::kChanged, call, plan_.files[file].path, attributes.st_ino, 0);
  }

  // --- Reading -----------------------------------------------------------------------------------

  std::string PathOf(size_t file) const {
    return absl::StrCat(plan_.directory, "/", plan_.files[file].path);
  }

  size_t AnyFile() { return random_.Below(plan_.files.size()); }

  // -1 when that failed, which is noted.
  int Open(size_t file, int flags) {
    const std::string path = PathOf(file);
    const int fd = Timed("open", [&] { return open(path.c_str(), O_RDONLY | O_CLOEXEC | flags); });
    if (fd < 0) {
      NoteError("open", plan_.files[file].path);
      return -1;
    }
    CheckDescriptor(fd, file);
    return fd;
  }

  void CheckDescriptor(int fd, size_t file) {
    struct stat attributes;
    if (Timed("fstat", [&] { return fstat(fd, &attributes); }) != 0) {
      return NoteError("fstat", plan_.files[file].path);
    }
    CompareIdentity("fstat", file, attributes);
  }

  void Close(int fd, size_t file) {
    if (Timed("close", [&] { return close(fd); }) != 0) NoteError("close", plan_.files[file].path);
  }

  void MaybeDropPages(int fd) {
    if (random_.Below(kDropOneIn) == 0) posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  }

  // A size that a program would ask for, as a multiple of the alignment.
  size_t AnySize() { return kAlignment << random_.Below(9); }

  void ReadAt(int fd, size_t file, uint64_t offset, size_t size) {
    const ssize_t got =
        Timed("pread", [&] { return pread(fd, buffer_.get(), size, static_cast<off_t>(offset)); });
    Compare("pread", file, offset, size, got);
  }

  void ReadSomewhere(int fd, size_t file, bool aligned) {
    const uint64_t size = plan_.files[file].size;
    uint64_t offset = random_.Below(size + 1);
    if (aligned) offset -= offset % kAlignment;
    ReadAt(fd, file, offset, AnySize());
  }

  // From the file position to the end of the file, or until stopped.
  void ReadOn(int fd, size_t file) {
    uint64_t offset = static_cast<uint64_t>(lseek(fd, 0, SEEK_CUR));
    const size_t size = AnySize();
    while (offset < plan_.files[file].size && !stop_.load(std::memory_order_relaxed)) {
      const ssize_t got = Timed("read", [&] { return read(fd, buffer_.get(), size); });
      Compare("read", file, offset, size, got);
      if (got <= 0) return;
      offset += static_cast<uint64_t>(got);
    }
  }

  void ReadOneFile(int flags) {
    const size_t file = AnyFile();
    const int fd = Open(file, flags);
    if (fd < 0) return;
    MaybeDropPages(fd);
    for (int i = 0; i < kRoundsPerFile && !stop_.load(std::memory_order_relaxed); ++i) {
      ReadSomewhere(fd, file, flags == O_DIRECT);
    }
    CheckDescriptor(fd, file);
    Close(fd, file);
  }

  void ReadWholeFile(int flags) {
    const size_t file = AnyFile();
    const int fd = Open(file, flags);
    if (fd < 0) return;
    MaybeDropPages(fd);
    ReadOn(fd, file);
    Close(fd, file);
  }

  void MapOneFile() {
    const size_t file = AnyFile();
    const uint64_t size = plan_.files[file].size;
    if (size == 0) return;
    const int fd = Open(file, 0);
    if (fd < 0) return;
    void* const mapped =
        Timed("mmap", [&] { return mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0); });
    if (mapped == MAP_FAILED) {
      NoteError("mmap", plan_.files[file].path);
    } else {
      for (int i = 0; i < kRoundsPerFile && !stop_.load(std::memory_order_relaxed); ++i) {
        if (random_.Below(kDropOneIn) == 0) {
          madvise(mapped, size, MADV_DONTNEED);
          posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        }
        CopyAndCompare(static_cast<const char*>(mapped), file);
      }
      munmap(mapped, size);
    }
    Close(fd, file);
  }

  void CopyAndCompare(const char* mapped, size_t file) {
    const uint64_t offset = random_.Below(plan_.files[file].size);
    const size_t size = std::min(AnySize(), plan_.files[file].size - offset);
    const bool copied =
        Timed("fault", [&] { return CopyMapped(buffer_.get(), mapped + offset, size); });
    errno = EIO;
    Compare("fault", file, offset, size, copied ? static_cast<ssize_t>(size) : -1);
  }

  // --- One descriptor all the time ---------------------------------------------------------------

  void Hold() {
    // The large files come first.
    const size_t file = index_ % plan_.files.size();
    int fd = -1;
    while (fd < 0 && !stop_.load(std::memory_order_relaxed)) fd = Open(file, 0);
    uint64_t position = 0;
    while (!stop_.load(std::memory_order_relaxed)) {
      if (static_cast<uint64_t>(lseek(fd, 0, SEEK_CUR)) != position) {
        Note(SoakProblem::Kind::kChanged, "lseek", plan_.files[file].path, position, 0);
      }
      const size_t size = AnySize();
      const ssize_t got = Timed("read", [&] { return read(fd, buffer_.get(), size); });
      Compare("read", file, position, size, got);
      position += static_cast<uint64_t>(std::max<ssize_t>(got, 0));
      if (position >= plan_.files[file].size) {
        position = 0;
        lseek(fd, 0, SEEK_SET);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
      }
      ReadSomewhere(fd, file, false);
      CheckDescriptor(fd, file);
    }
    if (fd >= 0) Close(fd, file);
  }

  // --- Names and attributes ----------------------------------------------------------------------

  void Walk() {
    for (size_t i = 0; i < plan_.files.size(); ++i) file_by_path_[plan_.files[i].path] = i;
    const std::string probe = PathOf(0);
    char value[256];
    has_attributes_ = getxattr(probe.c_str(), kVersionAttribute, value, sizeof(value)) >= 0;
    // The directory with the most names stays open and is read again and again.
    const SoakDirectory& largest =
        *std::max_element(plan_.directories.begin(), plan_.directories.end(),
                          [](const SoakDirectory& a, const SoakDirectory& b) {
                            return a.names.size() < b.names.size();
                          });
    DIR* held = nullptr;
    while (!stop_.load(std::memory_order_relaxed)) {
      if (held == nullptr) held = OpenDirectory(largest);
      for (const SoakDirectory& directory : plan_.directories) {
        if (stop_.load(std::memory_order_relaxed)) break;
        if (DIR* const stream = OpenDirectory(directory); stream != nullptr) {
          ReadDirectory(stream, directory);
          closedir(stream);
        }
        StatSome(directory);
        AskForWhatDoesNotExist(directory);
        AskTheFileSystem();
      }
      if (held != nullptr) {
        rewinddir(held);
        ReadDirectory(held, largest);
      }
    }
    if (held != nullptr) closedir(held);
  }

  DIR* OpenDirectory(const SoakDirectory& directory) {
    const std::string path = absl::StrCat(plan_.directory, "/", directory.path);
    DIR* const stream = Timed("opendir", [&] { return opendir(path.c_str()); });
    if (stream == nullptr) NoteError("opendir", directory.path);
    return stream;
  }

  // The stream must give every name once. In the middle it waits for other questions, as a program
  // does that looks into what it lists; so the death of a daemon meets streams that are half read.
  void ReadDirectory(DIR* stream, const SoakDirectory& directory) {
    std::vector<std::string> names;
    for (;;) {
      errno = 0;
      const dirent* const entry = Timed("readdir", [&] { return readdir(stream); });
      if (entry == nullptr) break;
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
      if (names.size() == directory.names.size() / 2) StatSome(directory);
    }
    if (errno != 0) return NoteError("readdir", directory.path);
    std::sort(names.begin(), names.end());
    if (names != directory.names) {
      Note(SoakProblem::Kind::kChanged, "readdir", directory.path, names.size(), 0);
    }
  }

  void StatSome(const SoakDirectory& directory) {
    constexpr int kStats = 32;
    if (directory.names.empty()) return;
    for (int i = 0; i < kStats; ++i) {
      const std::string& name = directory.names[random_.Below(directory.names.size())];
      const std::string path =
          directory.path.empty() ? name : absl::StrCat(directory.path, "/", name);
      const std::string full = absl::StrCat(plan_.directory, "/", path);
      struct stat attributes;
      if (Timed("stat", [&] { return stat(full.c_str(), &attributes); }) != 0) {
        NoteError("stat", path);
        continue;
      }
      if (const auto found = file_by_path_.find(path); found != file_by_path_.end()) {
        CompareIdentity("stat", found->second, attributes);
        if (has_attributes_ && i == 0) AskForVersion(full, path);
      } else if (!S_ISDIR(attributes.st_mode)) {
        Note(SoakProblem::Kind::kChanged, "stat", path, attributes.st_ino, 0);
      }
    }
  }

  void AskForVersion(const std::string& full, const std::string& path) {
    char value[256];
    if (Timed("getxattr", [&] {
          return getxattr(full.c_str(), kVersionAttribute, value, sizeof(value));
        }) < 0) {
      NoteError("getxattr", path);
    }
  }

  void AskForWhatDoesNotExist(const SoakDirectory& directory) {
    // A new name each time: the kernel remembers answers.
    const std::string path =
        absl::StrCat(directory.path, "/no-such-name-", getpid(), "-", questions_++);
    const std::string full = absl::StrCat(plan_.directory, "/", path);
    struct stat attributes;
    const int got = Timed("stat of nothing", [&] { return stat(full.c_str(), &attributes); });
    if (got == 0) errno = 0;
    if (got == 0 || errno != ENOENT) NoteError("stat of nothing", path);
  }

  void AskTheFileSystem() {
    struct statfs figures;
    if (Timed("statfs", [&] { return statfs(plan_.directory.c_str(), &figures); }) != 0) {
      NoteError("statfs", "");
    }
  }

  const SoakPlan& plan_;
  const uint64_t index_;
  const std::atomic<bool>& stop_;
  SoakResult* const result_;
  Random random_;
  const std::unique_ptr<char, Freer> buffer_;
  std::vector<const char*> references_;  // By file.
  std::vector<Identity> identities_;     // By file, as first seen.
  std::map<std::string, size_t> file_by_path_;
  bool has_attributes_ = false;
  uint64_t questions_ = 0;
};

}  // namespace

absl::StatusOr<SoakPlan> MakeSoakPlan(const std::string& directory, const std::string& reference) {
  SoakPlan plan{.directory = directory, .reference = reference};
  ASSIGN_OR_RETURN(const std::vector<std::string> paths, ListFiles(reference));
  std::map<std::string, std::vector<std::string>> names;
  for (const std::string& path : paths) {
    struct stat attributes;
    if (stat(path.c_str(), &attributes) != 0) return base::ErrnoStatus(errno, path);
    std::string relative = path.substr(reference.size());
    relative.erase(0, relative.find_first_not_of('/'));
    plan.files.push_back({relative, static_cast<uint64_t>(attributes.st_size)});
    // Each name stands in its directory, and each directory in the one above it.
    for (std::string child = relative;;) {
      const size_t slash = child.rfind('/');
      const std::string parent = slash == std::string::npos ? "" : child.substr(0, slash);
      names[parent].push_back(child.substr(slash == std::string::npos ? 0 : slash + 1));
      if (parent.empty()) break;
      child = parent;
    }
  }
  for (auto& [path, entries] : names) {
    std::sort(entries.begin(), entries.end());
    entries.erase(std::unique(entries.begin(), entries.end()), entries.end());
    plan.directories.push_back({path, std::move(entries)});
  }
  std::stable_sort(plan.files.begin(), plan.files.end(),
                   [](const SoakFile& a, const SoakFile& b) { return a.size > b.size; });
  return plan;
}

void RunSoakReader(const SoakPlan& plan, SoakKind kind, uint64_t index,
                   const std::atomic<bool>& stop, SoakResult* result) {
  struct sigaction action = {};
  action.sa_handler = OnBusError;
  sigaction(SIGBUS, &action, nullptr);
  Reader(plan, index, stop, result).Run(kind);
}

}  // namespace millrace::bench
