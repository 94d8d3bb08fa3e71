#include "test/support/http_message.h"

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "test/support/socket.h"

namespace millrace::test {
namespace {

std::string Word(absl::string_view line, size_t index) {
  const std::vector<std::string> words = absl::StrSplit(line, ' ');
  return index < words.size() ? words[index] : "";
}

}  // namespace

std::string HttpHead::method() const { return Word(start_line, 0); }

std::string HttpHead::target() const { return Word(start_line, 1); }

std::string HttpHead::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

std::optional<HttpHead> ReadHead(int fd, std::string* buffer) {
  size_t end = std::string::npos;
  while ((end = buffer->find("\r\n\r\n")) == std::string::npos) {
    if (!ReceiveSome(fd, buffer)) return std::nullopt;
  }
  HttpHead head;
  head.text = buffer->substr(0, end + 4);
  buffer->erase(0, end + 4);
  bool first = true;
  for (const absl::string_view line : absl::StrSplit(head.text, "\r\n", absl::SkipEmpty())) {
    if (first) {
      head.start_line = std::string(line);
      first = false;
      continue;
    }
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 1));
    head.headers[absl::AsciiStrToLower(parts.first)] =
        std::string(absl::StripAsciiWhitespace(parts.second));
  }
  return head;
}

std::string WithHeader(const HttpHead& head, absl::string_view name, absl::string_view value) {
  std::string text;
  for (const absl::string_view line : absl::StrSplit(head.text, "\r\n", absl::SkipEmpty())) {
    if (!absl::StartsWithIgnoreCase(line, absl::StrCat(name, ":"))) {
      absl::StrAppend(&text, line, "\r\n");
    }
  }
  return absl::StrCat(text, name, ": ", value, "\r\n\r\n");
}

}  // namespace millrace::test
