// HTTP client for bulk data: kept-alive connections, streamed bodies, AWS signatures.
//
// Over libcurl's easy interface (curl/curl.h is included in client.cc alone), but for GETs of
// objects over plain HTTP, which only connect through it (plain_connection.h). Each call borrows an
// easy handle, and with it a warm connection, from a pool; the one used last is borrowed first, so
// that few connections stay warm. HTTP/1.1 only: parallel bulk transfers want a connection each.
//
// Threads: a Client is safe for concurrent use; every call blocks its thread.
//
// Errors (the message says host and cause, never a header, a query or a credential):
//   Unavailable        refused, unknown host, TLS handshake or connection broken, short body,
//                      no byte for `stall_timeout`, no connection within `connect_timeout`
//   DeadlineExceeded   `timeout` passed
//   Cancelled          `cancelled` became true, or the sink returned false
//   InvalidArgument    malformed URL or answer, certificate not trusted, answer too large
// An answer with any HTTP status is not an error: look at Response::status.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace millrace::http {

enum class Method : uint8_t { kGet, kHead };

struct Header {
  std::string name;
  std::string value;
};

// What AWS Signature V4 needs. With it the URL must be canonical already: path and query
// percent-encoded once, query parameters sorted by name; libcurl signs them as they are.
struct AwsSigV4 {
  std::string region;
  std::string service = "s3";
  std::string access_key_id;
  std::string secret_access_key;
  std::string session_token;  // Empty: none.
};

struct Request {
  Method method = Method::kGet;
  std::string url;                 // Percent-encoded; sent as it is, ".." included.
  std::vector<Header> headers;     // Signed too, where `sign` is set.
  const AwsSigV4* sign = nullptr;  // Must outlive the call.
  absl::Duration timeout = absl::Seconds(60);
  absl::Duration stall_timeout = absl::Seconds(20);
  absl::Duration connect_timeout = absl::Seconds(10);
  const std::atomic<bool>* cancelled = nullptr;  // Polled at least every second; may be null.
  // The body's size as far as the caller knows: decides the size of the receive buffer.
  uint64_t body_bytes_hint = 0;
  // The most of a body that is kept in Response::body. The rest of an error's body is dropped;
  // for a 2xx answer more is InvalidArgument.
  size_t body_bytes_max = 1 << 20;
};

struct Response {
  int status = 0;
  std::vector<Header> headers;  // Names in lower case, values trimmed.
  std::string body;             // Unless it was streamed.

  // The first header of that (lower-case) name.
  std::optional<absl::string_view> Find(absl::string_view name) const;
  // Content-Length as the server sent it.
  std::optional<uint64_t> ContentLength() const;
};

// Called once with status and headers of a 2xx answer, before the body's first byte: an error ends
// the transfer and becomes its result.
using HeadCheck = absl::FunctionRef<absl::Status(const Response& head)>;
// Takes the body in order; returns false to stop.
using BodySink = absl::FunctionRef<bool(absl::string_view piece)>;

struct ClientOptions {
  // Transfers at one time; more wait for one to end.
  size_t connections_max = 64;
  // PEM bundle to trust instead of the system's; empty: the system's.
  std::string ca_file;
};

class Client {
 public:
  explicit Client(ClientOptions options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // The whole body in Response::body.
  absl::StatusOr<Response> Fetch(const Request& request);

  // A 2xx body goes to `sink` if `check` agrees, any other to Response::body.
  absl::StatusOr<Response> Stream(const Request& request, HeadCheck check, BodySink sink);

 private:
  class Pool;
  const std::unique_ptr<Pool> pool_;
};

}  // namespace millrace::http
