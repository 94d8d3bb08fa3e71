// Directory index pages as nginx, Apache, lighttpd, Caddy and Python's http.server write them.
//
// What counts as an entry is a link to a direct child of the directory: no parent, no sorting link
// ("?C=N;O=D"), no other site. Sizes and times on the page are ignored: servers round them.
// Parsed as a stream with libxml2's HTML parser; no network.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace millrace::store {

struct IndexLink {
  std::string name;  // Decoded; never empty, ".", ".." or with '/' or NUL.
  bool directory = false;
};

// One page. Not safe for concurrent use.
class IndexParser {
 public:
  // `directory_path` is the decoded path of the page with slashes at both ends: links may be
  // absolute paths.
  explicit IndexParser(std::string directory_path);
  ~IndexParser();

  void Feed(absl::string_view html);
  // The links, sorted by name, each name once (as a directory, if it is there as both).
  std::vector<IndexLink> Finish();

 private:
  struct Sax;
  const std::unique_ptr<Sax> sax_;
};

// A whole page at once.
std::vector<IndexLink> ParseIndexPage(absl::string_view html, const std::string& directory_path);

}  // namespace millrace::store
