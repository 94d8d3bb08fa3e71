// A connection as a stream of bytes: plain (TCP, Unix socket), or TLS 1.3 (tls.h).
//
// One thread at a time uses a stream; only Shutdown may come from any. Calls block.
//
// Time-outs are of progress: a call fails with DeadlineExceeded when that long not one byte went
// through. After it, a Read may be called again; a failed write leaves the stream useless.
// Errors: DeadlineExceeded; Unavailable when the other side is gone (reset, broken pipe);
// DataLoss for what is no TLS record; PermissionDenied when the other side does not accept our
// certificate; others with their errno.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/base/unique_fd.h"

namespace millrace::net {

class Stream {
 public:
  virtual ~Stream() = default;

  // The bytes that are there, at least one, at most `size`; 0 at the end of the stream.
  virtual absl::StatusOr<size_t> Read(char* data, size_t size, absl::Duration timeout) = 0;
  // The same for two places, one after the other, as far as one call of the kernel gives; TLS fills
  // the first alone. Neither is empty.
  virtual absl::StatusOr<size_t> ReadTwo(absl::Span<char> first, absl::Span<char> second,
                                         absl::Duration timeout) = 0;
  // Exactly `size` bytes. Unavailable when the stream ends before.
  absl::Status ReadFully(char* data, size_t size, absl::Duration timeout);

  // All of the parts, in order. With `more`, the caller promises to write again at once: the bytes
  // may wait for that, so that a header and what follows leave in one packet.
  virtual absl::Status WriteParts(absl::Span<const absl::string_view> parts, bool more,
                                  absl::Duration timeout) = 0;
  absl::Status Write(absl::string_view data, absl::Duration timeout) {
    return WriteParts({data}, /*more=*/false, timeout);
  }
  // [offset, offset + size) of the file, without a copy where the kernel can. FailedPrecondition
  // when the file ends before: what was sent by then is sent.
  virtual absl::Status SendFile(int file, uint64_t offset, uint64_t size, bool more,
                                absl::Duration timeout) = 0;

  // `data`, at least one byte, with a copy of `descriptor`. FailedPrecondition unless this is a
  // plain Unix socket.
  virtual absl::Status WriteWithDescriptor(absl::string_view data, int descriptor,
                                           absl::Duration timeout) = 0;
  // As Read; a descriptor that came with these bytes is put into `descriptor`, more than one are
  // closed. On other streams none ever comes.
  virtual absl::StatusOr<size_t> ReadWithDescriptor(char* data, size_t size,
                                                    base::UniqueFd* descriptor,
                                                    absl::Duration timeout) = 0;

  // Bytes were received that the socket does not show any more: who waits with poll must read.
  virtual bool HasPending() const = 0;
  // Nothing was received and the other side has not closed: a kept connection that may be used.
  bool Quiet() const;

  // Ends both directions: whoever blocks in a call returns, now and from now on. Any thread.
  void Shutdown();

  // SendFile copies nothing: not so for TLS without the kernel's help.
  virtual bool zero_copy() const = 0;
  virtual bool secure() const = 0;
  int socket() const { return socket_.get(); }

 protected:
  // Takes a connected socket and makes it a blocking one.
  explicit Stream(base::UniqueFd socket);
  // Waiting in the kernel for received bytes, or for room to send, ends after `timeout`.
  void SetReceiveTimeout(absl::Duration timeout);
  void SetSendTimeout(absl::Duration timeout);

 private:
  const base::UniqueFd socket_;
  absl::Duration receive_timeout_ = absl::InfiniteDuration();
  absl::Duration send_timeout_ = absl::InfiniteDuration();
};

// The process ignores SIGPIPE from the first stream on: neither sendfile nor OpenSSL can be asked
// call by call not to raise it.
std::unique_ptr<Stream> PlainStream(base::UniqueFd socket);

}  // namespace millrace::net
