// Fuzzes the XML of S3 errors.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "cache/store/s3_xml.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  millrace::store::ParseS3Error(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
