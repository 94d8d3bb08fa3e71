#include "cache/store/html_index.h"

#include <libxml/HTMLparser.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/http/fields.h"

namespace millrace::store {
namespace {

// "mailto:", "https:": a scheme before any slash.
bool HasScheme(absl::string_view href) {
  const size_t colon = href.find(':');
  return colon != absl::string_view::npos && colon < href.find('/');
}

std::optional<IndexLink> LinkOf(absl::string_view href, absl::string_view directory_path) {
  href = absl::StripAsciiWhitespace(href);
  if (href.empty() || href.find_first_of("?#") != absl::string_view::npos || HasScheme(href) ||
      absl::StartsWith(href, "//")) {
    return std::nullopt;
  }
  while (absl::ConsumePrefix(&href, "./")) {
  }
  IndexLink link;
  link.directory = absl::ConsumeSuffix(&href, "/");
  std::optional<std::string> decoded = http::PercentDecode(href);
  if (!decoded.has_value()) return std::nullopt;
  absl::string_view name = *decoded;
  if (absl::StartsWith(name, "/") && !absl::ConsumePrefix(&name, directory_path)) {
    return std::nullopt;
  }
  // A slash that is left was either a deeper link or "%2F", which no URL can ask for again.
  if (name.empty() || name == "." || name == ".." || absl::StrContains(name, '/') ||
      absl::StrContains(name, '\0')) {
    return std::nullopt;
  }
  link.name = std::string(name);
  return link;
}

}  // namespace

struct IndexParser::Sax {
  static void OnStart(void* self, const xmlChar* name, const xmlChar** attributes);

  std::string directory_path;
  htmlParserCtxtPtr context = nullptr;
  std::vector<IndexLink> links;
};

void IndexParser::Sax::OnStart(void* self, const xmlChar* name, const xmlChar** attributes) {
  auto* const sax = static_cast<Sax*>(self);
  if (!absl::EqualsIgnoreCase(reinterpret_cast<const char*>(name), "a") || attributes == nullptr) {
    return;
  }
  for (; attributes[0] != nullptr; attributes += 2) {
    if (attributes[1] == nullptr ||
        !absl::EqualsIgnoreCase(reinterpret_cast<const char*>(attributes[0]), "href")) {
      continue;
    }
    std::optional<IndexLink> link =
        LinkOf(reinterpret_cast<const char*>(attributes[1]), sax->directory_path);
    if (link.has_value()) sax->links.push_back(*std::move(link));
  }
}

IndexParser::IndexParser(std::string directory_path) : sax_(std::make_unique<Sax>()) {
  static std::once_flag initialised;
  std::call_once(initialised, [] { xmlInitParser(); });
  sax_->directory_path = std::move(directory_path);
  htmlSAXHandler handler{};
  handler.startElement = &Sax::OnStart;
  sax_->context =
      htmlCreatePushParserCtxt(&handler, sax_.get(), nullptr, 0, nullptr, XML_CHAR_ENCODING_UTF8);
  if (sax_->context != nullptr) {
    htmlCtxtUseOptions(sax_->context, HTML_PARSE_NONET | HTML_PARSE_NOERROR | HTML_PARSE_NOWARNING);
  }
}

IndexParser::~IndexParser() {
  if (sax_->context == nullptr) return;
  xmlDocPtr const document = sax_->context->myDoc;
  htmlFreeParserCtxt(sax_->context);
  if (document != nullptr) xmlFreeDoc(document);
}

void IndexParser::Feed(absl::string_view html) {
  constexpr size_t kPieceBytes = 64 * 1024;
  while (sax_->context != nullptr && !html.empty()) {
    const absl::string_view piece = html.substr(0, kPieceBytes);
    htmlParseChunk(sax_->context, piece.data(), static_cast<int>(piece.size()), 0);
    html.remove_prefix(piece.size());
  }
}

std::vector<IndexLink> IndexParser::Finish() {
  if (sax_->context != nullptr) htmlParseChunk(sax_->context, nullptr, 0, 1);
  std::vector<IndexLink> links = std::move(sax_->links);
  std::sort(links.begin(), links.end(), [](const IndexLink& a, const IndexLink& b) {
    return a.name != b.name ? a.name < b.name : a.directory > b.directory;
  });
  links.erase(std::unique(links.begin(), links.end(),
                          [](const IndexLink& a, const IndexLink& b) { return a.name == b.name; }),
              links.end());
  return links;
}

std::vector<IndexLink> ParseIndexPage(absl::string_view html, const std::string& directory_path) {
  IndexParser parser(directory_path);
  parser.Feed(html);
  return parser.Finish();
}

}  // namespace millrace::store
