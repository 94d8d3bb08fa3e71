// The state of an upgrade on its way. Private to session*.cc.
#pragma once

#include <memory>
#include <string>

#include "fuse/keeper/session.h"

namespace millrace::keeper {

// Two ways: a stand-by beside a daemon that serves (standby -> draining -> went_on), or a start
// where there is no daemon (recovers).
struct Session::UpgradeRun {
  std::string path;
  base::UniqueFd program;
  std::string from;  // The old version.
  UpgradeDone done;
  std::unique_ptr<DaemonProcess> standby;
  base::UniqueFd nodes;   // Of a session of its own (SessionOptions::uring).
  bool draining = false;  // The old daemon was asked to let go.
  bool went_on = false;   // The new one was told to go on; it is `daemon_` now.
  bool recovers = false;
  PollLoop::Handle deadline;
};

}  // namespace millrace::keeper
