// Web servers that behave in ways which nginx and Python's do not.
#include "cache/store/http_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "test/support/scripted_http_server.h"

namespace millrace::store {
namespace {

using test::HttpHead;
using test::ScriptedHttpServer;
using ::testing::HasSubstr;

std::shared_ptr<Store> Open(const ScriptedHttpServer& server) {
  return *NewHttpStore(*ParseUri(server.url() + "/d/"));
}

absl::Status Get(Store* store, uint64_t offset, uint64_t length, std::string* bytes) {
  GetRequest request;
  request.path = "a";
  request.offset = offset;
  request.length = length;
  return store->Get(
      request,
      [bytes](absl::string_view piece) {
        bytes->append(piece.data(), piece.size());
        return true;
      },
      CallOptions());
}

TEST(HttpStoreTest, AServerWithoutRangesIsSkippedThrough) {
  ScriptedHttpServer server(
      [](const HttpHead&) { return ScriptedHttpServer::Answer(200, {}, "0123456789"); });
  std::string bytes;
  EXPECT_TRUE(Get(Open(server).get(), 4, 3, &bytes).ok());
  EXPECT_EQ(bytes, "456");
}

TEST(HttpStoreTest, RedirectsWithinTheHostAreFollowed) {
  ScriptedHttpServer server([](const HttpHead& request) {
    if (request.target() == "/moved/a") return ScriptedHttpServer::Answer(200, {}, "0123456789");
    return ScriptedHttpServer::Answer(302, {"Location: /moved/a"}, "");
  });
  std::string bytes;
  EXPECT_TRUE(Get(Open(server).get(), 0, 10, &bytes).ok());
  EXPECT_EQ(bytes, "0123456789");
  EXPECT_EQ(Open(server)->Stat("a", CallOptions())->size, 10u);
}

TEST(HttpStoreTest, RedirectsElsewhereAreRefused) {
  for (const char* const target : {"http://127.0.0.2:1/d/a", "//127.0.0.2/d/a", "ftp://x/y"}) {
    ScriptedHttpServer server([&](const HttpHead&) {
      return ScriptedHttpServer::Answer(302, {absl::StrCat("Location: ", target)}, "");
    });
    std::string bytes;
    const absl::Status status = Get(Open(server).get(), 0, 10, &bytes);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << target;
    EXPECT_THAT(std::string(status.message()), HasSubstr("another host")) << target;
  }
}

TEST(HttpStoreTest, ACircleOfRedirectsEnds) {
  ScriptedHttpServer server([](const HttpHead& request) {
    return ScriptedHttpServer::Answer(302, {absl::StrCat("Location: ", request.target())}, "");
  });
  std::string bytes;
  EXPECT_THAT(Get(Open(server).get(), 0, 1, &bytes).ToString(), HasSubstr("circle"));
  EXPECT_EQ(Open(server)->Stat("a", CallOptions()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(HttpStoreTest, AServerWithoutHeadIsAskedForOneByte) {
  ScriptedHttpServer server([](const HttpHead& request) {
    if (request.method() == "HEAD") return ScriptedHttpServer::Answer(405, {}, "");
    return ScriptedHttpServer::Answer(206, {"Content-Range: bytes 0-0/12345", "ETag: W/\"weak\""},
                                      "x");
  });
  const absl::StatusOr<Entry> entry = Open(server)->Stat("a", CallOptions());
  ASSERT_TRUE(entry.ok()) << entry.status();
  EXPECT_EQ(entry->size, 12345u);
  EXPECT_EQ(entry->version, "W/weak");
}

TEST(HttpStoreTest, NoIndexIsNoDirectory) {
  ScriptedHttpServer server([](const HttpHead&) {
    return ScriptedHttpServer::Answer(200, {"Content-Type: image/png"}, "png");
  });
  EXPECT_EQ(Open(server)->List("", "", 10, CallOptions()).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(HttpStoreTest, AnEntryThatIsGoneIsLeftOut) {
  ScriptedHttpServer server([](const HttpHead& request) {
    if (request.target() == "/d/") {
      return ScriptedHttpServer::Answer(200, {"Content-Type: text/html"},
                                        "<a href=a>a</a><a href=gone>gone</a>");
    }
    return ScriptedHttpServer::Answer(request.target() == "/d/a" ? 200 : 404, {}, "x");
  });
  const absl::StatusOr<ListPage> page = Open(server)->List("", "", 10, CallOptions());
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->entries.size(), 1u);
  EXPECT_EQ(page->entries[0].name, "a");
}

TEST(HttpStoreTest, ARootWithoutHostOrWithDotsIsRefused) {
  EXPECT_FALSE(NewHttpStore(*ParseUri("http:///x")).ok());
  EXPECT_FALSE(NewHttpStore(*ParseUri("http://h/a/../b")).ok());
  EXPECT_FALSE(NewHttpStore(*ParseUri("http://h/a?token=x")).ok());
}

}  // namespace
}  // namespace millrace::store
