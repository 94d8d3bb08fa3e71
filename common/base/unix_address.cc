#include "common/base/unix_address.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"

namespace millrace::base {

absl::StatusOr<sockaddr_un> UnixAddress(const std::string& path, UniqueFd* directory) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::string text = path;
  if (text.size() >= sizeof(address.sun_path)) {
    const size_t slash = path.rfind('/');
    *directory = UniqueFd(open(path.substr(0, slash).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!directory->valid()) return ErrnoStatus(errno, path);
    text = absl::StrCat("/proc/self/fd/", directory->get(), path.substr(slash));
  }
  if (text.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("the socket's name is too long: ", path));
  }
  std::memcpy(address.sun_path, text.data(), text.size());
  return address;
}

}  // namespace millrace::base
