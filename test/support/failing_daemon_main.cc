// A daemon that fails an upgrade: it gets ready like a real one, and then does not go on. One whose
// path contains "refuses" says why it cannot even get ready.
#include <string.h>
#include <unistd.h>

#include <climits>
#include <cstdio>

#include "common/base/unique_fd.h"
#include "fuse/keeper/custody.h"
#include "fuse/keeper/daemon_process.h"

int main() {
  using millrace::keeper::Custody;
  char self[PATH_MAX] = {};
  if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0) return 1;
  const auto custody = Custody::Connect(
      millrace::base::UniqueFd(millrace::keeper::DaemonProcess::kCustodyFd), "9.9.9");
  if (!custody.ok()) {
    fprintf(stderr, "failing daemon: %s\n", custody.status().ToString().c_str());
    return 1;
  }
  if (strstr(self, "refuses") != nullptr) {
    (*custody)->Refused("the saved state has layout 9");
    _exit(1);
  }
  (void)(*custody)->AwaitGo();
  _exit(3);
}
