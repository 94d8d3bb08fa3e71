// Addresses of services: "HOST:PORT" and "unix:PATH". Pure; safe on any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::net {

struct Address {
  std::string host;   // A name, or a numeric address without brackets; empty: every interface.
  uint16_t port = 0;  // 0: any, for who listens.
  std::string path;   // Absolute; set for a Unix socket, and host and port are not.

  bool is_unix() const { return !path.empty(); }
  // As ParseAddress takes it.
  std::string ToString() const;
  bool operator==(const Address& other) const {
    return host == other.host && port == other.port && path == other.path;
  }
};

// "10.0.0.1:7451", "worker-0.cache:7451", "[fd00::1]:7451", ":7451", "unix:/run/w.sock". The port
// is 0 to 65535 in digits; a host is letters, digits, '.', '-' and '_', or an IPv6 address in
// brackets. InvalidArgument names the text for anything else.
absl::StatusOr<Address> ParseAddress(absl::string_view text);

}  // namespace millrace::net
