// Log lines for people and for machines: one line, a constant message, then key=value pairs.
//
//   Log(Severity::kError, "read failed", {{"object", path}, {"cause", status.ToString()}});
//   E 2026-11-22T10:00:00.123Z read failed object="train/a.jpg" cause="…"
//
// Values are quoted and control characters escaped: an object name cannot forge a line.
// Thread-safe; a line is written with one write(2) to standard error. Never log a secret.
#pragma once

#include <initializer_list>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace millrace::base {

enum class Severity { kDebug, kInfo, kWarning, kError };

struct LogField {
  LogField(absl::string_view key, const absl::AlphaNum& value)
      : key(key), value(value.Piece().data(), value.Piece().size()) {}
  absl::string_view key;
  std::string value;
};

void Log(Severity severity, absl::string_view message, std::initializer_list<LogField> fields = {});

// Lines below `minimum` are dropped (kInfo until this is called).
void SetLogThreshold(Severity minimum);

}  // namespace millrace::base
