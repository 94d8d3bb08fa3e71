#include "common/net/address.h"

#include <arpa/inet.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace millrace::net {
namespace {

// RFC 1035, section 2.3.4.
constexpr size_t kHostMax = 253;
// PATH_MAX with its 0.
constexpr size_t kPathMax = 4095;

absl::Status Wrong(absl::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat("\"", text,
                   "\" is not an address; write it like 10.0.0.1:7451, name:7451, "
                   "[fd00::1]:7451 or unix:/run/worker.sock"));
}

bool IsHost(absl::string_view host) {
  return host.size() <= kHostMax && std::all_of(host.begin(), host.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '-' ||
                  c == '_';
         });
}

bool IsIpv6(const std::string& host) {
  in6_addr parsed = {};
  // A link-local address has its interface behind a '%'.
  return inet_pton(AF_INET6, host.substr(0, host.find('%')).c_str(), &parsed) == 1 &&
         std::all_of(host.begin(), host.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

}  // namespace

std::string Address::ToString() const {
  if (is_unix()) return absl::StrCat("unix:", path);
  const bool brackets = absl::StrContains(host, ':');
  return absl::StrCat(brackets ? "[" : "", host, brackets ? "]" : "", ":", port);
}

absl::StatusOr<Address> ParseAddress(absl::string_view text) {
  Address address;
  if (absl::StartsWith(text, "unix:")) {
    const absl::string_view path = text.substr(5);
    if (path.empty() || path.front() != '/' || path.back() == '/' || path.size() > kPathMax ||
        absl::StrContains(path, absl::string_view("\0", 1))) {
      return Wrong(text);
    }
    address.path = std::string(path);
    return address;
  }
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return Wrong(text);
  const absl::string_view port = text.substr(colon + 1);
  uint32_t number = 0;
  if (port.empty() || port.size() > 5 ||
      !std::all_of(port.begin(), port.end(),
                   [](char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); }) ||
      !absl::SimpleAtoi(port, &number) || number > 65535) {
    return Wrong(text);
  }
  address.port = static_cast<uint16_t>(number);
  absl::string_view host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    address.host = std::string(host.substr(1, host.size() - 2));
    if (!IsIpv6(address.host)) return Wrong(text);
    return address;
  }
  if (!IsHost(host)) return Wrong(text);
  address.host = std::string(host);
  return address;
}

}  // namespace millrace::net
