// test_fault_proxy LISTEN_PORT UPSTREAM_HOST UPSTREAM_PORT [FAULT...]: the fault proxy as a
// program, for tests that are not C++. Prints "listening on PORT"; ends when standard input closes.
// Lines on standard input are further faults ("clear" removes all).
#include <cstdio>
#include <iostream>
#include <string>

#include "absl/strings/numbers.h"
#include "test/support/fault_proxy.h"

namespace {

bool AddFault(const std::string& text, millrace::test::FaultProxy* proxy) {
  const absl::StatusOr<millrace::test::Fault> fault = millrace::test::ParseFault(text);
  if (!fault.ok()) {
    std::fprintf(stderr, "%s\n", std::string(fault.status().message()).c_str());
    return false;
  }
  proxy->Add(*fault);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  int listen_port = 0;
  int upstream_port = 0;
  if (argc < 4 || !absl::SimpleAtoi(argv[1], &listen_port) ||
      !absl::SimpleAtoi(argv[3], &upstream_port)) {
    std::fprintf(stderr,
                 "usage: test_fault_proxy LISTEN_PORT UPSTREAM_HOST UPSTREAM_PORT [FAULT...]\n");
    return 2;
  }
  millrace::test::FaultProxy proxy(static_cast<uint16_t>(listen_port), argv[2],
                                   static_cast<uint16_t>(upstream_port));
  if (proxy.port() == 0) {
    std::fprintf(stderr, "port %d is taken\n", listen_port);
    return 1;
  }
  for (int i = 4; i < argc; ++i) {
    if (!AddFault(argv[i], &proxy)) return 2;
  }
  std::printf("listening on %d\n", proxy.port());
  std::fflush(stdout);
  std::string line;
  while (std::getline(std::cin, line)) {
    if (line == "clear") {
      proxy.Clear();
    } else {
      AddFault(line, &proxy);
    }
    std::printf("ok %d\n", proxy.faults_done());
    std::fflush(stdout);
  }
  return 0;
}
