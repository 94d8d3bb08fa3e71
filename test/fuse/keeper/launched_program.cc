// What launch_test starts: says what it is on standard output, one "key value" line each, then
// waits for the end of its standard input.
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>

namespace {

void SayDescriptors() {
  DIR* const listing = opendir("/proc/self/fd");
  std::string open;
  while (const dirent* const entry = readdir(listing)) {
    const std::string name = entry->d_name;
    if (name[0] == '.' || name == std::to_string(dirfd(listing))) continue;
    open += std::string(open.empty() ? "" : ",") + name;
  }
  closedir(listing);
  std::cout << "descriptors " << open << "\n";
}

void SaySignals() {
  int changed = 0;
  for (int signal = 1; signal < 32; ++signal) {
    struct sigaction action = {};
    if (sigaction(signal, nullptr, &action) == 0 && action.sa_handler != SIG_DFL) ++changed;
  }
  std::cout << "signals_changed " << changed << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  SayDescriptors();
  SaySignals();
  std::cout << "name " << argv[0] << "\n";
  rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  std::cout << "limit " << (limit.rlim_cur == limit.rlim_max ? "hard" : "soft") << "\n";
  std::cout << "session " << (getsid(0) == getpid() ? "own" : "inherited") << "\n";
  std::string text;
  std::ifstream("/proc/self/oom_score_adj") >> text;
  std::cout << "oom " << text << "\n";
  // Files to try.
  for (int i = 1; i < argc; ++i) {
    const int fd = open(argv[i], O_RDONLY | O_CLOEXEC);
    std::cout << "read " << argv[i] << " " << (fd >= 0 ? "ok" : strerror(errno)) << "\n";
    if (fd >= 0) close(fd);
  }
  std::ifstream status("/proc/self/status");
  while (std::getline(status, text)) {
    const size_t colon = text.find(":\t");
    if (colon != std::string::npos) {
      std::cout << text.substr(0, colon) << " " << text.substr(colon + 2) << "\n";
    }
  }
  std::cout << "end ." << std::endl;
  while (std::getline(std::cin, text)) {
  }
  return 7;
}
