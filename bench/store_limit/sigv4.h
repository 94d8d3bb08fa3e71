// AWS signature version 4 of a GET, as small as it can be.
//
// The project's own store leaves signing to its HTTP library. This second implementation exists so
// that the store's limit is measured without any of our own stack; it knows GETs without a body
// and nothing else.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace millrace::bench {

struct SigningKey {
  std::string access_key;
  std::string secret_key;
  std::string region;
  std::string service = "s3";
};

struct GetToSign {
  std::string host;   // "127.0.0.1:7070", as in the Host header
  std::string path;   // percent-encoded, begins with "/"
  std::string query;  // canonical: sorted, percent-encoded; may be empty
  std::string range;  // "bytes=0-9", or empty
};

// Signs many GETs: the derived key of a day is computed once. Not thread-safe.
class Signer {
 public:
  explicit Signer(SigningKey key);

  // The complete head of the request, signed for the moment `now`.
  std::string SignedHead(const GetToSign& get, absl::Time now);

  // The value of the Authorization header alone.
  std::string Authorization(const GetToSign& get, absl::Time now);

 private:
  void Refresh(absl::Time now);

  const SigningKey key_;
  // All for the second of the last signature.
  int64_t second_ = -1;
  std::string timestamp_;
  std::string scope_;
  std::string derived_key_;
};

// Percent-encodes everything but the unreserved characters and "/", as S3 wants object keys.
std::string EncodePath(absl::string_view path);

}  // namespace millrace::bench
