// Fuzzes the small grammars of HTTP headers.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "common/http/fields.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace http = millrace::http;
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto decoded = http::PercentDecode(http::PercentEncode(text));
  if (decoded != std::string(text)) __builtin_trap();
  http::FormDecode(text);
  http::ParseHttpDate(text);
  http::ParseIsoTime(text);
  const auto wait = http::ParseRetryAfter(text, absl::UnixEpoch());
  if (wait.has_value() && *wait < absl::ZeroDuration()) __builtin_trap();
  const auto range = http::ParseContentRange(text);
  if (range.has_value() && range->last < range->first) __builtin_trap();
  return 0;
}
