// One connection to a worker: requests of the data protocol, one after the other, each with its
// answer checked to the last bit before anything of it is used.
//
// Not thread-safe: whoever has it checked out uses it. Calls block.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cache/store/store.h"
#include "common/base/clock.h"
#include "common/base/unique_fd.h"
#include "common/net/stream.h"
#include "common/proto/data_protocol.h"

namespace millrace::pool {

// How a call ended, and whose doing it was if it failed.
enum class End : uint8_t {
  kDone,
  kAnswered,   // The worker answered with an error. The connection may be used again.
  kCaller,     // Cancelled, the deadline of the call, or the sink refused.
  kTransport,  // No answer: the connection could not be made, broke, or went silent.
  kDamaged,    // What came is not what the protocol says, or not what was asked for.
};
struct Outcome {
  End end = End::kDone;
  absl::Status status;
};

// What a call may take.
struct Patience {
  absl::Duration deadline;  // On the clock's Monotonic().
  absl::Duration silence;   // Without a byte of an answer.
  const std::atomic<bool>* cancelled =
      nullptr;  // Looked at every quarter of a second; may be null.
  // Asked after each second without a byte; false ends the call. May be null.
  const absl::FunctionRef<bool()>* alive = nullptr;
};

// Takes the bytes in order with the flags of their frame; returns false to stop.
using FrameSink = absl::FunctionRef<bool(absl::string_view bytes, uint8_t flags)>;

class Connection {
 public:
  // Says hello; `welcome` gets the answer. PermissionDenied or FailedPrecondition when the other
  // side is a worker of another pool or version.
  static absl::StatusOr<std::unique_ptr<Connection>> Greet(std::unique_ptr<net::Stream> stream,
                                                           const proto::Hello& hello,
                                                           base::Clock* clock,
                                                           absl::Duration timeout,
                                                           proto::Welcome* welcome);

  // Exactly get.length bytes, from get.offset on. After a failure the sink has seen a correct
  // prefix. A large frame that fits into the `room` of who reads is received there; null: none.
  Outcome Get(const proto::Get& get, const store::BodyRoom* room, FrameSink sink,
              const Patience& patience);
  Outcome Load(const proto::Get& get, const Patience& patience, proto::Done* done);
  // The bytes of an index, or of a delta of it, however many they are up to `size_max`.
  Outcome Index(const proto::IndexGet& get, uint64_t size_max, FrameSink sink,
                const Patience& patience);
  Outcome Open(const proto::FileName& file, const Patience& patience, proto::Opened* opened,
               base::UniqueFd* descriptor);
  Outcome Ping(const Patience& patience, proto::Welcome* welcome);
  // Not answered.
  absl::Status Release(uint64_t lease);

  // In step with the worker: no call failed but with End::kAnswered.
  bool usable() const { return usable_; }
  // Nothing came that nobody asked for, and the worker has not closed.
  bool Quiet() const { return begin_ == end_ && stream_->Quiet(); }
  // Since when nobody uses it; set by who keeps it.
  absl::Duration idle_since;

 private:
  Connection(std::unique_ptr<net::Stream> stream, base::Clock* clock);

  Outcome Send(absl::string_view frame);
  // At least one byte, at most `size`. With `beyond`, what stands right behind them may come too,
  // and then is in the buffer, which must be empty.
  Outcome Receive(char* to, size_t size, bool beyond, const Patience& patience,
                  base::UniqueFd* descriptor, size_t* received);
  // Makes `size` bytes stand in the buffer, and reads up to `more` beyond them if they are there.
  Outcome Fill(size_t size, size_t more, const Patience& patience, base::UniqueFd* descriptor);
  // A header; up to `more` bytes behind it are read with the same call.
  Outcome ReadHeader(size_t more, const Patience& patience, proto::Header* header,
                     base::UniqueFd* descriptor);
  // Its payload, checked, in the buffer until the next call or in `room`.
  Outcome ReadPayload(const proto::Header& header, const store::BodyRoom* room,
                      const Patience& patience, absl::string_view* payload,
                      base::UniqueFd* descriptor);
  // The answer to a request that is one message of `type`.
  Outcome ReadAnswer(uint64_t request, proto::FrameType type, const Patience& patience,
                     absl::string_view* payload, base::UniqueFd* descriptor = nullptr);
  // Bytes of frames from `offset` on; `size` of them, or up to `size` where `exact` is false.
  Outcome ReadData(uint64_t request, uint64_t offset, uint64_t size, bool exact,
                   const store::BodyRoom* room, FrameSink sink, const Patience& patience);
  Outcome Damaged(absl::string_view what);
  Outcome AnsweredError(absl::string_view payload);

  const std::unique_ptr<net::Stream> stream_;
  base::Clock* const clock_;
  const std::unique_ptr<char[]> buffer_;
  size_t begin_ = 0;  // Of what was received and not used yet.
  size_t end_ = 0;
  uint64_t next_request_ = 1;
  bool usable_ = true;
};

}  // namespace millrace::pool
