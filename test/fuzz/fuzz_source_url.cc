// Fuzzes source URLs and what S3 makes of them; no store is opened.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "cache/store/s3_options.h"
#include "cache/store/uri.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto uri = millrace::store::ParseUri(text);
  if (!uri.ok()) return 0;
  // Nothing from the environment, and no file that the input names.
  millrace::store::Uri anonymous = *uri;
  anonymous.options["anonymous"] = "true";
  const auto nothing = [](const std::string&) -> std::optional<std::string> {
    return std::nullopt;
  };
  const auto options = millrace::store::S3OptionsFromUri(anonymous, nothing);
  if (options.ok() && options->bucket.empty()) __builtin_trap();
  if (uri->path.find('\0') != std::string::npos) __builtin_trap();
  return 0;
}
