#include "fuse/options/validate.h"

#include <dirent.h>
#include <ftw.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/errno_status.h"
#include "common/base/file_text.h"
#include "common/base/paths.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/control/run_directory.h"

namespace millrace::options {
namespace {

constexpr uint64_t kDefaultQuota = 10 * base::kGiB;
// Of the free space: the machine's owner needs the rest for something else.
constexpr double kDefaultShare = 0.8;
// Below this a cache is of no use, and the disk has other worries.
constexpr uint64_t kDefaultQuotaMin = 64 * base::kMiB;

constexpr char kUringParameter[] = "/sys/module/fuse/parameters/enable_uring";
constexpr char kUringDisabled[] = "/proc/sys/kernel/io_uring_disabled";
constexpr size_t kSwitchMax = 64;

absl::Status CheckNotMounted(const std::vector<base::MountEntry>& mounts,
                             const std::string& mountpoint) {
  const std::optional<base::MountEntry> mount = base::FindMount(mounts, mountpoint);
  if (!mount.has_value()) return absl::OkStatus();
  if (mount->fs_type == base::kMillraceFsType) {
    return absl::FailedPreconditionError(
        absl::StrCat(mountpoint, " is already a Millrace mount of ", mount->source,
                     "; unmount it first: millrace umount ", mountpoint));
  }
  return absl::FailedPreconditionError(
      absl::StrCat(mountpoint, " is already a mount (", mount->fs_type, " of ", mount->source,
                   "); choose another directory, or unmount it first: umount ", mountpoint));
}

absl::Status CheckEmpty(const std::string& mountpoint) {
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(opendir(mountpoint.c_str()), closedir);
  if (listing == nullptr) {
    return base::ErrnoStatus(errno, absl::StrCat("cannot look into the mountpoint ", mountpoint));
  }
  while (const dirent* const entry = readdir(listing.get())) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("the mountpoint ", mountpoint,
                     " is not empty, and a mount would hide what is in it; choose an empty "
                     "directory"));
  }
  return absl::OkStatus();
}

absl::Status CheckMountpoint(const std::vector<base::MountEntry>& mounts,
                             const std::string& mountpoint) {
  // Before anything touches it: a dead mount answers nothing but errors.
  RETURN_IF_ERROR(CheckNotMounted(mounts, mountpoint));
  struct stat found;
  if (stat(mountpoint.c_str(), &found) != 0) {
    if (errno == ENOENT) {
      return absl::NotFoundError(absl::StrCat("the mountpoint ", mountpoint,
                                              " does not exist; make it: mkdir -p ", mountpoint));
    }
    return base::ErrnoStatus(errno, absl::StrCat("the mountpoint ", mountpoint));
  }
  if (!S_ISDIR(found.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat("the mountpoint ", mountpoint, " is not a directory; choose one"));
  }
  return CheckEmpty(mountpoint);
}

// A source that contains its own mount would be listed, and read, without end.
absl::Status CheckSourcesOutside(const MountOptions& options) {
  for (const std::string& source : options.sources) {
    absl::string_view url = source;
    const absl::string_view name = SourceName(source);
    if (!name.empty()) url.remove_prefix(name.size() + 1);
    if (!absl::ConsumePrefix(&url, "file://")) continue;
    const std::string directory = base::ResolvePath(url.substr(0, url.find('?')));
    if (base::IsAtOrBelow(options.mountpoint, directory)) {
      return absl::InvalidArgumentError(
          absl::StrCat("the mountpoint ", options.mountpoint, " lies inside the source ", directory,
                       ", which would contain itself; choose a mountpoint outside"));
    }
  }
  return absl::OkStatus();
}

// The file system that holds `path`, or will once it is made: that of the nearest parent.
absl::StatusOr<struct statvfs> FileSystemOf(std::string path) {
  struct statvfs found;
  while (statvfs(path.c_str(), &found) != 0) {
    const size_t slash = path.rfind('/');
    if (errno != ENOENT || path == "/" || slash == std::string::npos) {
      return base::ErrnoStatus(errno, path);
    }
    path.resize(std::max<size_t>(slash, 1));
  }
  return found;
}

// nftw has no room for a context.
thread_local uint64_t tree_bytes;

uint64_t BytesBelow(const std::string& path) {
  tree_bytes = 0;
  nftw(
      path.c_str(),
      [](const char*, const struct stat* found, int type, FTW*) {
        if (type == FTW_F) tree_bytes += static_cast<uint64_t>(found->st_blocks) * 512;
        return 0;
      },
      /*nopenfd=*/64, FTW_PHYS);
  return tree_bytes;
}

absl::StatusOr<tier::TierOptions> DefaultTier(absl::string_view cache_base,
                                              absl::string_view mountpoint) {
  tier::TierOptions tier;
  tier.medium = tier::Medium::kSsd;
  tier.path = absl::StrCat(cache_base, "/", control::MountHash(mountpoint));
  ASSIGN_OR_RETURN(const struct statvfs disk, FileSystemOf(tier.path));
  double available = static_cast<double>(disk.f_bavail) * disk.f_frsize;
  if (available * kDefaultShare < kDefaultQuota) {
    // What the cache of the last mount holds is not free, but it is ours: without it every
    // remount would find less room than the one before, and drop files.
    available += static_cast<double>(BytesBelow(tier.path));
  }
  tier.quota_bytes =
      std::min<uint64_t>(kDefaultQuota, static_cast<uint64_t>(available * kDefaultShare));
  if (tier.quota_bytes < kDefaultQuotaMin) {
    return absl::FailedPreconditionError(
        absl::StrCat("the disk of the default cache ", tier.path, " has only ",
                     base::FormatBytes(static_cast<uint64_t>(available)),
                     " left; free some, or choose another place: --tier ssd:PATH:QUOTA"));
  }
  return tier;
}

absl::Status CheckTier(const tier::TierOptions& tier, const MountOptions& options) {
  const std::string name = absl::StrCat("the tier ", tier::MediumName(tier.medium), ":", tier.path);
  if (base::IsAtOrBelow(tier.path, options.mountpoint)) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " lies inside the mountpoint; choose a directory outside"));
  }
  struct stat found;
  if (stat(tier.path.c_str(), &found) == 0 && !S_ISDIR(found.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is not a directory; name a directory, or a path to be made"));
  }
  const absl::StatusOr<struct statvfs> disk = FileSystemOf(tier.path);
  if (!disk.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " cannot be used: ", disk.status().message()));
  }
  const uint64_t size = static_cast<uint64_t>(disk->f_blocks) * disk->f_frsize;
  if (tier.quota_bytes > size) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, " has a quota of ", base::FormatBytes(tier.quota_bytes), ", more than the ",
        base::FormatBytes(size), " of its file system; give a smaller quota or another disk"));
  }
  return absl::OkStatus();
}

absl::Status CheckDistinct(const std::vector<tier::TierOptions>& tiers) {
  for (size_t i = 0; i < tiers.size(); ++i) {
    for (size_t j = i + 1; j < tiers.size(); ++j) {
      if (tiers[i].path == tiers[j].path) {
        return absl::InvalidArgumentError(
            absl::StrCat("the tier ", tiers[i].path, " is given twice; give each its directory"));
      }
      if (base::IsAtOrBelow(tiers[i].path, tiers[j].path) ||
          base::IsAtOrBelow(tiers[j].path, tiers[i].path)) {
        return absl::InvalidArgumentError(
            absl::StrCat("one of the tiers ", tiers[i].path, " and ", tiers[j].path,
                         " lies inside the other; give each its own directory"));
      }
    }
  }
  return absl::OkStatus();
}

// Makes the paths absolute. What is in the files is looked at by who uses them.
absl::Status CheckCertificates(MountOptions* options) {
  const std::pair<absl::string_view, std::string*> files[] = {
      {"--worker-certificate", &options->worker_certificate},
      {"--worker-key", &options->worker_key},
      {"--worker-authority", &options->worker_authority}};
  const auto given = std::count_if(std::begin(files), std::end(files),
                                   [](const auto& file) { return !file.second->empty(); });
  if (given == 0) return absl::OkStatus();
  if (given != std::ssize(files)) {
    return absl::InvalidArgumentError(
        "--worker-certificate, --worker-key and --worker-authority belong together; give all "
        "three, or none");
  }
  if (options->workers.empty()) {
    return absl::InvalidArgumentError(
        "--worker-certificate is for workers, and none are given; add --workers, or leave it out");
  }
  for (const auto& [name, file] : files) {
    *file = base::ResolvePath(*file);
    struct stat found;
    if (stat(file->c_str(), &found) != 0) {
      return base::ErrnoStatus(errno, absl::StrCat(name, " ", *file));
    }
    if (!S_ISREG(found.st_mode)) {
      return absl::InvalidArgumentError(absl::StrCat(name, " ", *file, " is not a file"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckUringTransport(const std::string& module_parameter,
                                 const std::string& io_uring_disabled) {
  const absl::StatusOr<std::string> parameter = base::ReadTextFile(module_parameter, kSwitchMax);
  if (!parameter.ok()) {
    return absl::FailedPreconditionError(
        "--fuse-transport=uring: this kernel has no FUSE over io_uring, which came with Linux "
        "6.14; leave the option out");
  }
  if (!absl::StartsWith(*parameter, "Y") && !absl::StartsWith(*parameter, "1")) {
    return absl::FailedPreconditionError(
        absl::StrCat("--fuse-transport=uring: FUSE over io_uring is switched off on this machine; "
                     "let root switch it on (echo 1 > ",
                     module_parameter, "), or leave the option out"));
  }
  // Where there is no such file io_uring cannot be switched off.
  const std::string disabled = base::ReadTextFile(io_uring_disabled, kSwitchMax).value_or("0");
  if (!absl::StartsWith(disabled, "0")) {
    return absl::FailedPreconditionError(
        "--fuse-transport=uring: io_uring is switched off on this machine; let root switch it on "
        "(sysctl kernel.io_uring_disabled=0), or leave the option out");
  }
  return absl::OkStatus();
}

absl::Status ValidateMount(const std::vector<base::MountEntry>& mounts,
                           absl::string_view cache_base, MountOptions* options) {
  options->mountpoint = base::ResolvePath(options->mountpoint);
  RETURN_IF_ERROR(CheckSourcesOutside(*options));
  RETURN_IF_ERROR(CheckMountpoint(mounts, options->mountpoint));
  if (options->transport == Transport::kUring) {
    RETURN_IF_ERROR(CheckUringTransport(kUringParameter, kUringDisabled));
  }
  if (options->cluster.empty()) {
    return absl::InvalidArgumentError("--cluster is empty; leave it out, or name the workers' own");
  }
  RETURN_IF_ERROR(CheckCertificates(options));
  // With workers the bytes are cached there: a second copy here only if it is asked for.
  if (options->tiers.empty() && options->workers.empty()) {
    ASSIGN_OR_RETURN(tier::TierOptions tier, DefaultTier(cache_base, options->mountpoint));
    options->tiers.push_back(std::move(tier));
  }
  for (tier::TierOptions& tier : options->tiers) tier.path = base::ResolvePath(tier.path);
  RETURN_IF_ERROR(CheckDistinct(options->tiers));
  for (const tier::TierOptions& tier : options->tiers) RETURN_IF_ERROR(CheckTier(tier, *options));
  return absl::OkStatus();
}

}  // namespace millrace::options
