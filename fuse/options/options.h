// What a mount is asked to be: the options of `millrace mount`, parsed.
//
// Two origins, one set of names: the command line and a runtime.json (cache/config). The file
// is applied first, the command line overrides it. Nothing here looks at the machine beyond
// reading that file: validate.h does.
//
// Errors are InvalidArgument (exit 2) and name option, cause and remedy.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/log.h"
#include "common/base/units.h"

namespace millrace::options {

// What a mount is tuned for (ARCHITECTURE.md); kAuto looks at a sample of the source.
enum class Profile { kSmallFiles, kLargeFiles, kAuto };
// How cache files are read: kAuto takes io_uring where the kernel allows it.
enum class Io { kAuto, kUring, kPosix };
// How requests come from the kernel: read from /dev/fuse, or through io_uring, which is faster and
// does not survive the daemon (SEMANTICS.md).
enum class Transport { kDevice, kUring };

struct MountOptions {
  // URL or NAME=URL, as store::OpenSource takes them: one without a name, or any number with
  // different ones.
  std::vector<std::string> sources;
  std::string mountpoint;
  // Fastest first. Empty until Validate fills the default; with workers it stays empty.
  std::vector<tier::TierOptions> tiers;
  std::vector<std::string> workers;  // As pool::PoolOptions::workers; empty: none are used.
  std::string cluster = "millrace";  // The pool they must belong to.
  std::string worker_certificate;    // PEM files: all three or none.
  std::string worker_key;
  std::string worker_authority;
  bool read_write = false;
  std::string metrics_address;  // HOST:PORT; empty: no metrics are served.
  bool foreground = false;
  uint64_t memory_limit_bytes = 512 * base::kMiB;
  absl::Duration refresh = absl::Seconds(60);
  Profile profile = Profile::kAuto;
  tier::EvictionPolicy eviction = tier::EvictionPolicy::kEpoch;
  uid_t uid = 0;  // Owner of everything in the mount; the caller's by default.
  gid_t gid = 0;
  mode_t file_mode = 0444;
  mode_t dir_mode = 0555;
  bool allow_other = false;
  std::string user;  // Of the daemon: a name or a number; empty: the keeper chooses.
  absl::Duration store_deadline = absl::Seconds(60);
  int64_t connections = 16;  // Parallel requests to the stores.
  bool look_ahead = true;
  base::Severity log_level = base::Severity::kInfo;
  Io io = Io::kAuto;
  Transport transport = Transport::kDevice;
  bool passthrough = true;
  absl::Duration hang_deadline = absl::Seconds(5);  // A daemon that does not answer is replaced.
  int64_t crash_limit = 5;                          // Within a minute; 0: none.
  int64_t ready_fd = -1;                            // See common/control/ready.h; -1: none.
  int64_t custody_fd = -1;                          // See fuse/keeper/custody.h; -1: none.

  // What was accepted but ignored, for the log.
  std::vector<std::string> notes;
};

struct ParsedMount {
  MountOptions options;
  bool help = false;  // --help was given: print MountHelp() and exit 0.
};

// Arguments that say the same as `options` to another process, whose directory, user and
// configuration file may be others by then: what came from the command line, a file or the machine
// is all written out. REQUIRES: ValidateMount accepted `options`.
std::vector<std::string> ToArguments(const MountOptions& options);

// Parses the arguments of `millrace mount` (without the program's name and the word "mount").
absl::StatusOr<ParsedMount> ParseMountOptions(absl::Span<const std::string> arguments);

// The same with the text of the configuration file at hand instead of on a disk: for tests.
absl::StatusOr<ParsedMount> ParseMountOptionsWithConfig(absl::Span<const std::string> arguments,
                                                        absl::string_view config_json,
                                                        absl::string_view config_path);

// --ready-fd found without parsing the rest, so that even a wrong option can be reported through
// it. -1 when absent.
int FindReadyFd(absl::Span<const std::string> arguments);

// The text of --help.
std::string MountHelp();

// NAME of "NAME=URL", and "" where there is none. The rule of store::ParseUri.
absl::string_view SourceName(absl::string_view source);

}  // namespace millrace::options
