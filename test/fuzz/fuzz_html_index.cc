// Fuzzes directory index pages: whatever they hold, a name is one component.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "cache/store/html_index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  for (const auto& link : millrace::store::ParseIndexPage(text, "/data/")) {
    if (link.name.empty() || link.name == "." || link.name == ".." ||
        link.name.find('/') != std::string::npos || link.name.find('\0') != std::string::npos) {
      __builtin_trap();
    }
  }
  return 0;
}
