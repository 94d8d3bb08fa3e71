// What an s3:// or oss:// URL and the environment say about a bucket.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "cache/store/credentials.h"
#include "cache/store/uri.h"

namespace millrace::store {

struct S3Options {
  std::string kind;                  // "s3" or "oss".
  std::string url;                   // For messages, without options.
  std::string endpoint;              // "https://s3.eu-west-1.amazonaws.com", without a path.
  bool endpoint_is_default = false;  // Not named by URL or environment.
  bool path_style = false;           // The bucket is in the path instead of the host name.
  std::string bucket;
  std::string prefix;  // Without slashes around it; empty: the whole bucket.
  std::string region;
  std::optional<Credentials> credentials;  // Nothing: anonymous.
  std::string ca_file;                     // Empty: the system's.
};

// Options: endpoint, region, path-style, anonymous, access-key-file, profile, ca-file.
// Environment: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION,
// AWS_CA_BUNDLE, and those of credentials.h.
// An endpoint that is not the vendor's own gets path-style unless the URL says otherwise.
absl::StatusOr<S3Options> S3OptionsFromUri(const Uri& uri, const Environment& environment);

// Parts of it: where the credentials are looked for, and the file of the trusted CAs (empty: the
// system's).
CredentialsQuery S3CredentialsQuery(const Uri& uri);
std::string S3CaFile(const Uri& uri, const Environment& environment);

}  // namespace millrace::store
