#include "test/support/fault_proxy.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "test/support/socket.h"

namespace millrace::test {
namespace {

constexpr uint64_t kUntilClose = std::numeric_limits<uint64_t>::max();

// Finds the end of a chunked body in its raw bytes.
class ChunkScanner {
 public:
  // How many of the bytes belong to the body; `done()` when it ended within them.
  size_t Scan(absl::string_view bytes) {
    size_t at = 0;
    while (at < bytes.size() && !done_) {
      if (chunk_left_ > 0) {
        const uint64_t step = std::min<uint64_t>(chunk_left_, bytes.size() - at);
        chunk_left_ -= step;
        at += step;
        continue;
      }
      line_.push_back(bytes[at++]);
      if (line_.back() == '\n') EndLine();
    }
    return at;
  }
  bool done() const { return done_; }

 private:
  void EndLine() {
    const std::string line = std::exchange(line_, "");
    if (last_) {
      done_ = line == "\r\n";
    } else if (line != "\r\n") {  // The empty line is the end of the chunk before.
      chunk_left_ = std::strtoull(line.c_str(), nullptr, 16);
      last_ = chunk_left_ == 0;
    }
  }

  uint64_t chunk_left_ = 0;
  bool last_ = false;
  bool done_ = false;
  std::string line_;
};

uint64_t BodyBytes(const HttpHead& request, const HttpHead& answer) {
  int status = 0;
  if (!absl::SimpleAtoi(answer.target(), &status)) return kUntilClose;
  if (request.method() == "HEAD" || status == 204 || status == 304) return 0;
  uint64_t bytes = kUntilClose;
  if (!absl::SimpleAtoi(answer.header("content-length"), &bytes)) return kUntilClose;
  return bytes;
}

std::string AlteredHead(const HttpHead& answer, const Fault* fault) {
  if (fault == nullptr) return answer.text;
  if (fault->kind == FaultKind::kChangedETag) {
    return WithHeader(answer, "ETag", "\"another-version\"");
  }
  uint64_t length = 0;
  if (fault->kind == FaultKind::kWrongLength &&
      absl::SimpleAtoi(answer.header("content-length"), &length)) {
    return WithHeader(answer, "Content-Length", absl::StrCat(length + fault->after_bytes));
  }
  return answer.text;
}

bool CutsBody(const Fault* fault) {
  return fault != nullptr &&
         (fault->kind == FaultKind::kReset || fault->kind == FaultKind::kTruncate ||
          fault->kind == FaultKind::kStall);
}

std::string StatusAnswer(const Fault& fault, bool head_only) {
  const bool refused = fault.status == 401 || fault.status == 403;
  const std::string body = absl::StrCat("<Error><Code>", refused ? "AccessDenied" : "SlowDown",
                                        "</Code><Message>injected</Message></Error>");
  std::string text =
      absl::StrCat("HTTP/1.1 ", fault.status, " Injected\r\nContent-Length: ", body.size(), "\r\n");
  if (fault.retry_after_s >= 0)
    absl::StrAppend(&text, "Retry-After: ", fault.retry_after_s, "\r\n");
  return absl::StrCat(text, "\r\n", head_only ? "" : body);
}

}  // namespace

absl::StatusOr<Fault> ParseFault(absl::string_view text) {
  const std::vector<std::pair<absl::string_view, FaultKind>> kinds = {
      {"status", FaultKind::kStatus},
      {"reset", FaultKind::kReset},
      {"truncate", FaultKind::kTruncate},
      {"stall", FaultKind::kStall},
      {"wrong-length", FaultKind::kWrongLength},
      {"changed-etag", FaultKind::kChangedETag}};
  Fault fault;
  for (const absl::string_view pair : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(pair, absl::MaxSplits('=', 1));
    bool valid = true;
    if (parts.first == "kind") {
      const auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const auto& known) {
        return known.first == parts.second;
      });
      valid = kind != kinds.end();
      if (valid) fault.kind = kind->second;
    } else if (parts.first == "path") {
      fault.path = std::string(parts.second);
    } else if (parts.first == "method") {
      fault.method = std::string(parts.second);
    } else if (parts.first == "times") {
      valid = absl::SimpleAtoi(parts.second, &fault.times);
    } else if (parts.first == "status") {
      valid = absl::SimpleAtoi(parts.second, &fault.status);
    } else if (parts.first == "retry-after") {
      valid = absl::SimpleAtoi(parts.second, &fault.retry_after_s);
    } else if (parts.first == "after") {
      valid = absl::SimpleAtoi(parts.second, &fault.after_bytes);
    } else {
      valid = false;
    }
    if (!valid) return absl::InvalidArgumentError(absl::StrCat("not a fault: \"", pair, "\""));
  }
  return fault;
}

FaultProxy::FaultProxy(uint16_t port, std::string upstream_host, uint16_t upstream_port)
    : upstream_host_(std::move(upstream_host)),
      upstream_port_(upstream_port),
      server_(port, [this](base::UniqueFd client) { Serve(std::move(client)); }) {}

void FaultProxy::Add(const Fault& fault) {
  base::MutexLock lock(&mutex_);
  faults_.push_back(fault);
}

void FaultProxy::Clear() {
  base::MutexLock lock(&mutex_);
  faults_.clear();
}

std::string FaultProxy::url() const { return absl::StrCat("http://127.0.0.1:", port()); }

int FaultProxy::faults_done() const {
  base::MutexLock lock(&mutex_);
  return faults_done_;
}

int FaultProxy::requests_seen() const {
  base::MutexLock lock(&mutex_);
  return requests_seen_;
}

bool FaultProxy::TakeFault(const HttpHead& request, Fault* fault) {
  base::MutexLock lock(&mutex_);
  ++requests_seen_;
  for (auto at = faults_.begin(); at != faults_.end(); ++at) {
    if (!absl::StrContains(request.target(), at->path) ||
        (!at->method.empty() && at->method != request.method())) {
      continue;
    }
    *fault = *at;
    ++faults_done_;
    if (at->times > 0 && --at->times == 0) faults_.erase(at);
    return true;
  }
  return false;
}

void FaultProxy::Serve(base::UniqueFd client) {
  std::string buffer;
  while (std::optional<HttpHead> request = ReadHead(client.get(), &buffer)) {
    if (!ServeRequest(&client, *request)) return;
  }
}

bool FaultProxy::ServeRequest(base::UniqueFd* client, const HttpHead& request) {
  Fault fault;
  if (!TakeFault(request, &fault)) return Relay(client, request, nullptr);
  if (fault.kind == FaultKind::kStatus) {
    return SendAll(client->get(), StatusAnswer(fault, request.method() == "HEAD"));
  }
  return Relay(client, request, &fault);
}

bool FaultProxy::Relay(base::UniqueFd* client, const HttpHead& request, const Fault* fault) {
  const base::UniqueFd upstream = Connect(upstream_host_, upstream_port_);
  if (!upstream.valid() || !SendAll(upstream.get(), request.text)) return false;
  std::string buffer;
  const std::optional<HttpHead> answer = ReadHead(upstream.get(), &buffer);
  if (!answer.has_value() || !SendAll(client->get(), AlteredHead(*answer, fault))) return false;

  uint64_t left = BodyBytes(request, *answer);
  ChunkScanner chunks;
  const bool chunked =
      left == kUntilClose && absl::EqualsIgnoreCase(answer->header("transfer-encoding"), "chunked");
  uint64_t allowed = CutsBody(fault) ? fault->after_bytes : kUntilClose;
  while (left > 0 && !chunks.done() && allowed > 0) {
    if (buffer.empty() && !ReceiveSome(upstream.get(), &buffer)) return false;
    size_t bytes = chunked ? chunks.Scan(buffer) : std::min<uint64_t>(left, buffer.size());
    if (!chunked && left != kUntilClose) left -= bytes;
    bytes = std::min<uint64_t>(bytes, allowed);
    if (allowed != kUntilClose) allowed -= bytes;
    if (!SendAll(client->get(), absl::string_view(buffer).substr(0, bytes))) return false;
    buffer.clear();
  }
  if (fault == nullptr) return true;
  if (fault->kind == FaultKind::kStall) AwaitClose(client->get());
  if (fault->kind == FaultKind::kReset) ResetConnection(std::move(*client));
  // After a broken body the connection has no next message.
  return fault->kind == FaultKind::kChangedETag;
}

}  // namespace millrace::test
