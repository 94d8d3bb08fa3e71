// Who the daemon of a privileged keeper runs as.
//
// A daemon reads what strangers wrote (answers of stores, requests of applications) and holds
// secrets, so it gets no more than it needs: a user that owns nothing but the cache, and no
// capability. One comes back when something it is asked to use could not be reached otherwise:
// CAP_DAC_READ_SEARCH, which reads and never writes. The keeper of a user who is not root has
// nothing to give away: its daemon is the same user.
//
// Stateless; safe for concurrent use.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "fuse/keeper/launch.h"

namespace millrace::keeper {

// The system user that daemons run as where a package made it, and what they are elsewhere.
inline constexpr char kSystemUser[] = "millrace";
inline constexpr uint32_t kNobody = 65534;

struct IdentityRequest {
  std::string user;  // Of --user: a name, a number, or empty for the default.
  // Directories of file:// sources. The mount of root shows all that root can read.
  std::vector<std::string> sources;
  // What is read at the start: keys, certificates, profiles. Those that are missing do not matter.
  std::vector<std::string> files;
  // The socket of this node's worker; empty: none. Where its group may use it, the daemon is of
  // that group, unless it is root's.
  std::string socket;
  // Directories of the cache, there or not. The tiers themselves are handed over
  // (tier_directories.h); what stands above them must let the user through.
  std::vector<std::string> tiers;
};

struct IdentityChoice {
  std::optional<Identity> identity;  // None: the daemon is who the keeper is.
  // For the person who mounts: "nobody, without privileges".
  std::string text;
};

// InvalidArgument when the wanted user does not exist or cannot be had.
absl::StatusOr<IdentityChoice> ChooseIdentity(const IdentityRequest& request);

// "user 65534, without privileges": the text of an identity whose reasons are not known.
std::string DescribeIdentity(const Identity& identity);

// Who a running daemon is, for its successors under another keeper; none when it is who that keeper
// is.
absl::StatusOr<std::optional<Identity>> IdentityOf(pid_t daemon);

// The user `name` (or its number, which needs no line) of the text of a passwd(5) file. NotFound
// when there is none. Not getpwnam(3): it may ask the network, and the keeper must never wait.
absl::StatusOr<Identity> FindUser(absl::string_view name, absl::string_view passwd);

}  // namespace millrace::keeper
