// Requests of the control protocol (docs/control.md) answered from the keeper's loop: one line in,
// one line out, the answer whenever it is there.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/json.h"
#include "common/base/unique_fd.h"
#include "fuse/keeper/poll_loop.h"

namespace millrace::keeper {

class LineServer {
 public:
  static constexpr size_t kConnectionsMax = 16;

  // Called once, at any time; does nothing when the server or the client is gone.
  using Answer = std::function<void(const absl::StatusOr<base::Json>& answer)>;
  using Handler = std::function<void(const base::Json& request, Answer answer)>;

  // `listener` (non-blocking) and `loop` must outlive the server.
  LineServer(PollLoop* loop, int listener, Handler handler);

 private:
  struct Connection {
    base::UniqueFd socket;
    std::string received;
    PollLoop::Handle watch;
    PollLoop::Handle timeout;
  };

  void Accept();
  void OnReadable(uint64_t id);
  void Handle(uint64_t id, const std::string& line);
  void Reply(uint64_t id, const absl::StatusOr<base::Json>& answer);

  PollLoop* const loop_;
  const int listener_;
  const Handler handler_;
  std::map<uint64_t, Connection> connections_;
  uint64_t next_id_ = 1;
  // What an answer that comes later finds its way back by.
  const std::shared_ptr<LineServer*> self_ = std::make_shared<LineServer*>(this);
  PollLoop::Handle watch_;
};

}  // namespace millrace::keeper
