// From what --workers says to endpoints: lists of addresses, and names that are looked up again and
// again on a thread of their own, because a look-up may take as long as the system's resolver does.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "cache/pool/member.h"

namespace millrace::pool {

// One element of --workers, taken apart.
struct WorkerSource {
  enum class Kind { kAddress, kName };
  Kind kind = Kind::kAddress;
  net::Address address;  // kName: the name and the port behind "dns:".
};

// "HOST:PORT", "dns:NAME:PORT", "unix:PATH", several of them with commas between. At most one
// socket, which is this node's worker. InvalidArgument says what is wrong.
absl::StatusOr<std::vector<WorkerSource>> ParseWorkers(absl::Span<const std::string> workers);

// Whom a name stands for now: the targets of its SRV records with this port (all of them if the
// name begins with '_'), else its A and AAAA records. For kAddress, the first address of the host.
// Blocks. NotFound or Unavailable when there is none.
absl::StatusOr<std::vector<Endpoint>> LookUp(const WorkerSource& source);

// Looks up on a thread of its own, and tells what changed. Thread-safe.
class Resolver {
 public:
  using LookUpFunction = std::function<absl::StatusOr<std::vector<Endpoint>>(const WorkerSource&)>;
  // `changed` is called from the resolver's thread after each round that changed something, the
  // first one always. A look-up that fails leaves what was known.
  Resolver(std::vector<WorkerSource> sources, absl::Duration refresh, LookUpFunction look_up,
           std::function<void()> changed);
  // Does not wait for a look-up on its way: its result is dropped.
  ~Resolver();
  Resolver(const Resolver&) = delete;
  Resolver& operator=(const Resolver&) = delete;

  // A round is behind it.
  bool ready() const;
  std::vector<Endpoint> endpoints() const;
  // Why names could not be looked up in the last round; empty when all could.
  std::string problem() const;

 private:
  struct State;
  const std::shared_ptr<State> state_;
};

}  // namespace millrace::pool
