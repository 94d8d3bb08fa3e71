// One kept-alive HTTP/1.1 connection that throws the bodies away.
//
// A blocking socket of one thread: nothing is cheaper for a handful of connections. Bodies are
// received into one small buffer that stays in the processor's cache, and forgotten: a GET without
// the bytes (MSG_TRUNC frees them in the kernel) would be no limit of anybody who wants them.
// Not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/unique_fd.h"

namespace millrace::bench {

class GetConnection {
 public:
  // `host` and `port` as getaddrinfo takes them.
  static absl::StatusOr<GetConnection> Open(const std::string& host, const std::string& port);

  // Sends one request and reads the whole response; returns the length of its body. Unavailable
  // when the server closed the connection before its answer (open another), FailedPrecondition for
  // an HTTP status other than 200 and 206 (the message quotes the body), DataLoss for a body
  // cut short, DeadlineExceeded when nothing came for 60 s.
  absl::StatusOr<uint64_t> Get(absl::string_view head);

  // Whether the server said that it will close the connection, so that the next Get must open one.
  bool closed() const { return closed_; }

 private:
  explicit GetConnection(base::UniqueFd fd) : fd_(std::move(fd)) {}

  absl::Status Send(absl::string_view data);
  absl::Status Discard(uint64_t bytes);

  base::UniqueFd fd_;
  bool closed_ = false;
  std::string head_;
  std::vector<char> body_ = std::vector<char>(256 * 1024);
};

}  // namespace millrace::bench
