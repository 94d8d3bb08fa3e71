// Source URLs: `NAME=SCHEME://AUTHORITY/PATH?key=value&…` taken apart. Pure; input is hostile.
//
// The path is percent-decoded ("%25" is a percent sign, "%3F" a question mark); '#' is an ordinary
// character, since object keys have it. A URL that carries a user name or a secret is refused, and
// no error repeats it.
#pragma once

#include <initializer_list>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::store {

struct Uri {
  std::string name;       // NAME, or empty.
  std::string scheme;     // Lower case.
  std::string authority;  // "bucket", "host:port", or empty (file:///dir).
  std::string path;       // Decoded, without leading and trailing slashes.
  std::map<std::string, std::string, std::less<>> options;  // Decoded.
  std::string text;  // The URL as given, without NAME and options: names it in logs and status.
};

// InvalidArgument names the wrong part and the remedy.
absl::StatusOr<Uri> ParseUri(absl::string_view text);

// InvalidArgument for the first option of `uri` that is not in `known`; it lists the known ones
// and suggests the nearest.
absl::Status CheckOptions(const Uri& uri, std::initializer_list<absl::string_view> known);

// The option's value, or "" where it is absent.
absl::string_view OptionOr(const Uri& uri, absl::string_view key, absl::string_view fallback);

// "true"/"false" (also 1/0, yes/no); InvalidArgument for anything else.
absl::StatusOr<bool> BoolOptionOr(const Uri& uri, absl::string_view key, bool fallback);

// The one of `candidates` that a person probably meant; empty where none is near.
absl::string_view Nearest(absl::string_view word,
                          std::initializer_list<absl::string_view> candidates);

}  // namespace millrace::store
