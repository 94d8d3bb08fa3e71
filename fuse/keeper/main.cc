// millrace-keeper: makes a mount and keeps it, whatever becomes of its daemon. `millrace mount`
// starts it with the user's arguments; `millrace upgrade` with --adopt where one has died.
//
// This file decides what is to be done at a mountpoint, and wires.
#include <malloc.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"
#include "common/base/mount_table.h"
#include "common/base/paths.h"
#include "common/base/status_macros.h"
#include "common/base/unmount.h"
#include "common/control/control_client.h"
#include "common/control/protocol.h"
#include "common/control/ready.h"
#include "common/control/run_directory.h"
#include "fuse/keeper/identity.h"
#include "fuse/keeper/keeper.h"
#include "fuse/keeper/mounting.h"
#include "fuse/keeper/recipe.h"
#include "fuse/keeper/tier_directories.h"
#include "fuse/options/local_files.h"
#include "fuse/options/options.h"
#include "fuse/options/validate.h"

namespace millrace::keeper {
namespace {

constexpr absl::Duration kDeadTimeout = absl::Seconds(2);
constexpr absl::Duration kUpgradeTimeout = absl::Minutes(2);

// The program of that name beside this one.
absl::StatusOr<std::string> Beside(absl::string_view name) {
  char self[PATH_MAX];
  const ssize_t size = readlink("/proc/self/exe", self, sizeof(self));
  if (size <= 0) return base::ErrnoStatus(errno, "/proc/self/exe");
  const std::string path(self, static_cast<size_t>(size));
  return absl::StrCat(path.substr(0, path.rfind('/') + 1), name);
}

// Of "NAME=URL?options": options may name files of secrets, and are nobody's business.
std::string WithoutOptions(const std::string& source) { return source.substr(0, source.find('?')); }

std::string SourceText(const options::MountOptions& options) {
  if (options.sources.size() != 1) return "millrace";
  const std::string& source = options.sources.front();
  const absl::string_view name = options::SourceName(source);
  return WithoutOptions(name.empty() ? source : source.substr(name.size() + 1));
}

// No mode of the mount keeps anybody who may use it from anything: owner, group and others have the
// same rights, to read all of it.
bool EverybodyMayRead(const options::MountOptions& options) {
  const mode_t execute = options.file_mode & 0111;
  return (options.file_mode & 0444) == 0444 && (options.dir_mode & 0555) == 0555 &&
         (execute == 0 || execute == 0111);
}

absl::StatusOr<SessionOptions> ToSession(const options::MountOptions& options, int oom_score_adj) {
  SessionOptions session;
  session.mountpoint = options.mountpoint;
  session.source_text = SourceText(options);
  for (const std::string& source : options.sources) {
    session.sources.push_back(WithoutOptions(source));
  }
  session.allow_other = options.allow_other;
  session.check_permissions = !EverybodyMayRead(options);
  ASSIGN_OR_RETURN(session.program, Beside("millrace-fuse"));
  session.recipe = {options::ToArguments(options), CurrentEnvironment()};
  session.oom_score_adj = oom_score_adj;
  session.limits.crashes_max = static_cast<size_t>(options.crash_limit);
  session.hang_deadline = options.hang_deadline;
  session.uring = options.transport == options::Transport::kUring;
  return session;
}

// The cache in the daemon's hands; again before each start, for somebody may have deleted it.
void PrepareTiersOf(const options::MountOptions& options, SessionOptions* session) {
  if (!session->identity.has_value()) return;  // It makes them itself.
  std::vector<std::string> paths;
  for (const tier::TierOptions& tier : options.tiers) paths.push_back(tier.path);
  session->prepare = [paths, identity = *session->identity] {
    return PrepareTierDirectories(paths, identity);
  };
}

// Who the daemon is to be.
absl::Status ChooseUser(const options::MountOptions& options, SessionOptions* session) {
  const store::LocalFiles local = options::LocalFilesOf(options, store::ProcessEnvironment());
  IdentityRequest request;
  request.user = options.user;
  request.sources = local.directories;
  request.files = local.files;
  request.socket = options::WorkerSocketOf(options);
  for (const tier::TierOptions& tier : options.tiers) request.tiers.push_back(tier.path);
  ASSIGN_OR_RETURN(const IdentityChoice choice, ChooseIdentity(request));
  session->identity = choice.identity;
  session->identity_text = choice.text;
  PrepareTiersOf(options, session);
  // Told to the person who mounts.
  return session->prepare == nullptr ? absl::OkStatus() : session->prepare();
}

// What was found at the mountpoint, and done about it.
enum class Found {
  kNothing,    // Mount.
  kDead,       // The mount of two killed processes was taken away. Mount.
  kOrphan,     // A daemon without a keeper: adopt it.
  kRecovered,  // A keeper that had given up was told to try again. Nothing is left to do.
};

// A keeper that had given up starts its daemon again, if what is asked for is what it keeps.
absl::StatusOr<Found> Recover(const control::FoundMount& mount,
                              const options::MountOptions& options) {
  std::vector<std::string> sources;
  for (const std::string& source : options.sources) sources.push_back(WithoutOptions(source));
  if (sources != mount.record.sources) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.mountpoint,
                     " is a Millrace mount of something else, whose daemon "
                     "crashed again and again; unmount it first: millrace umount ",
                     options.mountpoint));
  }
  ASSIGN_OR_RETURN(const std::string program, Beside("millrace-fuse"));
  control::CallOptions call;
  call.line_timeout = kUpgradeTimeout;
  const base::Json request = {{"op", std::string(control::kOpUpgrade)}, {"program", program}};
  RETURN_IF_ERROR(
      control::Call(mount.paths.keeper_socket(), request, call, [](const base::Json&) {}).status());
  return Found::kRecovered;
}

absl::StatusOr<Found> LookAt(const options::MountOptions& options) {
  const std::string& mountpoint = options.mountpoint;
  if (!FindMillraceMount(mountpoint).has_value()) return Found::kNothing;
  const control::RunPaths paths = control::RunPathsOf(mountpoint);
  if (!control::IsAlive(paths)) {
    // Of another user, or of another mount namespace: whoever serves it is not ours to replace.
    if (!IsMountDead(mountpoint, kDeadTimeout)) return Found::kNothing;
    RETURN_IF_ERROR(base::Unmount(mountpoint, /*lazy=*/true));
    return Found::kDead;
  }
  const absl::StatusOr<base::Json> pong =
      control::Call(paths.keeper_socket(), absl::string_view(control::kOpPing));
  if (absl::IsUnavailable(pong.status())) return Found::kOrphan;
  if (pong.ok() && !base::JsonString(*pong, "crash_loop").empty()) {
    const absl::StatusOr<control::FoundMount> found = control::FindMountRecord(mountpoint);
    if (found.ok()) return Recover(*found, options);
  }
  return Found::kNothing;  // The checks say what is there.
}

// ---- The ways of a keeper ----

int Keep(Keeper* keeper) {
  const int exit_code = keeper->Run();
  std::fflush(nullptr);
  // The prober may still wait for an answer; there is nothing to wait for it.
  _exit(exit_code);
}

int Mount(Keeper* keeper, options::MountOptions options, bool replaces_lost,
          control::ReadyNotifier* ready) {
  const int oom_score_adj = ShunOomKiller();
  absl::StatusOr<control::RunDirectory> directory =
      control::RunDirectory::Create(options.mountpoint);
  if (!directory.ok()) return ready->Failed(directory.status());
  const control::RunPaths paths = directory->paths();
  absl::Status status = ready->LogTo(paths.log());
  for (const std::string& note : options.notes) base::Log(base::Severity::kWarning, note);
  if (replaces_lost) {
    base::Log(base::Severity::kWarning,
              "the mount that was here had lost both its processes; it was taken away",
              {{"mountpoint", options.mountpoint}});
  }
  absl::StatusOr<SessionOptions> session = ToSession(options, oom_score_adj);
  if (status.ok()) status = session.status();
  if (status.ok()) status = ChooseUser(options, &*session);
  if (status.ok()) {
    session->ready = ready->Release();
    session->replaces_lost = replaces_lost;
    status = keeper->Start(*std::move(session), *std::move(directory));
  }
  if (!status.ok()) return ready->Failed(status);
  return Keep(keeper);
}

int Adopt(Keeper* keeper, const std::string& mountpoint, control::ReadyNotifier* ready) {
  const int oom_score_adj = ShunOomKiller();
  const absl::Status status = keeper->Adopt(
      mountpoint,
      [oom_score_adj](const Recipe& recipe, pid_t daemon) -> absl::StatusOr<SessionOptions> {
        ASSIGN_OR_RETURN(const options::ParsedMount parsed,
                         options::ParseMountOptions(recipe.arguments));
        ReplaceEnvironment(recipe.environment);
        base::SetLogThreshold(parsed.options.log_level);
        ASSIGN_OR_RETURN(SessionOptions session, ToSession(parsed.options, oom_score_adj));
        ASSIGN_OR_RETURN(session.identity, IdentityOf(daemon));
        if (session.identity.has_value()) {
          session.identity_text = DescribeIdentity(*session.identity);
        }
        PrepareTiersOf(parsed.options, &session);
        return session;
      });
  if (!status.ok()) return ready->Failed(status);
  if (const absl::Status log = ready->LogTo(control::RunPathsOf(mountpoint).log()); !log.ok()) {
    base::Log(base::Severity::kWarning, "no log", {{"cause", log.ToString()}});
  }
  control::ReadySummary summary;
  summary.mountpoint = mountpoint;
  summary.facts.emplace_back(
      "keeper", absl::StrCat("the daemon (process ", keeper->sessions().front()->daemon_pid(),
                             ") served on without one, and has a new one now"));
  ready->Ready(summary);
  return Keep(keeper);
}

int Run(std::vector<std::string> arguments) {
  // One arena: the prober's thread needs none of its own.
  mallopt(M_ARENA_MAX, 1);
  control::ReadyNotifier ready(options::FindReadyFd(arguments));
  Keeper keeper;
  for (const std::string& argument : arguments) {
    absl::string_view mountpoint = argument;
    if (!absl::ConsumePrefix(&mountpoint, "--adopt=")) continue;
    if (chdir("/") != 0) return ready.Failed(base::ErrnoStatus(errno, "chdir to /"));
    return Adopt(&keeper, std::string(mountpoint), &ready);
  }
  absl::StatusOr<options::ParsedMount> parsed = options::ParseMountOptions(arguments);
  if (!parsed.ok()) return ready.Failed(parsed.status());
  if (parsed->help) {
    std::fputs(options::MountHelp().c_str(), stdout);
    return 0;
  }
  options::MountOptions& options = parsed->options;
  base::SetLogThreshold(options.log_level);
  options.mountpoint = base::ResolvePath(options.mountpoint);
  const absl::StatusOr<Found> found = LookAt(options);
  if (!found.ok()) return ready.Failed(found.status());
  if (*found == Found::kOrphan) return Adopt(&keeper, options.mountpoint, &ready);
  if (*found == Found::kRecovered) {
    control::ReadySummary summary;
    summary.mountpoint = options.mountpoint;
    summary.facts.emplace_back("daemon", "had crashed again and again; started anew");
    ready.Ready(summary);
    return 0;
  }
  const absl::StatusOr<std::vector<base::MountEntry>> mounts = base::ReadMountTable();
  if (!mounts.ok()) return ready.Failed(mounts.status());
  const absl::Status valid = options::ValidateMount(*mounts, control::CacheBase(), &options);
  if (!valid.ok()) return ready.Failed(valid);
  // Every path is absolute by now; nobody's disk shall be kept busy.
  if (chdir("/") != 0) return ready.Failed(base::ErrnoStatus(errno, "chdir to /"));
  return Mount(&keeper, std::move(options), *found == Found::kDead, &ready);
}

}  // namespace
}  // namespace millrace::keeper

int main(int argc, char** argv) {
  return millrace::keeper::Run(std::vector<std::string>(argv + 1, argv + argc));
}
