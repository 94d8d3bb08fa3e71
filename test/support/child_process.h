// Real servers of other projects as children of a test: they end with it, however it ends.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

namespace millrace::test {

// A directory below the system's temporary one, removed with all it holds.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Writes a file; makes the directories above it.
void WriteFile(const std::string& path, const std::string& bytes);

class ChildProcess {
 public:
  // Starts `command` (found in PATH) with additional environment; its output goes to `log_path`.
  ChildProcess(const std::vector<std::string>& command,
               const std::vector<std::pair<std::string, std::string>>& environment,
               const std::string& log_path);
  // Sends SIGTERM and, if that does not help within 5 s, SIGKILL.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

 private:
  pid_t pid_ = -1;
};

}  // namespace millrace::test
