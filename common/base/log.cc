#include "common/base/log.h"

#include <unistd.h>

#include <atomic>

#include "absl/strings/escaping.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace millrace::base {
namespace {

std::atomic<Severity> threshold{Severity::kInfo};

}  // namespace

void Log(Severity severity, absl::string_view message, std::initializer_list<LogField> fields) {
  if (severity < threshold.load(std::memory_order_relaxed)) return;
  constexpr char kLetters[] = "DIWE";
  std::string line = absl::StrCat(
      absl::string_view(&kLetters[static_cast<int>(severity)], 1), " ",
      absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()), " ", message);
  for (const LogField& field : fields) {
    absl::StrAppend(&line, " ", field.key, "=\"", absl::Utf8SafeCHexEscape(field.value), "\"");
  }
  line.push_back('\n');
  // A log that cannot be written must not stop the program: the result is dropped.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

void SetLogThreshold(Severity minimum) { threshold.store(minimum, std::memory_order_relaxed); }

}  // namespace millrace::base
