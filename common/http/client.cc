#include "common/http/client.h"

#include <curl/curl.h>
#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "common/http/plain_connection.h"
#include "common/http/sigv4.h"

namespace millrace::http {
namespace {

// Hostile servers: an answer's head beyond this is refused.
constexpr size_t kHeadBytesMax = 64 * 1024;
constexpr char kHeadTooLarge[] = "the answer's headers are larger than 64 KiB";

// The receive buffer, which libcurl holds only during a transfer. Measured over loopback from a
// real S3 server: bulk bodies cost 0.29 CPU s/GiB at 16 KiB, 0.28 at 64, 0.22 at 128, 0.25 at 256
// and 512; for objects of 100 KB the size does not show.
constexpr uint64_t kBulkBytes = 256 * 1024;
constexpr long kBulkBufferBytes = 128 * 1024;
constexpr long kSmallBufferBytes = 64 * 1024;

absl::Duration Now() { return base::RealClock()->Monotonic(); }

// "host:port" of a URL, for messages.
std::string HostOf(absl::string_view url) {
  const size_t scheme = url.find("://");
  if (scheme != absl::string_view::npos) url.remove_prefix(scheme + 3);
  return std::string(url.substr(0, url.find_first_of("/?#")));
}

// One easy handle and what must live as long as it.
struct Handle {
  Handle() : curl(curl_easy_init()) {}
  ~Handle() {
    if (curl != nullptr) curl_easy_cleanup(curl);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  CURL* const curl;
  std::array<char, CURL_ERROR_SIZE> error{};
  PlainConnection plain;
  Signer signer;
};

// What calls share beside the handles.
class Handles {
 public:
  virtual std::unique_ptr<Handle> NewHandle() = 0;
  // GETs may go past libcurl: no proxy is in the way, and the servers answer as these need it.
  std::atomic<bool> plain{false};

 protected:
  ~Handles() = default;
};

// An http:// URL whose parts go into a request as they are.
struct PlainUrl {
  absl::string_view host;
  absl::string_view path;
  absl::string_view query;
};

std::optional<PlainUrl> ParsePlainUrl(absl::string_view url) {
  if (!absl::ConsumePrefix(&url, "http://")) return std::nullopt;
  const bool odd = std::any_of(url.begin(), url.end(), [](char c) {
    return static_cast<unsigned char>(c) <= 0x20 || c == 0x7f || c == '#' || c == '\\';
  });
  const size_t slash = url.find('/');
  if (odd || slash == absl::string_view::npos || slash == 0) return std::nullopt;
  PlainUrl plain = {url.substr(0, slash), url.substr(slash), ""};
  if (plain.host.find_first_of("@?") != absl::string_view::npos) return std::nullopt;
  if (const size_t mark = plain.path.find('?'); mark != absl::string_view::npos) {
    plain.query = plain.path.substr(mark + 1);
    plain.path = plain.path.substr(0, mark);
  }
  return plain;
}

bool ProxyInEnvironment() {
  for (const char* const name : {"http_proxy", "all_proxy", "ALL_PROXY"}) {
    const char* const value = std::getenv(name);
    if (value != nullptr && *value != '\0') return true;
  }
  return false;
}

// One call in flight: what libcurl's callbacks work on.
class Transfer {
 public:
  Transfer(const Request& request, Response* response, HeadCheck check, BodySink sink)
      : request_(request), response_(response), check_(check), sink_(sink), last_progress_(Now()) {}

  absl::Status Perform(Handle* handle, absl::Duration timeout);

  // The same past libcurl, for GETs of objects from plain HTTP servers: libcurl takes 60 to 70 us
  // of processor time for each, a third of what a cold file of 100 KB costs. Nullopt, and nothing
  // has happened yet, for whatever is not the common case: libcurl's to do.
  std::optional<absl::Status> PerformPlain(Handle* handle, absl::Duration timeout,
                                           Handles* handles);

 private:
  // How a request past libcurl ended: with `stopped_` as its result, without a byte of an answer,
  // or with an answer that is libcurl's to read.
  enum class Ended : uint8_t { kDone, kNoAnswer, kNotPlain };
  std::string PlainHead(const PlainUrl& url, Signer* signer) const;
  absl::Status Connect(PlainConnection* connection, const std::string& origin,
                       absl::Duration timeout, Handles* handles);
  Ended Exchange(PlainConnection* connection, absl::string_view head);
  // Receives the answer's head; `body` is what came behind it.
  Ended ReceiveHead(PlainConnection* connection, absl::string_view* body);
  bool ReceiveBody(PlainConnection* connection, absl::string_view begun, uint64_t length);
  // False, and `stopped_` says why, when it is over.
  bool MayGoOn(uint64_t received);
  void ForgetAnswer();
  static size_t OnHeader(char* data, size_t size, size_t count, void* self);
  static size_t OnBody(char* data, size_t size, size_t count, void* self);
  static int OnProgress(void* self, curl_off_t, curl_off_t received, curl_off_t, curl_off_t);

  bool AddHeaderLine(absl::string_view line);
  bool AddBody(absl::string_view piece);
  bool CheckProgress(uint64_t received);
  // Calls `check_` for a 2xx answer, once.
  bool CheckHead();
  bool Stop(absl::Status status) {
    stopped_ = std::move(status);
    return false;
  }
  bool success() const { return response_->status >= 200 && response_->status < 300; }
  absl::Status Result(Handle* handle, CURLcode code) const;

  const Request& request_;
  Response* const response_;
  const HeadCheck check_;
  const BodySink sink_;

  absl::Status stopped_;  // Why a callback ended the transfer.
  size_t head_bytes_ = 0;
  bool head_checked_ = false;
  bool body_begun_ = false;
  bool close_after_ = false;  // The server closes the connection behind its answer.
  uint64_t progress_bytes_ = 0;
  absl::Duration last_progress_;
  absl::Duration give_up_ = absl::InfiniteDuration();  // Past libcurl only.
};

size_t Transfer::OnHeader(char* data, size_t size, size_t count, void* self) {
  const size_t bytes = size * count;
  auto* const transfer = static_cast<Transfer*>(self);
  return transfer->AddHeaderLine(absl::string_view(data, bytes)) ? bytes : 0;
}

size_t Transfer::OnBody(char* data, size_t size, size_t count, void* self) {
  const size_t bytes = size * count;
  auto* const transfer = static_cast<Transfer*>(self);
  // Zero is taken for a refusal unless the piece itself is empty; -1 never equals a piece's size.
  return transfer->AddBody(absl::string_view(data, bytes)) ? bytes : static_cast<size_t>(-1);
}

int Transfer::OnProgress(void* self, curl_off_t, curl_off_t received, curl_off_t, curl_off_t) {
  auto* const transfer = static_cast<Transfer*>(self);
  return transfer->CheckProgress(static_cast<uint64_t>(received)) ? 0 : 1;
}

bool Transfer::AddHeaderLine(absl::string_view line) {
  if (body_begun_) return true;  // Trailers of a chunked body: nobody asked for them.
  head_bytes_ += line.size();
  if (head_bytes_ > kHeadBytesMax) {
    return Stop(absl::InvalidArgumentError(kHeadTooLarge));
  }
  line = absl::StripTrailingAsciiWhitespace(line);
  if (absl::StartsWith(line, "HTTP/")) {
    // A status line begins an answer; 100 Continue and its like come before the real one.
    response_->headers.clear();
    response_->status = 0;
    const size_t space = line.find(' ');
    if (space != absl::string_view::npos &&
        !absl::SimpleAtoi(line.substr(space + 1, 3), &response_->status)) {
      response_->status = 0;
    }
    return true;
  }
  const size_t colon = line.find(':');
  if (colon == absl::string_view::npos) return true;
  response_->headers.push_back(
      {absl::AsciiStrToLower(line.substr(0, colon)),
       std::string(absl::StripLeadingAsciiWhitespace(line.substr(colon + 1)))});
  return true;
}

bool Transfer::CheckHead() {
  if (head_checked_ || !success()) return true;
  head_checked_ = true;
  absl::Status status = check_(*response_);
  return status.ok() || Stop(std::move(status));
}

bool Transfer::AddBody(absl::string_view piece) {
  body_begun_ = true;
  if (!CheckHead()) return false;
  if (success()) {
    return sink_(piece) || Stop(absl::CancelledError("stopped by the reader"));
  }
  const size_t room = request_.body_bytes_max - response_->body.size();
  absl::StrAppend(&response_->body, piece.substr(0, room));
  return true;
}

bool Transfer::CheckProgress(uint64_t received) {
  if (request_.cancelled != nullptr && request_.cancelled->load(std::memory_order_relaxed)) {
    return Stop(absl::CancelledError("cancelled"));
  }
  // Headers count as progress too: a slow store that does answer is not stalled.
  const uint64_t bytes = received + head_bytes_;
  const absl::Duration now = Now();
  if (bytes != progress_bytes_) {
    progress_bytes_ = bytes;
    last_progress_ = now;
  } else if (now - last_progress_ > request_.stall_timeout) {
    return Stop(
        absl::UnavailableError(absl::StrCat("stalled: no byte from ", HostOf(request_.url), " for ",
                                            absl::FormatDuration(request_.stall_timeout))));
  }
  return true;
}

// libcurl's reason in the project's words. The code decides; libcurl's own text, which may quote
// what a server sent, stays out except for certificates.
absl::Status Transfer::Result(Handle* handle, CURLcode code) const {
  if (!stopped_.ok()) return stopped_;
  const std::string host = HostOf(request_.url);
  long os_error = 0;
  curl_easy_getinfo(handle->curl, CURLINFO_OS_ERRNO, &os_error);
  switch (code) {
    case CURLE_OK:
      return absl::OkStatus();
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
      return absl::InvalidArgumentError("not a valid http or https URL");
    case CURLE_COULDNT_RESOLVE_HOST:
      return absl::UnavailableError(absl::StrCat("unknown host ", host));
    case CURLE_COULDNT_RESOLVE_PROXY:
      return absl::UnavailableError("unknown host in the environment's http proxy setting");
    case CURLE_COULDNT_CONNECT:
      return absl::UnavailableError(
          absl::StrCat("cannot connect to ", host, ": ",
                       os_error == 0 ? "no answer" : std::strerror(static_cast<int>(os_error))));
    case CURLE_OPERATION_TIMEDOUT: {
      double connected_s = 0;
      curl_easy_getinfo(handle->curl, CURLINFO_PRETRANSFER_TIME, &connected_s);
      if (connected_s == 0 && request_.connect_timeout < request_.timeout) {
        return absl::UnavailableError(absl::StrCat("cannot connect to ", host, ": no answer for ",
                                                   absl::FormatDuration(request_.connect_timeout)));
      }
      return absl::DeadlineExceededError(absl::StrCat("not finished by ", host, " within ",
                                                      absl::FormatDuration(request_.timeout)));
    }
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
      return absl::InvalidArgumentError(
          absl::StrCat("the certificate of ", host, " is not trusted (", handle->error.data(),
                       "); name the CA that signed it with the option ca-file or AWS_CA_BUNDLE"));
    case CURLE_SSL_CONNECT_ERROR:
      return absl::UnavailableError(
          absl::StrCat("TLS handshake with ", host, " failed (", handle->error.data(),
                       "); if the server speaks plain HTTP, write http://", host));
    case CURLE_PARTIAL_FILE:
      return absl::UnavailableError(absl::StrCat("short body: ", host, " closed the connection"));
    case CURLE_GOT_NOTHING:
      return absl::UnavailableError(absl::StrCat(host, " closed the connection without an answer"));
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
      return absl::UnavailableError(absl::StrCat("connection to ", host, " was reset"));
    case CURLE_OUT_OF_MEMORY:
      return absl::UnavailableError("out of memory");
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("malformed answer from ", host, ": ", curl_easy_strerror(code)));
  }
}

long CurlMillis(absl::Duration duration) {
  // Zero would mean "no limit" to libcurl.
  return static_cast<long>(std::clamp<int64_t>(absl::ToInt64Milliseconds(duration), 1, 1u << 30));
}

absl::Status Transfer::Perform(Handle* handle, absl::Duration timeout) {
  CURL* const curl = handle->curl;
  // Everything below is set on every call: a handle keeps what its last user set.
  curl_easy_setopt(curl, CURLOPT_URL, request_.url.c_str());
  curl_easy_setopt(curl, CURLOPT_HTTPGET, 1L);
  curl_easy_setopt(curl, CURLOPT_NOBODY, request_.method == Method::kHead ? 1L : 0L);
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, CurlMillis(timeout));
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, CurlMillis(request_.connect_timeout));
  curl_easy_setopt(curl, CURLOPT_BUFFERSIZE,
                   request_.body_bytes_hint >= kBulkBytes ? kBulkBufferBytes : kSmallBufferBytes);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, this);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &Transfer::OnHeader);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, this);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &Transfer::OnBody);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, this);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, &Transfer::OnProgress);

  curl_slist* headers = nullptr;
  const auto add = [&headers](const std::string& line) {
    curl_slist* const grown = curl_slist_append(headers, line.c_str());
    if (grown != nullptr) headers = grown;
  };
  for (const Header& header : request_.headers) add(absl::StrCat(header.name, ": ", header.value));
  if (request_.sign != nullptr) {
    const AwsSigV4& sign = *request_.sign;
    // S3 insists on it, and libcurl 7.88 adds it only to requests with a body.
    add(absl::StrCat("x-amz-content-sha256: ", kEmptyBodySha256));
    if (!sign.session_token.empty())
      add(absl::StrCat("x-amz-security-token: ", sign.session_token));
    curl_easy_setopt(curl, CURLOPT_AWS_SIGV4,
                     absl::StrCat("aws:amz:", sign.region, ":", sign.service).c_str());
    curl_easy_setopt(curl, CURLOPT_USERNAME, sign.access_key_id.c_str());
    curl_easy_setopt(curl, CURLOPT_PASSWORD, sign.secret_access_key.c_str());
  } else {
    curl_easy_setopt(curl, CURLOPT_AWS_SIGV4, nullptr);
    curl_easy_setopt(curl, CURLOPT_USERNAME, nullptr);
    curl_easy_setopt(curl, CURLOPT_PASSWORD, nullptr);
    curl_easy_setopt(curl, CURLOPT_HTTPAUTH, CURLAUTH_BASIC);
  }
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
  handle->error[0] = '\0';

  const CURLcode code = curl_easy_perform(curl);

  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, nullptr);
  curl_slist_free_all(headers);
  absl::Status status = Result(handle, code);
  if (!status.ok()) return status;
  if (response_->status == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(HostOf(request_.url), " did not answer in HTTP"));
  }
  CheckHead();  // A 2xx answer without a body has not been looked at yet.
  return stopped_;
}

// ---- Past libcurl ----

std::optional<absl::Status> Transfer::PerformPlain(Handle* handle, absl::Duration timeout,
                                                   Handles* handles) {
  const bool ranged = std::any_of(request_.headers.begin(), request_.headers.end(),
                                  [](const Header& header) { return header.name == "Range"; });
  if (request_.method != Method::kGet || !ranged ||
      !handles->plain.load(std::memory_order_relaxed)) {
    return std::nullopt;
  }
  const std::optional<PlainUrl> url = ParsePlainUrl(request_.url);
  if (!url.has_value()) return std::nullopt;
  const std::string head = PlainHead(*url, &handle->signer);
  const std::string origin = absl::StrCat("http://", url->host);
  give_up_ = Now() + timeout;
  PlainConnection* const connection = &handle->plain;
  while (true) {
    const bool reused = connection->origin() == origin;
    if (!reused) {
      absl::Status connected = Connect(connection, origin, give_up_ - Now(), handles);
      if (!connected.ok()) return connected;
    }
    const Ended ended = Exchange(connection, head);
    if (ended == Ended::kDone) break;
    connection->Close();
    if (ended == Ended::kNotPlain) {
      handles->plain.store(false, std::memory_order_relaxed);
      ForgetAnswer();
      return std::nullopt;
    }
    // The server may close a connection that is idle just when it is used again.
    if (!reused) return stopped_;
    stopped_ = absl::OkStatus();
  }
  if (!stopped_.ok()) {
    connection->Close();
    return stopped_;
  }
  CheckHead();  // A 2xx answer without a body has not been looked at yet.
  return stopped_;
}

std::string Transfer::PlainHead(const PlainUrl& url, Signer* signer) const {
  std::string head =
      absl::StrCat("GET ", url.path, url.query.empty() ? "" : "?", url.query,
                   " HTTP/1.1\r\nHost: ", url.host, "\r\nUser-Agent: millrace\r\nAccept: */*\r\n");
  const auto add = [&head](const std::vector<Header>& headers) {
    for (const Header& header : headers) {
      absl::StrAppend(&head, header.name, ": ", header.value, "\r\n");
    }
  };
  add(request_.headers);
  if (request_.sign != nullptr) {
    add(signer->Sign(*request_.sign, url.host, url.path, url.query, request_.headers,
                     base::RealClock()->Now()));
  }
  head += "\r\n";
  return head;
}

// libcurl resolves and connects, with its time-outs and its reasons when it cannot.
absl::Status Transfer::Connect(PlainConnection* connection, const std::string& origin,
                               absl::Duration timeout, Handles* handles) {
  const std::unique_ptr<Handle> connector = handles->NewHandle();
  if (connector == nullptr) return absl::UnavailableError("out of memory");
  CURL* const curl = connector->curl;
  curl_easy_setopt(curl, CURLOPT_URL, origin.c_str());
  curl_easy_setopt(curl, CURLOPT_CONNECT_ONLY, 1L);
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, CurlMillis(timeout));
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, CurlMillis(request_.connect_timeout));
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, this);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, &Transfer::OnProgress);
  absl::Status status = Result(connector.get(), curl_easy_perform(curl));
  if (!status.ok()) return status;
  curl_socket_t socket = CURL_SOCKET_BAD;
  curl_easy_getinfo(curl, CURLINFO_ACTIVESOCKET, &socket);
  const int own = socket == CURL_SOCKET_BAD ? -1 : fcntl(socket, F_DUPFD_CLOEXEC, 0);
  if (own < 0 || !connection->Adopt(own, origin)) {
    return absl::UnavailableError(
        absl::StrCat("cannot connect to ", HostOf(request_.url), ": ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

Transfer::Ended Transfer::Exchange(PlainConnection* connection, absl::string_view head) {
  while (!head.empty()) {
    const PlainConnection::Outcome sent = connection->Send(&head);
    if (sent == PlainConnection::Outcome::kReset) {
      Stop(absl::UnavailableError(
          absl::StrCat("connection to ", HostOf(request_.url), " was reset")));
      return Ended::kNoAnswer;
    }
    if (!head.empty() && !MayGoOn(0)) return Ended::kDone;
  }
  absl::string_view body;
  const Ended ended = ReceiveHead(connection, &body);
  if (ended != Ended::kDone || !stopped_.ok()) return ended;
  const std::optional<uint64_t> length = response_->ContentLength();
  const auto lengths =
      std::count_if(response_->headers.begin(), response_->headers.end(),
                    [](const Header& header) { return header.name == "content-length"; });
  // Chunks, bodies that end with the connection, answers before the answer: libcurl knows them all.
  if (!length.has_value() || lengths != 1 || response_->status < 200 || response_->status == 204 ||
      response_->status == 304 || response_->Find("transfer-encoding").has_value()) {
    return Ended::kNotPlain;
  }
  const bool more = body.size() > *length;  // Nobody asked for it: what follows cannot be told.
  const bool whole = ReceiveBody(connection, body.substr(0, *length), *length);
  if (!whole || more || close_after_) connection->Close();
  return Ended::kDone;
}

Transfer::Ended Transfer::ReceiveHead(PlainConnection* connection, absl::string_view* body) {
  std::string head;
  size_t end = absl::string_view::npos;
  while (end == absl::string_view::npos) {
    absl::string_view piece;
    const PlainConnection::Outcome got = connection->Receive(PlainConnection::kBufferBytes, &piece);
    if (got == PlainConnection::Outcome::kNothingYet) {
      if (!MayGoOn(0)) return Ended::kDone;
      continue;
    }
    if (got != PlainConnection::Outcome::kDone) {
      if (!head.empty()) return Ended::kNotPlain;
      const std::string host = HostOf(request_.url);
      Stop(absl::UnavailableError(
          got == PlainConnection::Outcome::kReset
              ? absl::StrCat("connection to ", host, " was reset")
              : absl::StrCat(host, " closed the connection without an answer")));
      return Ended::kNoAnswer;
    }
    const size_t had = head.size();
    absl::StrAppend(&head, piece.substr(0, kHeadBytesMax + 1));
    end = head.find("\r\n\r\n", had < 3 ? 0 : had - 3);
    if (end != absl::string_view::npos) *body = piece.substr(end + 4 - had);
    if (end == absl::string_view::npos && head.size() > kHeadBytesMax) {
      Stop(absl::InvalidArgumentError(kHeadTooLarge));
      return Ended::kDone;
    }
    if (!absl::StartsWith(head, absl::string_view("HTTP/1.").substr(0, head.size()))) {
      return Ended::kNotPlain;
    }
  }
  const absl::string_view lines = absl::string_view(head).substr(0, end + 2);
  for (size_t at = 0; at < lines.size();) {
    const size_t next = lines.find("\r\n", at) + 2;
    if (!AddHeaderLine(lines.substr(at, next - at))) return Ended::kDone;
    at = next;
  }
  const absl::string_view connection_header = response_->Find("connection").value_or("");
  close_after_ = !absl::StartsWith(lines, "HTTP/1.1") ||
                 absl::StrContains(absl::AsciiStrToLower(connection_header), "close");
  return Ended::kDone;
}

bool Transfer::ReceiveBody(PlainConnection* connection, absl::string_view begun, uint64_t length) {
  uint64_t received = begun.size();
  if (!begun.empty() && !AddBody(begun)) return false;
  while (received < length) {
    absl::string_view piece;
    switch (connection->Receive(length - received, &piece)) {
      case PlainConnection::Outcome::kDone:
        received += piece.size();
        if (!AddBody(piece)) return false;
        break;
      case PlainConnection::Outcome::kNothingYet:
        break;
      case PlainConnection::Outcome::kClosed:
        return Stop(absl::UnavailableError(
            absl::StrCat("short body: ", HostOf(request_.url), " closed the connection")));
      case PlainConnection::Outcome::kReset:
        return Stop(absl::UnavailableError(
            absl::StrCat("connection to ", HostOf(request_.url), " was reset")));
    }
    if (received < length && !MayGoOn(received)) return false;
  }
  return true;
}

bool Transfer::MayGoOn(uint64_t received) {
  if (!CheckProgress(received)) return false;
  if (Now() < give_up_) return true;
  return Stop(
      absl::DeadlineExceededError(absl::StrCat("not finished by ", HostOf(request_.url), " within ",
                                               absl::FormatDuration(request_.timeout))));
}

void Transfer::ForgetAnswer() {
  *response_ = Response();
  stopped_ = absl::OkStatus();
  head_bytes_ = 0;
  progress_bytes_ = 0;
  last_progress_ = Now();
}

}  // namespace

std::optional<absl::string_view> Response::Find(absl::string_view name) const {
  for (const Header& header : headers) {
    if (header.name == name) return header.value;
  }
  return std::nullopt;
}

std::optional<uint64_t> Response::ContentLength() const {
  const std::optional<absl::string_view> text = Find("content-length");
  uint64_t bytes = 0;
  if (!text.has_value() || text->empty() ||
      text->find_first_not_of("0123456789") != absl::string_view::npos ||
      !absl::SimpleAtoi(*text, &bytes)) {
    return std::nullopt;
  }
  return bytes;
}

// Idle handles and what all of them share.
class Client::Pool final : public Handles {
 public:
  explicit Pool(ClientOptions options);
  ~Pool();

  // Waits for a free handle; the deadline and the cancel flag of `request` end the wait.
  absl::StatusOr<std::unique_ptr<Handle>> Borrow(const Request& request);
  void Return(std::unique_ptr<Handle> handle);
  std::unique_ptr<Handle> NewHandle() override;

 private:
  static void LockShared(CURL*, curl_lock_data data, curl_lock_access, void* self);
  static void UnlockShared(CURL*, curl_lock_data data, void* self);

  const ClientOptions options_;
  CURLSH* share_ = nullptr;  // DNS answers and TLS sessions.
  std::array<std::mutex, CURL_LOCK_DATA_LAST> share_locks_;

  base::Mutex mutex_;
  base::CondVar returned_;
  std::vector<std::unique_ptr<Handle>> idle_ ABSL_GUARDED_BY(mutex_);
  size_t borrowed_ ABSL_GUARDED_BY(mutex_) = 0;
};

Client::Pool::Pool(ClientOptions options) : options_(std::move(options)) {
  plain = !ProxyInEnvironment();
  static std::once_flag initialised;
  std::call_once(initialised, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  share_ = curl_share_init();
  curl_share_setopt(share_, CURLSHOPT_USERDATA, this);
  curl_share_setopt(share_, CURLSHOPT_LOCKFUNC, &Pool::LockShared);
  curl_share_setopt(share_, CURLSHOPT_UNLOCKFUNC, &Pool::UnlockShared);
  curl_share_setopt(share_, CURLSHOPT_SHARE, CURL_LOCK_DATA_DNS);
  curl_share_setopt(share_, CURLSHOPT_SHARE, CURL_LOCK_DATA_SSL_SESSION);
}

Client::Pool::~Pool() {
  {
    base::MutexLock lock(&mutex_);
    idle_.clear();
  }
  curl_share_cleanup(share_);
}

void Client::Pool::LockShared(CURL*, curl_lock_data data, curl_lock_access, void* self) {
  static_cast<Pool*>(self)->share_locks_[data].lock();
}

void Client::Pool::UnlockShared(CURL*, curl_lock_data data, void* self) {
  static_cast<Pool*>(self)->share_locks_[data].unlock();
}

std::unique_ptr<Handle> Client::Pool::NewHandle() {
  auto handle = std::make_unique<Handle>();
  CURL* const curl = handle->curl;
  if (curl == nullptr) return nullptr;
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, handle->error.data());
  curl_easy_setopt(curl, CURLOPT_SHARE, share_);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
  curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
  curl_easy_setopt(curl, CURLOPT_MAXCONNECTS, 4L);
  curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "millrace");
  if (!options_.ca_file.empty()) curl_easy_setopt(curl, CURLOPT_CAINFO, options_.ca_file.c_str());
  return handle;
}

absl::StatusOr<std::unique_ptr<Handle>> Client::Pool::Borrow(const Request& request) {
  const absl::Duration give_up = Now() + request.timeout;
  {
    base::MutexLock lock(&mutex_);
    while (borrowed_ >= options_.connections_max) {
      if (request.cancelled != nullptr && request.cancelled->load(std::memory_order_relaxed)) {
        return absl::CancelledError("cancelled");
      }
      const absl::Duration left = give_up - Now();
      if (left <= absl::ZeroDuration()) {
        return absl::DeadlineExceededError(
            absl::StrCat("all ", options_.connections_max, " connections to ", HostOf(request.url),
                         " were busy for ", absl::FormatDuration(request.timeout)));
      }
      returned_.WaitFor(&mutex_, std::min(left, absl::Milliseconds(500)));
    }
    ++borrowed_;
    if (!idle_.empty()) {
      std::unique_ptr<Handle> handle = std::move(idle_.back());
      idle_.pop_back();
      return handle;
    }
  }
  std::unique_ptr<Handle> handle = NewHandle();
  if (handle != nullptr) return handle;
  base::MutexLock lock(&mutex_);
  --borrowed_;
  return absl::UnavailableError("out of memory");
}

void Client::Pool::Return(std::unique_ptr<Handle> handle) {
  base::MutexLock lock(&mutex_);
  --borrowed_;
  idle_.push_back(std::move(handle));
  returned_.NotifyOne();
}

Client::Client(ClientOptions options) : pool_(std::make_unique<Pool>(std::move(options))) {}

Client::~Client() = default;

absl::StatusOr<Response> Client::Fetch(const Request& request) {
  std::string body;
  bool too_large = false;
  const auto check = [](const Response&) { return absl::OkStatus(); };
  const auto keep = [&](absl::string_view piece) {
    too_large = piece.size() > request.body_bytes_max - body.size();
    if (!too_large) absl::StrAppend(&body, piece);
    return !too_large;
  };
  absl::StatusOr<Response> response = Stream(request, check, keep);
  if (too_large) {
    return absl::InvalidArgumentError(
        absl::StrCat("the answer is larger than ", request.body_bytes_max, " bytes"));
  }
  if (response.ok() && response->body.empty()) response->body = std::move(body);
  return response;
}

absl::StatusOr<Response> Client::Stream(const Request& request, HeadCheck check, BodySink sink) {
  const absl::Duration began = Now();
  ASSIGN_OR_RETURN(std::unique_ptr<Handle> handle, pool_->Borrow(request));
  Response response;
  Transfer transfer(request, &response, check, sink);
  absl::Duration left = request.timeout - (Now() - began);
  std::optional<absl::Status> plain = transfer.PerformPlain(handle.get(), left, pool_.get());
  if (!plain.has_value()) left = request.timeout - (Now() - began);
  const absl::Status status =
      plain.has_value() ? *std::move(plain) : transfer.Perform(handle.get(), left);
  pool_->Return(std::move(handle));
  if (!status.ok()) return status;
  return response;
}

}  // namespace millrace::http
