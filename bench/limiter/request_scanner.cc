#include "bench/limiter/request_scanner.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace millrace::bench {
namespace {

constexpr size_t kLineBytesMax = 64 * 1024;

}  // namespace

absl::StatusOr<size_t> RequestScanner::Collect(absl::string_view data, absl::string_view terminator,
                                               bool* complete) {
  // The terminator may have begun in an earlier piece.
  const size_t had = line_.size();
  const size_t look_from = had < terminator.size() ? 0 : had - terminator.size() + 1;
  const size_t taken = std::min(data.size(), kLineBytesMax + 1 - std::min(had, kLineBytesMax));
  line_.append(data.data(), taken);
  const size_t found = line_.find(terminator.data(), look_from, terminator.size());
  *complete = found != std::string::npos;
  if (!*complete) {
    if (line_.size() > kLineBytesMax) return absl::InvalidArgumentError("a head is too long");
    return taken;
  }
  line_.resize(found + terminator.size());
  return line_.size() - had;
}

absl::Status RequestScanner::EndHead() {
  const absl::string_view head = line_;
  const absl::string_view first = head.substr(0, head.find("\r\n"));
  if (!absl::StrContains(first, " HTTP/1.")) {
    return absl::InvalidArgumentError("a request line without HTTP/1.x");
  }
  remaining_ = 0;
  bool chunked = false;
  for (size_t begin = first.size() + 2; begin < head.size();) {
    const size_t end = head.find("\r\n", begin);
    const absl::string_view line = head.substr(begin, end - begin);
    begin = end + 2;
    const size_t colon = line.find(':');
    if (colon == absl::string_view::npos) continue;
    const absl::string_view name = line.substr(0, colon);
    const absl::string_view value = absl::StripAsciiWhitespace(line.substr(colon + 1));
    if (absl::EqualsIgnoreCase(name, "content-length")) {
      if (!absl::SimpleAtoi(value, &remaining_)) {
        return absl::InvalidArgumentError(absl::StrCat("Content-Length: ", value));
      }
    } else if (absl::EqualsIgnoreCase(name, "transfer-encoding")) {
      chunked = absl::EndsWithIgnoreCase(value, "chunked");
    }
  }
  line_.clear();
  state_ = chunked ? State::kChunkSize : remaining_ > 0 ? State::kBody : State::kStart;
  return absl::OkStatus();
}

absl::Status RequestScanner::EndChunkSize() {
  const absl::string_view line = line_;
  const absl::string_view digits =
      absl::StripAsciiWhitespace(line.substr(0, line.find_first_of(";\r")));
  uint64_t size = 0;
  if (digits.empty() || digits.size() > 15 || !absl::SimpleHexAtoi(digits, &size)) {
    return absl::InvalidArgumentError("a chunk without its size");
  }
  line_.clear();
  if (size == 0) {
    // The last line end of the size line may already be the empty line's first half: trailers end
    // with the first empty line.
    line_ = "\r\n";
    state_ = State::kTrailers;
  } else {
    remaining_ = size + 2;
    state_ = State::kChunkData;
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> RequestScanner::Take(absl::string_view data) {
  size_t total = 0;
  while (total < data.size()) {
    const absl::string_view rest = data.substr(total);
    bool complete = false;
    absl::StatusOr<size_t> taken = size_t{0};
    switch (state_) {
      case State::kStart:
        state_ = State::kHead;
        [[fallthrough]];
      case State::kHead:
      case State::kTrailers:
        taken = Collect(rest, "\r\n\r\n", &complete);
        break;
      case State::kChunkSize:
        taken = Collect(rest, "\r\n", &complete);
        break;
      case State::kBody:
      case State::kChunkData:
        taken = static_cast<size_t>(std::min<uint64_t>(remaining_, rest.size()));
        remaining_ -= *taken;
        complete = remaining_ == 0;
        break;
    }
    if (!taken.ok()) return taken.status();
    total += *taken;
    if (!complete) continue;

    absl::Status status;
    if (state_ == State::kHead) {
      status = EndHead();
    } else if (state_ == State::kChunkSize) {
      status = EndChunkSize();
    } else if (state_ == State::kChunkData) {
      state_ = State::kChunkSize;
    } else {
      line_.clear();
      state_ = State::kStart;
    }
    if (!status.ok()) return status;
    if (state_ == State::kStart) return total;
  }
  return total;
}

}  // namespace millrace::bench
