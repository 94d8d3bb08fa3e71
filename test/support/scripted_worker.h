// A worker of one process' tests: speaks the data protocol over real sockets, has every byte of the
// objects of a PatternStore, and misbehaves as it is told.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "common/base/mutex.h"
#include "common/base/unique_fd.h"
#include "common/net/address.h"
#include "common/net/stream.h"
#include "common/net/tls.h"
#include "common/proto/data_protocol.h"

namespace millrace::test {

// What a worker does with what it is asked from now on.
enum class Mischief {
  kNone,
  kFrozen,          // Takes connections and bytes, says nothing: SIGSTOP.
  kSilent,          // Answers HELLO and PING, nothing else.
  kClosesEarly,     // Sends half of the answer and closes.
  kDamagedPayload,  // One bit of the last frame's payload.
  kDamagedHeader,
  kTooMuch,    // One byte more than asked for.
  kTooLittle,  // One byte less, with the mark of the last frame.
  kWrongOffset,
  kWrongRequest,
  kUnknownFrame,
  kGarbage,      // No frame at all.
  kError,        // `error`, at once.
  kErrorMidway,  // `error` after half of the answer.
  kTrickle,      // 1000 bytes at a time in frames of their own.
  kDescriptorMissing,
  kWrongDescriptor,
};

// Thread-safe.
class ScriptedWorker {
 public:
  struct Options {
    proto::Welcome welcome;
    net::Address address = {"127.0.0.1", 0, ""};
    net::Tls* tls = nullptr;  // Must outlive the worker.
  };
  static proto::Welcome WelcomeOf(const std::string& id, uint64_t extent_size = 1 << 20);

  explicit ScriptedWorker(Options options);
  ~ScriptedWorker();

  // As --workers takes it. The same after Kill and Start.
  std::string address() const { return address_.ToString(); }
  const std::string& id() const { return options_.welcome.worker; }

  // Closes every connection and the listener. Start listens again.
  void Kill();
  void Start();

  void Do(Mischief mischief, absl::Status error = absl::OkStatus());
  void SetWelcome(const proto::Welcome& welcome);
  // Flags of the frames of answers.
  void SetFlags(uint8_t flags) { flags_ = flags; }
  // Sent for kOpen; its name is checked by who asked.
  void SetFile(base::UniqueFd file);

  std::vector<proto::Get> requests() const;
  size_t loads() const { return loads_.load(); }
  // Waits, up to 20 s, until a client said that what it got is damaged.
  bool AwaitComplaint() const;
  size_t connections() const { return connections_.load(); }
  std::vector<uint64_t> released() const;
  // Waits, up to 20 s, until so many leases were given back.
  bool AwaitReleased(size_t count) const;

 private:
  struct Served;
  void Accept();
  void Serve(Served* served);
  // False closes the connection.
  bool Answer(net::Stream& stream, const proto::Header& header, absl::string_view payload);
  bool AnswerGet(net::Stream& stream, uint64_t request, const proto::Get& get);
  bool AnswerOpen(net::Stream& stream, uint64_t request);
  Mischief mischief() const { return mischief_.load(); }

  Options options_;
  net::Address address_;
  std::atomic<Mischief> mischief_{Mischief::kNone};
  std::atomic<uint8_t> flags_{0};
  std::atomic<size_t> loads_{0};
  std::atomic<size_t> connections_{0};

  mutable base::Mutex mutex_;
  mutable base::CondVar changed_;
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
  proto::Welcome welcome_ ABSL_GUARDED_BY(mutex_);
  base::UniqueFd file_ ABSL_GUARDED_BY(mutex_);
  std::vector<proto::Get> gets_ ABSL_GUARDED_BY(mutex_);
  size_t complaints_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<uint64_t> released_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::unique_ptr<Served>> served_ ABSL_GUARDED_BY(mutex_);
  base::UniqueFd listener_;
  std::thread acceptor_;
};

}  // namespace millrace::test
