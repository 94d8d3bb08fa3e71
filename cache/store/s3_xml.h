// The two XML answers of S3 that we read: a listing (ListObjectsV2) and an error.
//
// Parsed with libxml2's SAX interface, which builds no tree; no network, no external entity, and a
// document type is refused, so that a hostile answer costs no more than its size.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace millrace::store {

struct S3Listing {
  struct Object {
    std::string key;
    uint64_t size = 0;
    absl::Time mtime = absl::UnixEpoch();
    std::string etag;  // Without quotes.
  };
  std::vector<Object> objects;
  std::vector<std::string> prefixes;  // CommonPrefixes, each ending with the delimiter.
  std::string next_token;             // Empty after the last page.
};

// InvalidArgument for text that is not a listing.
absl::StatusOr<S3Listing> ParseS3Listing(absl::string_view xml);

struct S3Error {
  std::string code;
  std::string message;
  std::string region;    // Where the store says the bucket is.
  std::string endpoint;  // Where the store says to ask.
};

// Empty fields for text that is not an S3 error (a proxy's page).
S3Error ParseS3Error(absl::string_view xml);

}  // namespace millrace::store
