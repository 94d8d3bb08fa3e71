// Loopback TCP for test servers: blocking, IPv4, errors as false or an invalid descriptor.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/unique_fd.h"

namespace millrace::test {

// Listens on 127.0.0.1; `port` 0 takes a free one. `bound_port` gets the port in use.
base::UniqueFd Listen(uint16_t port, uint16_t* bound_port);
base::UniqueFd Accept(int listener);
base::UniqueFd Connect(const std::string& host, uint16_t port);

// A port that was free a moment ago, for servers that must be told theirs.
uint16_t FreePort();
// Whether something accepts on 127.0.0.1:`port` before `timeout` has passed.
bool WaitForPort(uint16_t port, absl::Duration timeout);

bool SendAll(int fd, absl::string_view bytes);
// Appends what has arrived to `buffer`; false at the end of the stream.
bool ReceiveSome(int fd, std::string* buffer);
// Waits until the peer closes; gives up after 30 s.
void AwaitClose(int fd);
// Closes with RST instead of FIN.
void ResetConnection(base::UniqueFd fd);

}  // namespace millrace::test
