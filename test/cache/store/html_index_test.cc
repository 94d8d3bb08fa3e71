#include "cache/store/html_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace millrace::store {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Names, directories with a slash.
std::vector<std::string> Names(absl::string_view html, const std::string& path = "/data/") {
  std::vector<std::string> names;
  for (const IndexLink& link : ParseIndexPage(html, path)) {
    names.push_back(absl::StrCat(link.name, link.directory ? "/" : ""));
  }
  return names;
}

TEST(HtmlIndexTest, ReadsNginx) {  // nginx 1.22.1, autoindex on.
  EXPECT_THAT(Names("<html>\r\n<head><title>Index of /data/</title></head>\r\n<body>\r\n"
                    "<h1>Index of /data/</h1><hr><pre><a href=\"../\">../</a>\r\n"
                    "<a href=\"cats/\">cats/</a>            22-Nov-2026 13:24          -\r\n"
                    "<a href=\"a%20b%2Bc.txt\">a b+c.txt</a>  22-Nov-2026 13:24       1234\r\n"
                    "<a href=\"q%3Fx%23.bin\">q?x#.bin</a>   22-Nov-2026 13:24       1234\r\n"
                    "</pre><hr></body>\r\n</html>\r\n"),
              ElementsAre("a b+c.txt", "cats/", "q?x#.bin"));
}

TEST(HtmlIndexTest, ReadsApache) {  // Apache 2.4, IndexOptions FancyIndexing HTMLTable.
  EXPECT_THAT(
      Names("<!DOCTYPE HTML PUBLIC \"-//W3C//DTD HTML 3.2 Final//EN\">\n<html>\n <head>\n"
            "  <title>Index of /data</title>\n </head>\n <body>\n<h1>Index of /data</h1>\n"
            "  <table>\n   <tr><th valign=\"top\"><img src=\"/icons/blank.gif\" alt=\"[ICO]\"></th>"
            "<th><a href=\"?C=N;O=D\">Name</a></th><th><a href=\"?C=M;O=A\">Last modified</a></th>"
            "<th><a href=\"?C=S;O=A\">Size</a></th></tr>\n"
            "<tr><td valign=\"top\"><img src=\"/icons/back.gif\" alt=\"[PARENTDIR]\"></td>"
            "<td><a href=\"/\">Parent Directory</a></td><td>&nbsp;</td></tr>\n"
            "<tr><td valign=\"top\"><img src=\"/icons/folder.gif\" alt=\"[DIR]\"></td>"
            "<td><a href=\"sub/\">sub/</a></td><td align=\"right\">2026-11-22 13:24  </td></tr>\n"
            "<tr><td valign=\"top\"><img src=\"/icons/text.gif\" alt=\"[TXT]\"></td>"
            "<td><a href=\"a&amp;b.txt\">a&amp;b.txt</a></td><td align=\"right\">1.2K</td></tr>\n"
            "</table>\n<address>Apache/2.4.66 (Debian) Server</address>\n</body></html>\n"),
      ElementsAre("a&b.txt", "sub/"));
}

TEST(HtmlIndexTest, TakesOnlyDirectChildren) {
  EXPECT_THAT(
      Names("<a href='/data/abs.txt'><a href='/data/'><a href='/other/x'><a href='/data/d/x'>"
            "<a href='http://elsewhere/x'><a href='//elsewhere/x'><a href='mailto:a@b'>"
            "<a href='./dot.txt'><a href='..'><a href='.'><a href='a/../b'><a href='%2e%2e'>"
            "<a href='x%2Fy'><a href='n%00l'><a href='%zz'><a href='#top'><a href=''>"
            "<a name='anchor'><a href='twice'><a href='twice/'><A HREF=upper>"),
      ElementsAre("abs.txt", "dot.txt", "twice/", "upper"));
}

TEST(HtmlIndexTest, SurvivesRubbish) {
  EXPECT_THAT(Names(""), IsEmpty());
  EXPECT_THAT(Names("\xff\xfe<a href"), IsEmpty());
  EXPECT_THAT(Names(std::string(100'000, '<')), IsEmpty());
}

}  // namespace
}  // namespace millrace::store
