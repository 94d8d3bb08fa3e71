#include "cache/pool/resolver.h"

#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <netinet/in.h>
#include <resolv.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "common/net/socket.h"

namespace millrace::pool {
namespace {

constexpr size_t kWorkersMax = 4096;

bool IsNumeric(const std::string& host) {
  in6_addr parsed = {};
  return inet_pton(AF_INET, host.c_str(), &parsed) == 1 ||
         inet_pton(AF_INET6, host.substr(0, host.find('%')).c_str(), &parsed) == 1;
}

absl::Status Wrong(absl::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat("\"", text,
                   "\" is not a worker's address; write HOST:PORT, dns:NAME:PORT or "
                   "unix:/PATH, several with commas between"));
}

// The targets of the SRV records of `name` that have `port`; all of them for port 0.
std::vector<net::Address> Services(const std::string& name, uint16_t port) {
  std::vector<net::Address> found;
  struct __res_state state = {};
  if (res_ninit(&state) != 0) return found;
  state.retrans = 1;  // Seconds.
  state.retry = 2;
  unsigned char answer[NS_MAXMSG];
  const int size = res_nquery(&state, name.c_str(), ns_c_in, ns_t_srv, answer, sizeof(answer));
  ns_msg message;
  if (size > 0 && size <= static_cast<int>(sizeof(answer)) &&
      ns_initparse(answer, size, &message) == 0) {
    for (int i = 0; i < ns_msg_count(message, ns_s_an); ++i) {
      ns_rr record;
      if (ns_parserr(&message, ns_s_an, i, &record) != 0) break;
      // Priority, weight and port, two bytes each, then the target (RFC 2782).
      if (ns_rr_type(record) != ns_t_srv || ns_rr_rdlen(record) < 7) continue;
      const uint16_t target_port = static_cast<uint16_t>(ns_get16(ns_rr_rdata(record) + 4));
      if (port != 0 && target_port != port) continue;
      char target[NS_MAXDNAME];
      if (ns_name_uncompress(ns_msg_base(message), ns_msg_end(message), ns_rr_rdata(record) + 6,
                             target, sizeof(target)) < 0) {
        continue;
      }
      net::Address address;
      address.host = target;
      address.port = target_port;
      if (!address.host.empty() && address.host != ".") found.push_back(std::move(address));
    }
  }
  res_nclose(&state);
  return found;
}

// One endpoint for each address of the host, at most `max`.
absl::StatusOr<std::vector<Endpoint>> EndpointsOf(const net::Address& address, size_t max,
                                                  const std::string& shown,
                                                  const std::string& certificate) {
  std::vector<Endpoint> endpoints;
  ASSIGN_OR_RETURN(const std::vector<std::string> hosts, net::Resolve(address.host));
  for (const std::string& host : hosts) {
    if (endpoints.size() == max) break;
    Endpoint endpoint;
    endpoint.address = address;
    endpoint.address.host = host;
    endpoint.shown = shown.empty() ? endpoint.address.ToString() : shown;
    endpoint.certificate = certificate;
    endpoints.push_back(std::move(endpoint));
  }
  return endpoints;
}

}  // namespace

absl::StatusOr<std::vector<WorkerSource>> ParseWorkers(absl::Span<const std::string> workers) {
  std::vector<WorkerSource> sources;
  size_t sockets = 0;
  for (const std::string& text : workers) {
    for (const absl::string_view part : absl::StrSplit(text, ',')) {
      absl::string_view name = part;
      const bool is_name = absl::ConsumePrefix(&name, "dns:");
      const absl::StatusOr<net::Address> address = net::ParseAddress(name);
      const bool tcp = address.ok() && !address->host.empty() && address->port != 0;
      if (is_name && (!tcp || IsNumeric(address->host))) return Wrong(part);
      if (!is_name && !tcp && !(address.ok() && address->is_unix())) return Wrong(part);
      sockets += address->is_unix() ? 1 : 0;
      sources.push_back(
          {is_name ? WorkerSource::Kind::kName : WorkerSource::Kind::kAddress, *address});
    }
  }
  if (sockets > 1) {
    return absl::InvalidArgumentError("only one worker can be this node's: give one unix:PATH");
  }
  if (sources.size() > kWorkersMax) {
    return absl::InvalidArgumentError(absl::StrCat("more than ", kWorkersMax, " workers"));
  }
  return sources;
}

absl::StatusOr<std::vector<Endpoint>> LookUp(const WorkerSource& source) {
  const net::Address& address = source.address;
  if (address.is_unix()) return std::vector<Endpoint>{{address.ToString(), address, ""}};
  if (source.kind == WorkerSource::Kind::kAddress) {
    return EndpointsOf(address, 1, address.ToString(), address.host);
  }
  const bool service = absl::StartsWith(address.host, "_");
  std::vector<Endpoint> endpoints;
  for (const net::Address& target : Services(address.host, service ? 0 : address.port)) {
    absl::StatusOr<std::vector<Endpoint>> found =
        EndpointsOf(target, 1, target.ToString(), target.host);
    if (found.ok()) std::move(found->begin(), found->end(), std::back_inserter(endpoints));
  }
  if (!endpoints.empty() || service) {
    if (endpoints.empty()) {
      return absl::NotFoundError(absl::StrCat("no SRV records of \"", address.host, "\""));
    }
    return endpoints;
  }
  return EndpointsOf(address, kWorkersMax, "", address.host);
}

struct Resolver::State {
  std::vector<WorkerSource> sources;
  absl::Duration refresh;
  LookUpFunction look_up;

  base::Mutex mutex;
  base::CondVar stop;
  std::function<void()> changed ABSL_GUARDED_BY(mutex);
  bool stopping ABSL_GUARDED_BY(mutex) = false;
  bool ready ABSL_GUARDED_BY(mutex) = false;
  // One for each source: what it was last found to be.
  std::vector<std::vector<Endpoint>> found ABSL_GUARDED_BY(mutex);
  std::string problem ABSL_GUARDED_BY(mutex);

  void Run() {
    while (true) {
      std::vector<absl::StatusOr<std::vector<Endpoint>>> round;
      round.reserve(sources.size());
      for (const WorkerSource& source : sources) round.push_back(look_up(source));
      base::MutexLock lock(&mutex);
      if (stopping) return;
      bool differs = !ready;
      problem.clear();
      for (size_t i = 0; i < round.size(); ++i) {
        if (!round[i].ok()) {
          problem = std::string(round[i].status().message());
        } else if (*round[i] != found[i]) {
          found[i] = *std::move(round[i]);
          differs = true;
        }
      }
      ready = true;
      // Under the lock, so that nobody is called after the destructor.
      if (differs) changed();
      if (!stopping) stop.WaitFor(&mutex, refresh);
      if (stopping) return;
    }
  }
};

Resolver::Resolver(std::vector<WorkerSource> sources, absl::Duration refresh,
                   LookUpFunction look_up, std::function<void()> changed)
    : state_(std::make_shared<State>()) {
  state_->found.resize(sources.size());
  state_->sources = std::move(sources);
  state_->refresh = refresh;
  state_->look_up = std::move(look_up);
  state_->changed = std::move(changed);
  // Not joined: a look-up may last, and must not keep a process from ending.
  std::thread([state = state_] { state->Run(); }).detach();
}

Resolver::~Resolver() {
  base::MutexLock lock(&state_->mutex);
  state_->stopping = true;
  state_->changed = nullptr;
  state_->stop.NotifyAll();
}

bool Resolver::ready() const {
  base::MutexLock lock(&state_->mutex);
  return state_->ready;
}

std::vector<Endpoint> Resolver::endpoints() const {
  base::MutexLock lock(&state_->mutex);
  std::vector<Endpoint> all;
  for (const std::vector<Endpoint>& each : state_->found) {
    for (const Endpoint& endpoint : each) {
      if (std::find(all.begin(), all.end(), endpoint) == all.end()) all.push_back(endpoint);
    }
  }
  return all;
}

std::string Resolver::problem() const {
  base::MutexLock lock(&state_->mutex);
  return state_->problem;
}

}  // namespace millrace::pool
