// Fuzzes the two origins of a mount's options: the first line of the input is the number of
// arguments in base 10, the arguments follow one per line, the rest is the configuration file.
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "fuse/options/options.h"

namespace {

absl::string_view TakeLine(absl::string_view* text) {
  const size_t end = text->find('\n');
  const absl::string_view line = text->substr(0, end);
  text->remove_prefix(end == absl::string_view::npos ? text->size() : end + 1);
  return line;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  absl::string_view text(reinterpret_cast<const char*>(data), size);
  uint32_t count = 0;
  if (!absl::SimpleAtoi(TakeLine(&text), &count)) count = 0;
  std::vector<std::string> arguments;
  for (uint32_t i = 0; i < count && !text.empty(); ++i) arguments.emplace_back(TakeLine(&text));
  // The entry with the file's text at hand: --config must not read whatever the input names.
  const auto mount = millrace::options::ParseMountOptionsWithConfig(arguments, text, "fuzz");
  if (!mount.ok() && mount.status().message().empty()) __builtin_trap();
  return 0;
}
