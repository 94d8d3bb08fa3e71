// The small grammars of HTTP: percent-encoding, dates, ranges. Pure functions; input is hostile.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace millrace::http {

// Everything but RFC 3986's unreserved characters as %XX (upper case), which is also the canonical
// form of AWS Signature V4. PercentEncodePath leaves '/' as it is.
std::string PercentEncode(absl::string_view text);
std::string PercentEncodePath(absl::string_view path);

// Nothing for "%", "%4" or "%zz".
std::optional<std::string> PercentDecode(absl::string_view text);
// The same for application/x-www-form-urlencoded, where '+' is a space.
std::optional<std::string> FormDecode(absl::string_view text);

// "Sun, 06 Nov 1994 08:49:37 GMT" (RFC 9110's one form of a date that may be sent).
std::optional<absl::Time> ParseHttpDate(absl::string_view text);
// "2009-10-12T17:50:30.000Z": time stamps of S3 listings.
std::optional<absl::Time> ParseIsoTime(absl::string_view text);

// "120" or a date, as the time to wait from `now`; never negative.
std::optional<absl::Duration> ParseRetryAfter(absl::string_view text, absl::Time now);

// "bytes 0-499/1234" and "bytes 0-499/*".
struct ContentRange {
  uint64_t first = 0;
  uint64_t last = 0;
  std::optional<uint64_t> total;
};
std::optional<ContentRange> ParseContentRange(absl::string_view text);

}  // namespace millrace::http
