// Keeps the sessions of any number of mounts, in one thread: what millrace-keeper does for one, and
// the node plugin of a cluster for all of a machine.
//
// Not thread-safe.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/unique_fd.h"
#include "common/control/run_directory.h"
#include "fuse/keeper/poll_loop.h"
#include "fuse/keeper/session.h"

namespace millrace::keeper {

class Keeper : private Session::Owner {
 public:
  // SIGTERM and SIGINT unmount everything, from here on; the second one does not wait for daemons.
  // REQUIRES: no other thread runs yet.
  Keeper();
  ~Keeper() override = default;

  // See Session::Start and Session::Adopt.
  absl::Status Start(SessionOptions options, control::RunDirectory directory);
  absl::Status Adopt(const std::string& mountpoint, const Session::MakeOptions& make_options);

  // Until the last session ended. The exit code of the last that did not end well; 0.
  int Run();

  const std::vector<std::unique_ptr<Session>>& sessions() const { return sessions_; }

 private:
  void OnSessionEnded(Session* session, int exit_code) override;
  void OnSignal();

  PollLoop loop_;
  base::UniqueFd signals_;
  PollLoop::Handle signal_watch_;
  PollLoop::Handle reaper_;
  std::vector<std::unique_ptr<Session>> sessions_;
  std::vector<Session*> ended_;
  int exit_code_ = 0;
};

// The kernel shall kill anybody else for want of memory first; where it may not be asked for
// (without root), nothing changes. Returns the score from before, for the daemons.
int ShunOomKiller();

}  // namespace millrace::keeper
