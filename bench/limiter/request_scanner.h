// Finds where one HTTP/1.1 request ends and the next begins in what a client sends.
//
// Knows just enough for that: heads, Content-Length, chunked bodies with trailers. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::bench {

class RequestScanner {
 public:
  // True when the next byte is the first of a request.
  bool at_start() const { return state_ == State::kStart; }

  // Looks at the next bytes of the stream and returns how many of them belong to the current
  // request: all, unless it ends among them. InvalidArgument when this is no HTTP/1.x; the stream
  // is then lost.
  absl::StatusOr<size_t> Take(absl::string_view data);

 private:
  enum class State { kStart, kHead, kBody, kChunkSize, kChunkData, kTrailers };

  // Collects bytes into line_ up to and with `terminator`. Returns how many were taken.
  absl::StatusOr<size_t> Collect(absl::string_view data, absl::string_view terminator,
                                 bool* complete);
  absl::Status EndHead();
  absl::Status EndChunkSize();

  State state_ = State::kStart;
  std::string line_;
  // Of the body or the chunk (with its line end), still to come.
  uint64_t remaining_ = 0;
};

}  // namespace millrace::bench
