// One kept-alive TCP connection to a server that is spoken to without libcurl, which connects it.
// Sending and receiving only: what the bytes mean is the client's business. Not thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace millrace::http {

class PlainConnection {
 public:
  // Receiving and sending wait no longer than this without a byte, so that the caller can look at
  // its clock and at who cancelled.
  static constexpr int kPatienceMillis = 500;
  // Bulk bodies cost least at 128 KiB; see client.cc.
  static constexpr size_t kBufferBytes = 128 * 1024;

  PlainConnection() = default;
  ~PlainConnection() { Close(); }
  PlainConnection(const PlainConnection&) = delete;
  PlainConnection& operator=(const PlainConnection&) = delete;

  // "http://host:port" it is connected to; empty: not connected.
  const std::string& origin() const { return origin_; }
  // Takes a connected socket of its own. False if it cannot be used.
  bool Adopt(int socket, std::string origin);
  void Close();

  enum class Outcome : uint8_t { kDone, kNothingYet, kClosed, kReset };
  // All of it, or as much as is taken: `data` loses what was sent.
  Outcome Send(absl::string_view* data);
  // What is there, at most `size` bytes and the buffer's. Valid until the next call.
  Outcome Receive(size_t size, absl::string_view* data);

 private:
  int socket_ = -1;
  std::string origin_;
  std::unique_ptr<char[]> buffer_;
};

}  // namespace millrace::http
