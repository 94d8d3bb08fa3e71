// What a command knows about its terminal, and the line it keeps rewriting there.
#pragma once

#include <atomic>
#include <string>

#include "absl/strings/string_view.h"

namespace millrace::cli {

bool IsTerminal(int fd);

// Columns of the terminal at `fd`; 80 when it is none.
int TerminalColumns(int fd);

// One line at the bottom of a terminal that is written again and again. Does nothing when `fd` is
// no terminal. Not thread-safe.
class StatusLine {
 public:
  explicit StatusLine(int fd);
  ~StatusLine() { Clear(); }
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  bool enabled() const { return enabled_; }
  void Show(absl::string_view text);
  void Clear();

 private:
  const int fd_;
  const bool enabled_;
  bool shown_ = false;
};

// The character of a spinner after `tick` steps.
char SpinnerAt(int tick);

// Becomes true on SIGINT, SIGTERM or SIGHUP once NoteInterrupts was called. System calls in
// progress end with EINTR. A second signal kills as usual.
const std::atomic<bool>& Interrupted();
void NoteInterrupts();

// Names from a store, and messages about them, may hold escape sequences: control characters
// become "?".
std::string Printable(absl::string_view text);

}  // namespace millrace::cli
