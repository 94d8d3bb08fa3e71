#include "bench/store_limit/get_connection.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace millrace::bench {
namespace {

constexpr timeval kTimeout = {.tv_sec = 60};
constexpr size_t kHeadBytesMax = 64 * 1024;
// Room for a usual head and little of the body, which would be copied for nothing.
constexpr size_t kHeadStep = 1024;

struct Response {
  int status = 0;
  uint64_t content_length = 0;
  bool has_length = false;
  bool close = false;
};

absl::StatusOr<Response> ParseHead(absl::string_view head) {
  Response response;
  if (head.size() < 12 || !absl::StartsWith(head, "HTTP/1.") ||
      !absl::SimpleAtoi(head.substr(9, 3), &response.status)) {
    return absl::DataLossError("the answer is not HTTP/1.x");
  }
  for (size_t begin = head.find("\r\n"); begin != absl::string_view::npos;) {
    begin += 2;
    const size_t end = head.find("\r\n", begin);
    const absl::string_view line = head.substr(begin, end - begin);
    const size_t colon = line.find(':');
    if (colon != absl::string_view::npos) {
      const absl::string_view name = line.substr(0, colon);
      const absl::string_view value = absl::StripAsciiWhitespace(line.substr(colon + 1));
      if (absl::EqualsIgnoreCase(name, "content-length")) {
        response.has_length = absl::SimpleAtoi(value, &response.content_length);
      } else if (absl::EqualsIgnoreCase(name, "connection")) {
        response.close = absl::EqualsIgnoreCase(value, "close");
      }
    }
    begin = end;
  }
  return response;
}

struct AddressFreer {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};

absl::Status ReceiveError(const char* what) {
  if (errno == EAGAIN || errno == EWOULDBLOCK) {
    return absl::DeadlineExceededError("the server sent nothing for 60 s");
  }
  return base::ErrnoStatus(errno, what);
}

}  // namespace

absl::StatusOr<GetConnection> GetConnection::Open(const std::string& host,
                                                  const std::string& port) {
  const addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return absl::UnavailableError(absl::StrCat(host, ":", port, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, AddressFreer> list(found);
  base::UniqueFd fd(socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return base::ErrnoStatus(errno, "socket");
  const int on = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &kTimeout, sizeof(kTimeout));
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &kTimeout, sizeof(kTimeout));
  if (connect(fd.get(), list->ai_addr, list->ai_addrlen) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("connecting to ", host, ":", port));
  }
  return GetConnection(std::move(fd));
}

absl::Status GetConnection::Send(absl::string_view data) {
  while (!data.empty()) {
    const ssize_t put = send(fd_.get(), data.data(), data.size(), MSG_NOSIGNAL);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return absl::UnavailableError(absl::StrCat("send: ", strerror(errno)));
    data.remove_prefix(put);
  }
  return absl::OkStatus();
}

absl::Status GetConnection::Discard(uint64_t bytes) {
  while (bytes > 0) {
    const size_t step = std::min<uint64_t>(bytes, body_.size());
    const ssize_t got = recv(fd_.get(), body_.data(), step, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ReceiveError("recv");
    if (got == 0) return absl::DataLossError(absl::StrCat(bytes, " bytes of a body are missing"));
    bytes -= got;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> GetConnection::Get(absl::string_view head) {
  RETURN_IF_ERROR(Send(head));
  head_.clear();
  size_t head_end = absl::string_view::npos;
  while (head_end == absl::string_view::npos) {
    if (head_.size() > kHeadBytesMax) return absl::DataLossError("the answer's head is too long");
    const size_t had = head_.size();
    head_.resize(had + kHeadStep);
    const ssize_t got = recv(fd_.get(), head_.data() + had, kHeadStep, 0);
    head_.resize(had + std::max<ssize_t>(got, 0));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      if (errno == ECONNRESET && had == 0) return absl::UnavailableError("connection reset");
      return ReceiveError("recv");
    }
    if (got == 0) return absl::UnavailableError("the server closed the connection");
    head_end = head_.find("\r\n\r\n");
  }
  ASSIGN_OR_RETURN(const Response response,
                   ParseHead(absl::string_view(head_).substr(0, head_end)));
  closed_ = response.close;
  if (response.status != 200 && response.status != 206) {
    return absl::FailedPreconditionError(
        absl::StrCat("HTTP ", response.status, ": ", head_.substr(head_end + 4)));
  }
  if (!response.has_length) return absl::DataLossError("the answer has no Content-Length");
  const uint64_t have = head_.size() - (head_end + 4);
  if (have > response.content_length) return absl::DataLossError("more bytes than announced");
  RETURN_IF_ERROR(Discard(response.content_length - have));
  return response.content_length;
}

}  // namespace millrace::bench
