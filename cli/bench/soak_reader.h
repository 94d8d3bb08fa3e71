// One reader of `millrace bench soak`: it reads a mount without an end in one of the ways a program
// can, compares every byte with a reference tree, and notes what went wrong and what took long.
//
// A reader is a process of its own, as the programs are that it stands for: when it hangs, nobody
// hangs with it, and what it saw lies in memory that its parent shares.
#pragma once

#include <sys/stat.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::bench {

enum class SoakKind {
  kBuffered,  // pread and read of one file after the other, page cache used and dropped.
  kDirect,    // O_DIRECT.
  kMapped,    // mmap.
  kHeld,      // One descriptor from the beginning to the end, and its file position.
  kWalk,      // readdir, stat, statfs and getxattr, names that do not exist, an open directory.
  kFresh,     // open, read the whole file, close.
};
inline constexpr std::array<absl::string_view, 6> kSoakKindNames = {"buffered", "direct", "mapped",
                                                                    "held",     "walk",   "fresh"};

struct SoakFile {
  std::string path;  // Below the directory, without a leading "/".
  uint64_t size = 0;
};

struct SoakDirectory {
  std::string path;                // Empty for the root.
  std::vector<std::string> names;  // Sorted.
};

// What all readers of one run share. Constant while they run.
struct SoakPlan {
  std::string directory;
  std::string reference;
  std::vector<SoakFile> files;  // By size, the largest first.
  std::vector<SoakDirectory> directories;
  uint64_t seed = 1;
  uint64_t slow_nanos = 0;   // An operation that takes longer is listed by itself.
  uint64_t think_nanos = 0;  // What a reader waits between two operations.
};

// Lists `reference`. FailedPrecondition when there is nothing to compare with.
absl::StatusOr<SoakPlan> MakeSoakPlan(const std::string& directory, const std::string& reference);

struct SoakProblem {
  enum class Kind { kError, kWrongBytes, kChanged };

  Kind kind = Kind::kError;
  int error = 0;  // errno, of kError; 0 when the call gave too little or too much.
  uint64_t offset = 0;
  uint64_t at_nanos = 0;
  char call[24] = {};
  char path[200] = {};
};

struct SoakSlow {
  uint64_t begin_nanos = 0;
  uint64_t end_nanos = 0;
  const char* call = "";
};

// What one reader saw. Written by the reader alone; the parent looks when the reader has ended, and
// at the atomic members at any time.
struct SoakResult {
  static constexpr size_t kProblemsMax = 64;
  static constexpr size_t kSlowMax = 100'000;

  std::atomic<uint64_t> operations = 0;
  std::atomic<uint64_t> bytes = 0;
  std::atomic<uint64_t> longest_nanos = 0;
  std::atomic<uint64_t> busy_since_nanos = 0;  // 0 between two operations.
  std::atomic<const char*> busy_with = "";
  std::array<std::atomic<uint64_t>, 3> problem_counts = {};  // By SoakProblem::Kind.
  std::atomic<uint64_t> problems_kept = 0;
  std::atomic<uint64_t> slow_kept = 0;
  std::array<SoakProblem, kProblemsMax> problems;  // The first ones.
  std::array<SoakSlow, kSlowMax> slow;
};

// Reads until `stop`. `index` tells readers of one kind apart.
void RunSoakReader(const SoakPlan& plan, SoakKind kind, uint64_t index,
                   const std::atomic<bool>& stop, SoakResult* result);

}  // namespace millrace::bench
