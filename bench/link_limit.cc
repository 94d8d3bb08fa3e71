// bench-link-limit: how fast bytes of a file can travel over one TCP connection at all.
//
// The anchor of the rows about workers, over loopback: frames as a worker sends them (a header of
// 32 bytes, up to 128 KiB of a file by sendfile) to a thread that receives them into one buffer and
// forgets them; and small random reads that are asked for, read with one pread, and answered.
// Nothing is checked, found or counted in between: no protocol is faster.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/bench/arguments.h"
#include "cli/bench/random.h"
#include "cli/bench/report.h"
#include "common/base/errno_status.h"
#include "common/base/flags.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/base/units.h"

namespace millrace::bench {
namespace {

constexpr size_t kHeaderBytes = 32;
constexpr size_t kFrameBytes = 128 * base::kKiB;
// What O_DIRECT asks of buffers on every disk in use.
constexpr size_t kAlignment = 4096;

struct Options {
  std::string file;
  uint64_t random = 0;
  uint64_t count = 2000;
  uint64_t seed = 1;
  bool direct = false;
  bool json = false;
};

struct Request {
  uint64_t offset;
  uint64_t length;
};

struct Freed {
  void operator()(char* buffer) const { std::free(buffer); }
};
using Buffer = std::unique_ptr<char, Freed>;

Buffer NewBuffer(size_t size) {
  return Buffer(static_cast<char*>(std::aligned_alloc(kAlignment, size)));
}

// --- A connection -------------------------------------------------------------------------------

struct Connection {
  base::UniqueFd client;
  base::UniqueFd server;
};

// Over 127.0.0.1, without Nagle's delays, as a worker's.
absl::StatusOr<Connection> Connect() {
  const base::UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{.sin_family = AF_INET, .sin_port = 0, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t length = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  if (!listener.valid() || bind(listener.get(), generic, length) != 0 ||
      listen(listener.get(), 1) != 0 || getsockname(listener.get(), generic, &length) != 0) {
    return base::ErrnoStatus(errno, "cannot listen on 127.0.0.1");
  }
  Connection made{.client = base::UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0))};
  if (!made.client.valid() || connect(made.client.get(), generic, length) != 0) {
    return base::ErrnoStatus(errno, "cannot connect to 127.0.0.1");
  }
  made.server = base::UniqueFd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!made.server.valid()) return base::ErrnoStatus(errno, "accept");
  const int on = 1;
  for (const int fd : {made.client.get(), made.server.get()}) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }
  return made;
}

// False when the other side is gone.
bool ReceiveAll(int fd, void* data, size_t size) {
  ssize_t received;
  do {
    received = recv(fd, data, size, MSG_WAITALL);
  } while (received < 0 && errno == EINTR);
  return received == static_cast<ssize_t>(size);
}

absl::Status SendAll(int fd, const char* data, size_t size, int flags) {
  while (size > 0) {
    const ssize_t sent = send(fd, data, size, flags | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return base::ErrnoStatus(errno, "send");
    data += sent;
    size -= sent;
  }
  return absl::OkStatus();
}

// --- The two sides ------------------------------------------------------------------------------

absl::Status SendFrame(int socket, int file, uint64_t offset, uint64_t length) {
  const char header[kHeaderBytes] = {};
  RETURN_IF_ERROR(SendAll(socket, header, sizeof(header), MSG_MORE));
  auto position = static_cast<off_t>(offset);
  while (length > 0) {
    const ssize_t sent = sendfile(socket, file, &position, length);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return base::ErrnoStatus(errno, "sendfile");
    if (sent == 0) return absl::DataLossError("the file became shorter");
    length -= sent;
  }
  return absl::OkStatus();
}

// Answers with the bytes behind a header in one piece.
absl::Status SendRead(int socket, int file, const Request& request, char* buffer) {
  const ssize_t got = pread(file, buffer, request.length, static_cast<off_t>(request.offset));
  if (got < 0) return base::ErrnoStatus(errno, "pread");
  if (got != static_cast<ssize_t>(request.length)) {
    return absl::DataLossError("the file became shorter");
  }
  char header[kHeaderBytes] = {};
  const iovec parts[] = {{header, sizeof(header)}, {buffer, request.length}};
  const msghdr message{.msg_iov = const_cast<iovec*>(parts), .msg_iovlen = 2};
  // Smaller than what a socket takes at once.
  if (sendmsg(socket, &message, MSG_NOSIGNAL) < 0) return base::ErrnoStatus(errno, "sendmsg");
  return absl::OkStatus();
}

// Answers requests until the client closes.
absl::Status Serve(int socket, int file, bool random) {
  const Buffer buffer = NewBuffer(kFrameBytes);
  Request request;
  while (ReceiveAll(socket, &request, sizeof(request))) {
    if (random) {
      RETURN_IF_ERROR(SendRead(socket, file, request, buffer.get()));
      continue;
    }
    const uint64_t end = request.offset + request.length;
    for (uint64_t at = request.offset; at < end; at += kFrameBytes) {
      RETURN_IF_ERROR(SendFrame(socket, file, at, std::min<uint64_t>(kFrameBytes, end - at)));
    }
  }
  return absl::OkStatus();
}

absl::Status ReceiveFrame(int socket, char* buffer, size_t length) {
  char header[kHeaderBytes];
  if (!ReceiveAll(socket, header, sizeof(header)) || !ReceiveAll(socket, buffer, length)) {
    return absl::UnavailableError("the sender ended before its last frame");
  }
  return absl::OkStatus();
}

absl::Status Ask(int socket, const Request& request) {
  return SendAll(socket, reinterpret_cast<const char*>(&request), sizeof(request), 0);
}

absl::Status ReceiveFile(int socket, uint64_t size) {
  const Buffer buffer = NewBuffer(kFrameBytes);
  RETURN_IF_ERROR(Ask(socket, {.offset = 0, .length = size}));
  for (uint64_t at = 0; at < size; at += kFrameBytes) {
    RETURN_IF_ERROR(ReceiveFrame(socket, buffer.get(), std::min<uint64_t>(kFrameBytes, size - at)));
  }
  return absl::OkStatus();
}

absl::Status ReceiveRandom(int socket, uint64_t size, const Options& options, Histogram* latency) {
  const Buffer buffer = NewBuffer(kFrameBytes);
  Random random(options.seed);
  for (uint64_t i = 0; i < options.count; ++i) {
    const Request request{.offset = random.Below(size / options.random) * options.random,
                          .length = options.random};
    const uint64_t start = NowNanos();
    RETURN_IF_ERROR(Ask(socket, request));
    RETURN_IF_ERROR(ReceiveFrame(socket, buffer.get(), request.length));
    latency->Record(NowNanos() - start);
  }
  return absl::OkStatus();
}

// --- The program --------------------------------------------------------------------------------

// nullopt when only help was asked for.
absl::StatusOr<std::optional<Options>> ParseOptions(const std::vector<std::string>& arguments) {
  Options options;
  base::FlagSet flags(
      {.usage = "bench-link-limit FILE [OPTION...]",
       .summary = "Sends a file over one loopback connection as a worker frames it, once and in "
                  "order, or random pieces of it one after the other."});
  flags.Bytes("random", &options.random, 1,
              "instead: pieces of this size at random multiples of it, asked for one by one");
  AddNumber(&flags, "count", &options.count, {.min = 1}, "random pieces (default 2000)");
  AddNumber(&flags, "seed", &options.seed, {}, "of the random offsets (default 1)");
  flags.Switch("direct", &options.direct, "random pieces are read with O_DIRECT");
  flags.Switch("json", &options.json, "print one JSON object");
  ASSIGN_OR_RETURN(const auto positionals, ParseOrHelp(&flags, arguments));
  if (!positionals.has_value()) return std::nullopt;
  ASSIGN_OR_RETURN(options.file, OnlyArgument(*positionals, "FILE"));
  if (options.random > kFrameBytes) {
    return absl::InvalidArgumentError("--random must not be above 128Ki, the largest frame");
  }
  return options;
}

void Print(const Options& options, uint64_t bytes, double seconds, const Histogram& latency) {
  const double rate = static_cast<double>(bytes) / static_cast<double>(base::kMiB) / seconds;
  if (!options.json) {
    PrintLine(absl::StrFormat("%.1f MiB/s", rate));
    if (options.random > 0) PrintLine(LatencyText(latency));
    return;
  }
  nlohmann::json json = {{"bytes", bytes}, {"seconds", seconds}, {"mib_per_second", rate}};
  if (options.random > 0) AddLatency(latency, &json);
  PrintJson(json);
}

absl::Status Run(const std::vector<std::string>& arguments) {
  ASSIGN_OR_RETURN(const std::optional<Options> given, ParseOptions(arguments));
  if (!given.has_value()) return absl::OkStatus();
  const Options& options = *given;
  const base::UniqueFd file(
      open(options.file.c_str(), O_RDONLY | O_CLOEXEC | (options.direct ? O_DIRECT : 0)));
  struct stat attributes;
  if (!file.valid() || fstat(file.get(), &attributes) != 0) {
    return base::ErrnoStatus(errno, options.file);
  }
  const auto size = static_cast<uint64_t>(attributes.st_size);
  if (size < std::max<uint64_t>(options.random, 1)) {
    return absl::InvalidArgumentError(absl::StrCat(options.file, " is too small"));
  }
  ASSIGN_OR_RETURN(Connection connection, Connect());
  absl::Status served;
  std::thread server([&] {
    served = Serve(connection.server.get(), file.get(), options.random > 0);
    // A client that waits for the rest must hear of it.
    shutdown(connection.server.get(), SHUT_RDWR);
  });
  Histogram latency;
  const uint64_t start = NowNanos();
  absl::Status received = options.random > 0
                              ? ReceiveRandom(connection.client.get(), size, options, &latency)
                              : ReceiveFile(connection.client.get(), size);
  const double seconds = static_cast<double>(NowNanos() - start) * 1e-9;
  shutdown(connection.client.get(), SHUT_RDWR);
  server.join();
  RETURN_IF_ERROR(served);
  RETURN_IF_ERROR(received);
  Print(options, options.random > 0 ? options.random * options.count : size, seconds, latency);
  return absl::OkStatus();
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  const absl::Status status = millrace::bench::Run(std::vector<std::string>(argv + 1, argv + argc));
  if (!status.ok()) {
    std::fprintf(stderr, "bench-link-limit: %s\n", millrace::base::ErrorText(status).c_str());
  }
  return millrace::base::ExitCode(status);
}
