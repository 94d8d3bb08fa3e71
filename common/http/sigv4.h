// AWS signature version 4 of requests without a body.
//
// libcurl signs too, and does for every request it sends. Requests that go past it (client.h) are
// signed here: their signature must not cost more than all the rest of them.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/http/client.h"

namespace millrace::http {

// The payload hash of a request without a body.
inline constexpr absl::string_view kEmptyBodySha256 =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

// Signs many requests: what holds for a day is computed once. Not thread-safe.
class Signer {
 public:
  // The headers to send besides Host and `headers`, all of which are signed. Path and query must be
  // canonical: percent-encoded once, parameters sorted by name.
  std::vector<Header> Sign(const AwsSigV4& sign, absl::string_view host, absl::string_view path,
                           absl::string_view query, const std::vector<Header>& headers,
                           absl::Time now);

 private:
  void Refresh(const AwsSigV4& sign, absl::Time now);

  // Of the last signature: its second, and the key of its day.
  int64_t second_ = -1;
  std::string timestamp_;
  std::string scope_;
  std::string secret_;
  std::string derived_key_;
};

}  // namespace millrace::http
