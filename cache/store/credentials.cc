#include "cache/store/credentials.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/unique_fd.h"

namespace millrace::store {
namespace {

// Credential files are a few lines; more is some other file named by mistake.
constexpr size_t kFileBytesMax = 1 << 20;
// Session tokens are the longest values, at about 1 KiB.
constexpr size_t kValueBytesMax = 16 * 1024;

// HTTP header values are made of these: a line break must not smuggle a header in.
bool IsUsable(absl::string_view value) {
  return value.size() <= kValueBytesMax &&
         std::all_of(value.begin(), value.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

absl::Status CheckUsable(const Credentials& credentials) {
  if (!IsUsable(credentials.access_key_id) || !IsUsable(credentials.secret_access_key) ||
      !IsUsable(credentials.session_token)) {
    return absl::InvalidArgumentError("the credentials hold characters that no key has");
  }
  return absl::OkStatus();
}

std::optional<Credentials> FromEnvironment(absl::string_view prefix, absl::string_view secret,
                                           const Environment& environment) {
  const std::optional<std::string> id = environment(absl::StrCat(prefix, "ACCESS_KEY_ID"));
  const std::optional<std::string> key = environment(absl::StrCat(prefix, secret));
  if (!id.has_value() || !key.has_value() || id->empty() || key->empty()) return std::nullopt;
  return Credentials{*id, *key, environment(absl::StrCat(prefix, "SESSION_TOKEN")).value_or("")};
}

// A file or a profile that was asked for comes before the environment.
std::optional<Credentials> FromEnvironment(const CredentialsQuery& query,
                                           const Environment& environment) {
  if (!query.key_file.empty() || !query.profile.empty()) return std::nullopt;
  std::optional<Credentials> found;
  if (!query.environment_prefix.empty()) {
    found = FromEnvironment(query.environment_prefix, "ACCESS_KEY_SECRET", environment);
  }
  if (!found.has_value()) found = FromEnvironment("AWS_", "SECRET_ACCESS_KEY", environment);
  return found;
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  const base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) {
    const int error = errno;
    const std::string message = absl::StrCat("cannot read ", path, ": ", std::strerror(error));
    return error == ENOENT ? absl::NotFoundError(message) : absl::InvalidArgumentError(message);
  }
  std::string text;
  std::array<char, 4096> piece;
  while (true) {
    const ssize_t bytes = read(fd.get(), piece.data(), piece.size());
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot read ", path, ": ", std::strerror(errno)));
    }
    if (bytes == 0) return text;
    text.append(piece.data(), static_cast<size_t>(bytes));
    if (text.size() > kFileBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is larger than 1 MiB: not a credentials file"));
    }
  }
}

// One line of the form "key = value" into `credentials`.
void TakeLine(absl::string_view line, Credentials* credentials) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(line, absl::MaxSplits('=', 1));
  const std::string key = absl::AsciiStrToLower(absl::StripAsciiWhitespace(parts.first));
  const std::string value(absl::StripAsciiWhitespace(parts.second));
  if (key == "aws_access_key_id") credentials->access_key_id = value;
  if (key == "aws_secret_access_key") credentials->secret_access_key = value;
  if (key == "aws_session_token") credentials->session_token = value;
}

// "ID:SECRET" and nothing else.
std::optional<Credentials> ParsePair(absl::string_view text) {
  text = absl::StripAsciiWhitespace(text);
  if (absl::StrContains(text, '\n') || absl::StrContains(text, '=') ||
      absl::StartsWith(text, "[")) {
    // A secret may hold '=' only in theory: AWS's alphabet is base64 without padding.
    return std::nullopt;
  }
  const size_t colon = text.find(':');
  if (colon == absl::string_view::npos || colon == 0 || colon + 1 == text.size()) {
    return std::nullopt;
  }
  return Credentials{std::string(text.substr(0, colon)), std::string(text.substr(colon + 1)), ""};
}

}  // namespace

Environment ProcessEnvironment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* const value = std::getenv(name.c_str());
    if (value == nullptr) return std::nullopt;
    return std::string(value);
  };
}

absl::StatusOr<Credentials> ParseCredentials(absl::string_view text, absl::string_view profile) {
  std::optional<Credentials> pair = ParsePair(text);
  Credentials credentials;
  if (pair.has_value()) {
    credentials = *std::move(pair);
  } else {
    // Lines before the first section belong to "default", so that a file of bare keys works.
    std::string section = "default";
    for (absl::string_view line : absl::StrSplit(text, '\n')) {
      line = absl::StripAsciiWhitespace(line);
      if (line.empty() || line.front() == '#' || line.front() == ';') continue;
      if (line.front() == '[') {
        section = std::string(absl::StripAsciiWhitespace(line.substr(1, line.find(']') - 1)));
        // ~/.aws/config writes "[profile name]"; the credentials file "[name]".
        if (absl::StartsWith(section, "profile ")) section = section.substr(8);
      } else if (absl::string_view(section) == profile) {
        TakeLine(line, &credentials);
      }
    }
  }
  if (credentials.access_key_id.empty() || credentials.secret_access_key.empty()) {
    return absl::NotFoundError(absl::StrCat(
        "no aws_access_key_id and aws_secret_access_key for the profile \"", profile, "\""));
  }
  if (absl::Status status = CheckUsable(credentials); !status.ok()) return status;
  return credentials;
}

std::string CredentialsFile(const CredentialsQuery& query, const Environment& environment) {
  if (!query.key_file.empty()) return query.key_file;
  if (FromEnvironment(query, environment).has_value()) return "";
  std::string path = environment("AWS_SHARED_CREDENTIALS_FILE").value_or("");
  if (path.empty()) {
    const std::optional<std::string> home = environment("HOME");
    if (home.has_value() && !home->empty()) path = absl::StrCat(*home, "/.aws/credentials");
  }
  return path;
}

absl::StatusOr<Credentials> FindCredentials(const CredentialsQuery& query,
                                            const Environment& environment) {
  if (std::optional<Credentials> found = FromEnvironment(query, environment); found.has_value()) {
    if (absl::Status status = CheckUsable(*found); !status.ok()) return status;
    return *std::move(found);
  }
  const std::string profile =
      !query.profile.empty() ? query.profile : environment("AWS_PROFILE").value_or("default");
  const std::string path = CredentialsFile(query, environment);
  const bool chosen = !query.key_file.empty() || !query.profile.empty();
  absl::Status reason = absl::NotFoundError("there is no home directory");
  if (!path.empty()) {
    const absl::StatusOr<std::string> text = ReadSmallFile(path);
    reason = text.status();
    if (text.ok()) {
      absl::StatusOr<Credentials> credentials = ParseCredentials(*text, profile);
      if (credentials.ok()) return credentials;
      reason = absl::Status(credentials.status().code(),
                            absl::StrCat(path, ": ", credentials.status().message()));
    }
  }
  if (chosen) return absl::InvalidArgumentError(reason.message());
  return absl::InvalidArgumentError(absl::StrCat(
      "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write a profile into "
      "~/.aws/credentials (",
      reason.message(),
      "), or add the option access-key-file=FILE; for a public bucket add anonymous=true"));
}

}  // namespace millrace::store
