// Reading HTTP/1.1 messages off a socket, for test servers. Trusts its peer.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace millrace::test {

struct HttpHead {
  std::string text;                            // As received, with the empty line.
  std::string start_line;                      // "GET /a?b HTTP/1.1" or "HTTP/1.1 200 OK".
  std::map<std::string, std::string> headers;  // Names in lower case.

  std::string method() const;
  std::string target() const;
  std::string header(const std::string& name) const;
};

// Reads up to the empty line; what came behind it stays in `buffer`. Nothing at the stream's end.
std::optional<HttpHead> ReadHead(int fd, std::string* buffer);

// `text` with the header's value replaced, or added where it was absent.
std::string WithHeader(const HttpHead& head, absl::string_view name, absl::string_view value);

}  // namespace millrace::test
