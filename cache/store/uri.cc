#include "cache/store/uri.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/http/fields.h"

namespace millrace::store {
namespace {

// Longer text is no URL a person typed; it bounds everything derived from it.
constexpr size_t kUriBytesMax = 4096;

bool IsNameCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
}

absl::Status CheckName(absl::string_view name) {
  if (name.empty() || name.size() > 255 || name == "." || name == ".." ||
      !std::all_of(name.begin(), name.end(), IsNameCharacter)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the NAME before \"=\" becomes a directory: use letters, digits, \".\", \"_\" "
                     "and \"-\", as in train=s3://bucket/dir"));
  }
  return absl::OkStatus();
}

absl::Status CheckScheme(absl::string_view scheme) {
  const auto valid = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '+' || c == '-' || c == '.';
  };
  if (scheme.empty() || scheme.size() > 32 || !std::all_of(scheme.begin(), scheme.end(), valid)) {
    return absl::InvalidArgumentError(
        "the source has no valid scheme: write it like s3://bucket/dir or file:///dir");
  }
  return absl::OkStatus();
}

absl::Status CheckAuthority(absl::string_view scheme, absl::string_view authority) {
  if (absl::StrContains(authority, '@')) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the ", scheme,
        ":// URL holds a user name or secret before \"@\": a command line can be read by others; "
        "remove it, and give credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile "
        "file, or a file named by the option access-key-file"));
  }
  const auto bad = [](char c) {
    return !absl::ascii_isgraph(static_cast<unsigned char>(c)) ||
           absl::StrContains("\"<>\\^`{|}%", c);
  };
  if (authority.size() > 255 || std::any_of(authority.begin(), authority.end(), bad)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the host or bucket of the ", scheme, ":// URL holds a character that no such name has"));
  }
  return absl::OkStatus();
}

absl::Status ParseOptions(absl::string_view query, Uri* uri) {
  if (query.empty()) return absl::OkStatus();
  for (const absl::string_view pair : absl::StrSplit(query, '&', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(pair, absl::MaxSplits('=', 1));
    const std::optional<std::string> key = http::PercentDecode(parts.first);
    const std::optional<std::string> value = http::PercentDecode(parts.second);
    if (!key.has_value() || !value.has_value() || key->empty() || absl::StrContains(*value, '\0')) {
      return absl::InvalidArgumentError(
          "an option of the URL is not of the form key=value with valid %XX sequences");
    }
    if (!uri->options.emplace(*key, *value).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("the option \"", *key, "\" is given twice; give it once"));
    }
  }
  return absl::OkStatus();
}

// Levenshtein distance; both words are short.
size_t Distance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
    }
  }
  return row[b.size()];
}

}  // namespace

absl::StatusOr<Uri> ParseUri(absl::string_view text) {
  if (text.size() > kUriBytesMax) {
    return absl::InvalidArgumentError("the source URL is longer than 4096 bytes");
  }
  Uri uri;
  size_t scheme_end = text.find("://");
  const size_t equals = text.find('=');
  if (equals != absl::string_view::npos &&
      (scheme_end == absl::string_view::npos || equals < scheme_end)) {
    RETURN_IF_ERROR(CheckName(text.substr(0, equals)));
    uri.name = std::string(text.substr(0, equals));
    text.remove_prefix(equals + 1);
    scheme_end = text.find("://");
  }
  if (scheme_end == absl::string_view::npos) {
    return absl::InvalidArgumentError(
        "the source is not a URL: write it like s3://bucket/dir or file:///dir");
  }
  RETURN_IF_ERROR(CheckScheme(text.substr(0, scheme_end)));
  uri.scheme = absl::AsciiStrToLower(text.substr(0, scheme_end));

  const std::pair<absl::string_view, absl::string_view> halves =
      absl::StrSplit(text, absl::MaxSplits('?', 1));
  absl::string_view rest = halves.first;
  if (rest.size() < scheme_end + 3) rest = text.substr(0, scheme_end + 3);
  rest.remove_prefix(scheme_end + 3);
  const absl::string_view authority = rest.substr(0, rest.find('/'));
  RETURN_IF_ERROR(CheckAuthority(uri.scheme, authority));
  uri.authority = std::string(authority);

  const std::optional<std::string> path = http::PercentDecode(rest.substr(authority.size()));
  if (!path.has_value() || absl::StrContains(*path, '\0')) {
    return absl::InvalidArgumentError(
        "the path of the URL holds \"%\" without two hexadecimal digits, or %00; write a percent "
        "sign as %25");
  }
  const size_t first = path->find_first_not_of('/');
  if (first != std::string::npos) {
    uri.path = path->substr(first, path->find_last_not_of('/') - first + 1);
  }
  uri.text = std::string(halves.first);
  RETURN_IF_ERROR(ParseOptions(halves.second, &uri));
  return uri;
}

absl::string_view Nearest(absl::string_view word,
                          std::initializer_list<absl::string_view> candidates) {
  absl::string_view nearest;
  size_t best = std::min<size_t>(word.size(), 64) / 2 + 1;
  for (const absl::string_view candidate : candidates) {
    const size_t distance = Distance(word.substr(0, 64), candidate);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

absl::Status CheckOptions(const Uri& uri, std::initializer_list<absl::string_view> known) {
  for (const auto& [key, value] : uri.options) {
    if (std::find(known.begin(), known.end(), key) != known.end()) {
      // A variable that was not set: the default it would mean may be somebody else's server.
      if (!value.empty()) continue;
      return absl::InvalidArgumentError(absl::StrCat("the option ", key, " has no value; write ",
                                                     key, "=VALUE, or leave it out"));
    }
    std::string message = absl::StrCat(uri.scheme, ":// has no option \"", key.substr(0, 64), "\"");
    const absl::string_view nearest = Nearest(key, known);
    if (!nearest.empty()) absl::StrAppend(&message, "; did you mean \"", nearest, "\"?");
    absl::StrAppend(&message,
                    known.size() == 0 ? " (it has none)" : " (it has: ", absl::StrJoin(known, ", "),
                    known.size() == 0 ? "" : ")");
    const std::string lower = absl::AsciiStrToLower(key);
    if (absl::StrContains(lower, "secret") || absl::StrContains(lower, "password") ||
        absl::StrContains(lower, "token")) {
      absl::StrAppend(&message,
                      "; secrets are never taken from a URL: use the AWS_* environment, a profile "
                      "file, or a file named by access-key-file");
    }
    return absl::InvalidArgumentError(message);
  }
  return absl::OkStatus();
}

absl::string_view OptionOr(const Uri& uri, absl::string_view key, absl::string_view fallback) {
  const auto found = uri.options.find(key);
  return found == uri.options.end() ? fallback : absl::string_view(found->second);
}

absl::StatusOr<bool> BoolOptionOr(const Uri& uri, absl::string_view key, bool fallback) {
  const absl::string_view value = OptionOr(uri, key, fallback ? "true" : "false");
  if (value == "true" || value == "1" || value == "yes") return true;
  if (value == "false" || value == "0" || value == "no") return false;
  return absl::InvalidArgumentError(absl::StrCat("the option ", key, " is true or false"));
}

}  // namespace millrace::store
