// Fuzzes credential files: keys that are accepted cannot break out of a header.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "cache/store/credentials.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto credentials = millrace::store::ParseCredentials(text, "default");
  if (credentials.ok() && credentials->access_key_id.find_first_of("\r\n ") != std::string::npos) {
    __builtin_trap();
  }
  return 0;
}
