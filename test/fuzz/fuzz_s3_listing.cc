// Fuzzes the XML of S3 listings.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "cache/store/s3_xml.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  (void)millrace::store::ParseS3Listing(text);
  return 0;
}
