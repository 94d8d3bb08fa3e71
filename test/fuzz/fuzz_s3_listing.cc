// Fuzzes the XML of S3 listings.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "cache/store/s3_xml.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto listing = millrace::store::ParseS3Listing(text);
  if (!listing.ok()) return 0;
  for (const auto& object : listing->objects) {
    if (object.size > INT64_MAX) __builtin_trap();
  }
  return 0;
}
