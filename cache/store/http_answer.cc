#include "cache/store/http_answer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/http/fields.h"

namespace millrace::store {
namespace {

constexpr size_t kPrintableBytesMax = 300;

// "<ns>-<size>", the form of versions made of time and size. An ETag may look the same by chance,
// so versions of this form are compared with both.
bool LooksLikeTimeAndSize(absl::string_view version) {
  const size_t dash = version.find('-');
  return dash != absl::string_view::npos && dash + 1 < version.size() &&
         version.find_first_not_of("0123456789", dash + 1) == absl::string_view::npos &&
         version.substr(0, dash).find_first_not_of("0123456789") == absl::string_view::npos;
}

std::string TimeAndSize(const http::Response& head, uint64_t size) {
  std::string time;
  if (const auto modified = head.Find("last-modified"); modified.has_value()) {
    if (const auto parsed = http::ParseHttpDate(*modified); parsed.has_value()) {
      time = absl::StrCat(absl::ToUnixNanos(*parsed));
    }
  }
  return absl::StrCat(time, "-", size);
}

// Characters an ETag may have (RFC 9110); anything else would break out of the header.
bool IsETag(absl::string_view version) {
  return std::all_of(version.begin(), version.end(), [](char c) {
    return static_cast<unsigned char>(c) > 0x20 && c != '"' && c != 0x7f;
  });
}

absl::Status OtherVersion() {
  return absl::FailedPreconditionError("the object changed since it was listed");
}

}  // namespace

std::string Printable(absl::string_view text) {
  std::string escaped = absl::Utf8SafeCHexEscape(text.substr(0, kPrintableBytesMax));
  if (text.size() > kPrintableBytesMax) absl::StrAppend(&escaped, "...");
  return escaped;
}

std::string VersionOf(const http::Response& head, uint64_t size) {
  absl::string_view etag = head.Find("etag").value_or("");
  std::string weak;
  if (absl::StartsWith(etag, "W/")) {
    weak = "W/";
    etag.remove_prefix(2);
  }
  if (etag.size() > 2 && etag.front() == '"' && etag.back() == '"') {
    return absl::StrCat(weak, etag.substr(1, etag.size() - 2));
  }
  if (!etag.empty() && etag != "\"\"") return absl::StrCat(weak, etag);
  return TimeAndSize(head, size);
}

void AddRangeHeaders(const GetRequest& request, std::vector<http::Header>* headers) {
  headers->push_back(
      {"Range", absl::StrCat("bytes=", request.offset, "-", request.offset + request.length - 1)});
  if (!request.version.empty() && !LooksLikeTimeAndSize(request.version) &&
      !absl::StartsWith(request.version, "W/") && IsETag(request.version)) {
    headers->push_back({"If-Match", absl::StrCat("\"", request.version, "\"")});
  }
}

absl::Status CheckGetAnswer(const http::Response& head, const GetRequest& request,
                            uint64_t skip_bytes_max, BodyWindow* window) {
  const std::optional<uint64_t> body_bytes = head.ContentLength();
  std::optional<uint64_t> object_bytes;
  if (head.status == 206) {
    const auto text = head.Find("content-range");
    const auto range = text.has_value() ? http::ParseContentRange(*text) : std::nullopt;
    if (!range.has_value() || range->first != request.offset) {
      return absl::InvalidArgumentError("the answer's Content-Range is not the range asked for");
    }
    object_bytes = range->total;
    const uint64_t bytes = range->last - range->first + 1;
    if (bytes < request.length) {
      return absl::FailedPreconditionError("the object is shorter than when it was listed");
    }
    if (bytes > request.length) {
      return absl::InvalidArgumentError("the answer is longer than the range asked for");
    }
    if (body_bytes.has_value() && *body_bytes != bytes) {
      // Somebody between here and the store cut or grew the answer: another try may fare better.
      return absl::UnavailableError("the answer's Content-Length is not that of its range");
    }
  } else if (head.status == 200) {
    object_bytes = body_bytes;
    if (body_bytes.has_value() &&
        (request.length > *body_bytes || request.offset > *body_bytes - request.length)) {
      return absl::FailedPreconditionError("the object is shorter than when it was listed");
    }
    if (request.offset > skip_bytes_max) {
      return absl::InvalidArgumentError(
          "the server does not answer ranges, and the range asked for lies too far behind the "
          "object's beginning");
    }
    window->skip = request.offset;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("unexpected status ", head.status, " for a read"));
  }
  if (!request.version.empty() && request.version != VersionOf(head, object_bytes.value_or(0))) {
    const bool same_time = LooksLikeTimeAndSize(request.version) && object_bytes.has_value() &&
                           request.version == TimeAndSize(head, *object_bytes);
    if (!same_time) return OtherVersion();
  }
  return absl::OkStatus();
}

bool WindowSink::operator()(absl::string_view piece) {
  if (skipped_ < window_->skip) {
    const uint64_t skip = std::min<uint64_t>(piece.size(), window_->skip - skipped_);
    skipped_ += skip;
    piece.remove_prefix(skip);
  }
  piece = piece.substr(0, length_ - passed_);
  if (piece.empty()) return !complete();
  if (!sink_(piece)) {
    refused_ = true;
    return false;
  }
  passed_ += piece.size();
  return true;
}

absl::Status HttpStatusError(const http::Response& response, absl::string_view message) {
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
  switch (response.status) {
    case 401:
    case 403:
      code = absl::StatusCode::kPermissionDenied;
      break;
    case 404:
    case 410:
      code = absl::StatusCode::kNotFound;
      break;
    case 412:
    case 416:  // The object is shorter than when it was listed.
      code = absl::StatusCode::kFailedPrecondition;
      break;
    case 408:
    case 425:
    case 429:
      code = absl::StatusCode::kUnavailable;
      break;
    default:
      // 501 and 505 say that the server never will.
      if (response.status >= 500 && response.status != 501 && response.status != 505) {
        code = absl::StatusCode::kUnavailable;
      }
  }
  absl::Status status(code, message);
  if (const auto text = response.Find("retry-after");
      code == absl::StatusCode::kUnavailable && text.has_value()) {
    const auto wait = http::ParseRetryAfter(*text, base::RealClock()->Now());
    if (wait.has_value()) {
      status.SetPayload(kRetryAfterPayload, absl::Cord(absl::StrCat(absl::ToDoubleSeconds(*wait))));
    }
  }
  return status;
}

absl::Status Prefixed(absl::string_view prefix, const absl::Status& status) {
  if (status.ok()) return status;
  absl::Status prefixed(status.code(), absl::StrCat(prefix, ": ", status.message()));
  status.ForEachPayload([&prefixed](absl::string_view type, const absl::Cord& payload) {
    prefixed.SetPayload(type, payload);
  });
  return prefixed;
}

}  // namespace millrace::store
