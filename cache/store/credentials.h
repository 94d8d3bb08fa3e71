// Where the credentials of an S3-like store come from, in the order AWS's own tools use: the option
// access-key-file, the environment, the profile in the shared credentials file.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::store {

struct Credentials {
  std::string access_key_id;
  std::string secret_access_key;
  std::string session_token;  // Empty: none.
};

// getenv as a seam for tests.
using Environment = std::function<std::optional<std::string>(const std::string& name)>;
Environment ProcessEnvironment();

// Parses the text of a credentials file: sections "[profile]" with the keys aws_access_key_id,
// aws_secret_access_key, aws_session_token; without any section the keys alone; or one line
// "ID:SECRET". NotFound when the profile (or a key of it) is absent. No error repeats the text.
absl::StatusOr<Credentials> ParseCredentials(absl::string_view text, absl::string_view profile);

struct CredentialsQuery {
  std::string key_file;  // Option access-key-file; empty: not given.
  std::string profile;   // Option profile; empty: AWS_PROFILE, else "default".
  // Read before AWS_* where the dialect has names of its own ("OSS_": OSS_ACCESS_KEY_ID, …).
  std::string environment_prefix;
};

// The file that FindCredentials reads; empty when the environment has what it needs, or when there
// is no home directory.
std::string CredentialsFile(const CredentialsQuery& query, const Environment& environment);

// InvalidArgument says what was looked for and what to set.
absl::StatusOr<Credentials> FindCredentials(const CredentialsQuery& query,
                                            const Environment& environment);

}  // namespace millrace::store
