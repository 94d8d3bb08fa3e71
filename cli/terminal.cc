#include "cli/terminal.h"

#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace millrace::cli {
namespace {

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free);  // Or a handler could not set it.

void Write(int fd, absl::string_view text) {
  // A terminal that went away does not stop the work.
  [[maybe_unused]] const ssize_t written = write(fd, text.data(), text.size());
}

}  // namespace

bool IsTerminal(int fd) { return isatty(fd) == 1; }

int TerminalColumns(int fd) {
  winsize size = {};
  if (ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

StatusLine::StatusLine(int fd) : fd_(fd), enabled_(IsTerminal(fd)) {}

void StatusLine::Show(absl::string_view text) {
  if (!enabled_) return;
  // A full last column makes some terminals wrap: one less.
  const size_t columns = static_cast<size_t>(std::max(TerminalColumns(fd_) - 1, 1));
  Write(fd_, absl::StrCat("\r", text.substr(0, columns), "\033[K"));
  shown_ = true;
}

void StatusLine::Clear() {
  if (shown_) Write(fd_, "\r\033[K");
  shown_ = false;
}

char SpinnerAt(int tick) { return "|/-\\"[tick & 3]; }

const std::atomic<bool>& Interrupted() { return interrupted; }

void NoteInterrupts() {
  struct sigaction action = {};
  action.sa_handler = [](int) { interrupted.store(true); };
  // Without SA_RESTART waits end at once; the second signal finds the default action again.
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaction(signal, &action, nullptr);
}

std::string Printable(absl::string_view text) {
  std::string clean(text);
  for (char& c : clean) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) c = '?';
  }
  return clean;
}

}  // namespace millrace::cli
