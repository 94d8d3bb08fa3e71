// A proxy between an HTTP client and a real server that breaks answers as a test says.
//
// Faults are tried in the order they were added; the first one that matches a request and has uses
// left is carried out. Requests without a fault pass unchanged (so do signatures, which cover the
// proxy's address as the client sees it).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/mutex.h"
#include "test/support/connection_server.h"
#include "test/support/http_message.h"

namespace millrace::test {

enum class FaultKind {
  kStatus,       // Answer `status` (with Retry-After) without asking the server.
  kReset,        // TCP reset after `after_bytes` of the body.
  kTruncate,     // Orderly close after `after_bytes` of the body.
  kStall,        // Silence after `after_bytes` of the body, until the client gives up.
  kWrongLength,  // Content-Length is `after_bytes` more than the body has.
  kChangedETag,  // Another ETag than the server's.
};

struct Fault {
  FaultKind kind = FaultKind::kStatus;
  std::string path;    // Part of the request's target; empty: every request.
  std::string method;  // Empty: every method.
  int times = 1;       // 0: always.
  int status = 503;
  int retry_after_s = -1;  // Negative: no Retry-After.
  uint64_t after_bytes = 0;
};

// "kind=reset,path=a.bin,method=GET,times=2,after=1000" and "kind=status,status=503,retry-after=1".
absl::StatusOr<Fault> ParseFault(absl::string_view text);

// Safe for concurrent use.
class FaultProxy {
 public:
  // `port` 0 takes a free one.
  FaultProxy(uint16_t port, std::string upstream_host, uint16_t upstream_port);

  void Add(const Fault& fault);
  void Clear();
  uint16_t port() const { return server_.port(); }
  std::string url() const;
  // Faults carried out, and requests seen, so far.
  int faults_done() const;
  int requests_seen() const;

 private:
  void Serve(base::UniqueFd client);
  // False when the client's connection is over.
  bool ServeRequest(base::UniqueFd* client, const HttpHead& request);
  bool Relay(base::UniqueFd* client, const HttpHead& request, const Fault* fault);
  bool TakeFault(const HttpHead& request, Fault* fault);

  const std::string upstream_host_;
  const uint16_t upstream_port_;
  mutable base::Mutex mutex_;
  std::vector<Fault> faults_ ABSL_GUARDED_BY(mutex_);
  int faults_done_ ABSL_GUARDED_BY(mutex_) = 0;
  int requests_seen_ ABSL_GUARDED_BY(mutex_) = 0;
  ConnectionServer server_;
};

}  // namespace millrace::test
