// What the stores over HTTP (s3, http) read out of an answer in the same way: versions, ranges and
// the meaning of a status code. Pure.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "cache/store/store.h"
#include "common/http/client.h"

namespace millrace::store {

// A name for a message: control characters and quotes escaped, cut at 300 bytes.
std::string Printable(absl::string_view text);

// The version of the object that an answer describes: its ETag without quotes (weak ones keep
// "W/"), else "<Last-Modified ns>-<size>", else "-<size>".
std::string VersionOf(const http::Response& head, uint64_t size);

// Adds Range, and If-Match where `request.version` is an ETag that a server can compare.
void AddRangeHeaders(const GetRequest& request, std::vector<http::Header>* headers);

// Where the bytes asked for are in the body of a 2xx answer.
struct BodyWindow {
  uint64_t skip = 0;  // Bytes of the body before the first one asked for.
};

// Checks status, Content-Range, Content-Length and version of a 2xx answer to `request`, before
// any byte is used. FailedPrecondition: another version, or a shorter object. InvalidArgument: an
// answer that does not fit the question. A 200 with the whole object is accepted, if
// `skip_bytes_max` allows to skip what comes before the range.
absl::Status CheckGetAnswer(const http::Response& head, const GetRequest& request,
                            uint64_t skip_bytes_max, BodyWindow* window);

// Passes exactly `length` bytes after `skip` of a body on to a sink.
class WindowSink {
 public:
  WindowSink(const BodyWindow* window, uint64_t length, BodySink sink)
      : window_(window), length_(length), sink_(sink) {}
  // Returns false when the sink refused, or when all was passed on (then `complete()`).
  bool operator()(absl::string_view piece);
  bool complete() const { return passed_ == length_; }
  bool refused() const { return refused_; }
  uint64_t passed() const { return passed_; }

 private:
  const BodyWindow* const window_;
  const uint64_t length_;
  const BodySink sink_;
  uint64_t skipped_ = 0;
  uint64_t passed_ = 0;
  bool refused_ = false;
};

// The error that a status which is not 2xx means, with `message`; carries Retry-After.
absl::Status HttpStatusError(const http::Response& response, absl::string_view message);

// The same code and payloads with "<prefix>: " before the message.
absl::Status Prefixed(absl::string_view prefix, const absl::Status& status);

}  // namespace millrace::store
