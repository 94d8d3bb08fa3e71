// One client at the worker's door: its frames in, the answers out. Knows no epoll and no thread;
// data_server.h calls Serve when there may be something to do.
//
// Requests of one connection are served a block at a time in turn, so that a small one does not
// wait for a large one. Bytes that are in the page cache leave by sendfile with the checksum that
// the cache recorded; others are read into a buffer of the budget first, or wait there until they
// have come from the store. While they do the connection has no thread.
//
// Serve is called by one thread at a time; everything else is safe on any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "cache/index/index_keeper.h"
#include "cache/worker/files.h"
#include "common/base/clock.h"
#include "common/base/unique_fd.h"
#include "common/net/stream.h"
#include "common/net/tls.h"
#include "common/proto/data_protocol.h"

namespace millrace::worker {

// Why a connection was closed by the worker, for the metric and the log.
enum class Refusal : uint8_t {
  kFrame,        // A header or a message that does not hold.
  kChecksum,     // A payload that is not what its header vouches for.
  kSequence,     // A frame that does not belong there; a request id used before.
  kVersion,      // HELLO of another version.
  kCluster,      // Of another cluster.
  kCredentials,  // A user who may not use the Unix socket.
  kCertificate,  // The TLS handshake failed.
  kSilence,      // No HELLO, or half a frame, for too long.
  kLimit,        // Too many connections.
};
inline constexpr size_t kRefusals = 9;
absl::string_view RefusalName(Refusal refusal);

// What a connection asks of its server. Thread-safe.
class ConnectionHost {
 public:
  // Serve is to be called: something happened.
  virtual void Wake(uint64_t connection) = 0;
  // A buffer that is read into or held for a client. False: none is free, and the connection is
  // woken when one is.
  virtual bool TakeBlock(uint64_t connection) = 0;
  virtual void GiveBlock() = 0;
  // Counts, and logs once for each peer and cause.
  virtual void Refused(Refusal refusal, absl::string_view peer, const absl::Status& cause) = 0;
  // Bytes that left, and where they came from.
  virtual void Sent(size_t source, fetch::Origin origin, uint64_t bytes) = 0;
  virtual void Answered(size_t source, fetch::Origin origin, absl::Duration duration) = 0;
  virtual void HandedOver(absl::string_view source, uint64_t file_size) = 0;
  // Runs `work` on a thread that may block for long. False: too many do.
  virtual bool RunApart(std::function<void()> work) = 0;

 protected:
  ~ConnectionHost() = default;
};

// What all connections share. Must outlive them.
struct ConnectionContext {
  ConnectionHost* host = nullptr;
  Files* files = nullptr;
  index::IndexKeeper* indexes = nullptr;
  net::Tls* tls = nullptr;  // For TCP; null: plain.
  base::Clock* clock = nullptr;
  std::string cluster;
  std::function<proto::Welcome()> welcome;
  absl::Duration progress_timeout = absl::Seconds(10);  // Without a byte taken or given.
  // How long a request for what is here waits for what is on its way: less than who asks does.
  absl::Duration cached_patience = absl::Milliseconds(600);
  std::atomic<uint64_t> leases{0};
  std::atomic<uint64_t> requests{0};  // Being served.
};

class ServedConnection : public std::enable_shared_from_this<ServedConnection> {
 public:
  static constexpr size_t kRequestsMax = 64;
  static constexpr size_t kLeasesMax = 1 << 16;

  ServedConnection(uint64_t id, base::UniqueFd socket, bool is_unix, std::string peer,
                   ConnectionContext* context);
  ~ServedConnection();

  enum class State { kWaiting, kClosed };
  // Reads what is there and answers what can be answered. kClosed: it is over; the caller drops it.
  State Serve();

  // Ends the connection from outside: the next Serve says kClosed. Any thread.
  void Shutdown();
  // Called now and then: true if Serve is to be called because of the time. Any thread.
  bool Overdue(absl::Duration now) const;

  uint64_t id() const { return id_; }
  int socket() const { return socket_; }
  bool busy() const { return busy_.load(std::memory_order_relaxed); }

 private:
  struct Request;
  struct Arrival;
  using RequestPtr = std::shared_ptr<Request>;
  enum class Step { kProgress, kWaiting, kEnded, kBroken };

  // The handshake.
  bool Begin();
  // False: the connection is over.
  bool ReadInput();
  bool HandleFrames();
  bool HandleFrame(const proto::Header& header, absl::string_view payload);
  bool HandleHello(uint64_t request, absl::string_view payload);
  bool HandleGet(const proto::Header& header, absl::string_view payload);
  bool HandleIndex(uint64_t request, absl::string_view payload);
  bool HandleOpen(uint64_t request, absl::string_view payload);
  bool HandleCancel(uint64_t request);
  bool HandleError(absl::string_view payload);
  // Sends ERROR where that may be understood, counts, and ends the connection.
  bool Refuse(Refusal refusal, const absl::Status& cause);
  bool CheckNew(uint64_t request);
  bool Send(absl::string_view frame);
  bool SendError(uint64_t request, const absl::Status& status);

  // One step of each request. False: the connection is over.
  bool AdvanceAll(bool* progress);
  Step Advance(Request& request);
  Step AdvanceGet(Request& request);
  Step AdvanceLoad(Request& request);
  Step AdvanceIndex(Request& request);
  // The next block's bytes, if they are present and in memory. kWaiting: they are not.
  Step SendPresent(Request& request);
  Step SendBlock(Request& request, const fetch::Block& block);
  Step AwaitBlock(Request& request);
  // What was waited for, if it has come.
  Step TakeArrived(Request& request);
  // `crc`: of the bytes, as the cache has it; else it is computed from what is sent.
  Step SendData(Request& request, absl::string_view bytes, fetch::Origin origin,
                absl::optional<uint32_t> crc);
  void FetchAhead(Request& request);
  Step Fail(Request& request, const absl::Status& status);
  void End(Request& request);
  void GiveUp(Request& request);
  void Close();
  void SetDeadline();

  const uint64_t id_;
  const int socket_;
  const bool is_unix_;
  const std::string peer_;
  ConnectionContext* const context_;

  // Used by Serve alone.
  const absl::Duration began_;     // When the connection was made.
  absl::Duration input_since_;     // When the frame that is not complete yet began.
  base::UniqueFd pending_socket_;  // Until it is the stream's; with TLS, for ever.
  std::string input_;
  bool greeted_ = false;
  std::string asker_;  // Hello::peer.
  uint64_t last_request_ = 0;
  std::vector<RequestPtr> requests_;
  absl::flat_hash_map<uint64_t, std::shared_ptr<const void>> leases_;
  uint64_t next_lease_ = 1;
  struct Served {
    std::weak_ptr<tier::CachedFile> file;
    uint64_t first_block = 0;
    uint64_t last_block = 0;
  };
  Served last_served_;  // To be checked again if the client says that it is damaged.

  std::unique_ptr<net::Stream> stream_;  // After the handshake.

  std::atomic<bool> shut_{false};
  std::atomic<bool> busy_{false};
  // When Serve is to be called at the latest, monotonic nanoseconds.
  std::atomic<int64_t> overdue_ns_{0};
};

}  // namespace millrace::worker
