// GETs that go past libcurl: every odd answer ends as it would with libcurl, and no byte is wrong.
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/http/client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/connection_server.h"
#include "test/support/http_message.h"
#include "test/support/socket.h"

namespace millrace::http {
namespace {

using ::testing::HasSubstr;

// What a connection does with its n-th request (of all connections together); false closes it.
using Script = std::function<bool(int connection, int request)>;

class PlainGetTest : public ::testing::Test {
 protected:
  ~PlainGetTest() override { server_.reset(); }

  void Serve(Script script) {
    script_ = std::move(script);
    server_ = std::make_unique<test::ConnectionServer>(0, [this](base::UniqueFd connection) {
      ++connections_;
      std::string buffer;
      while (test::ReadHead(connection.get(), &buffer).has_value()) {
        if (!script_(connection.get(), requests_++)) return;
      }
    });
  }
  static bool Say(int connection, absl::string_view bytes) {
    return test::SendAll(connection, bytes);
  }
  static std::string Head(absl::string_view lines) {
    return absl::StrCat("HTTP/1.1 206 Partial\r\n", lines, "\r\n\r\n");
  }

  struct Got {
    absl::Status status;
    int code = 0;
    std::string bytes;   // Streamed.
    std::string answer;  // Of another status than 2xx.
  };
  Got Get(const std::atomic<bool>* cancelled = nullptr, absl::Duration stall = absl::Seconds(10)) {
    Request request;
    request.url = absl::StrCat("http://127.0.0.1:", server_->port(), "/b/a%20b");
    request.headers = {{"Range", "bytes=0-9"}};
    request.body_bytes_hint = 10;
    request.stall_timeout = stall;
    request.cancelled = cancelled;
    Got got;
    const auto response = client_.Stream(
        request, [](const Response&) { return absl::OkStatus(); },
        [&](absl::string_view piece) {
          absl::StrAppend(&got.bytes, piece);
          return true;
        });
    got.status = response.status();
    if (response.ok()) {
      got.code = response->status;
      got.answer = response->body;
    }
    return got;
  }

  Client client_{ClientOptions()};
  Script script_;
  std::atomic<int> connections_{0};
  std::atomic<int> requests_{0};
  std::unique_ptr<test::ConnectionServer> server_;
};

TEST_F(PlainGetTest, KeepsItsConnection) {
  Serve([](int connection, int) {
    return Say(connection, Head("Content-Length: 10") + "0123456789");
  });
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Get().bytes, "0123456789");
  EXPECT_EQ(connections_, 1);
}

TEST_F(PlainGetTest, TakesAHeadInPieces) {
  Serve([](int connection, int) {
    for (const char c : Head("Content-Length: 10") + "0123456789") {
      if (!Say(connection, absl::string_view(&c, 1))) return false;
    }
    return true;
  });
  EXPECT_EQ(Get().bytes, "0123456789");
}

TEST_F(PlainGetTest, ComesBackWhenAnIdleConnectionWasClosed) {
  Serve([](int connection, int) {
    Say(connection, Head("Content-Length: 10") + "0123456789");
    return false;
  });
  EXPECT_EQ(Get().bytes, "0123456789");
  EXPECT_EQ(Get().bytes, "0123456789");
  EXPECT_EQ(connections_, 2);
}

TEST_F(PlainGetTest, ClosesWhatTheServerWantsClosed) {
  Serve([](int connection, int) {
    return Say(connection, Head("Connection: Close\r\nContent-Length: 10") + "0123456789");
  });
  EXPECT_EQ(Get().bytes, "0123456789");
  EXPECT_EQ(Get().bytes, "0123456789");
  EXPECT_EQ(connections_, 2);
}

TEST_F(PlainGetTest, BytesBehindTheBodyAreNoneOfTheNextAnswer) {
  Serve([](int connection, int) {
    return Say(connection, Head("Content-Length: 10") + "0123456789HTTP/1.1 200 OK\r\n");
  });
  EXPECT_EQ(Get().bytes, "0123456789");
  EXPECT_EQ(Get().bytes, "0123456789");
  EXPECT_EQ(connections_, 2);
}

TEST_F(PlainGetTest, LeavesOtherFramingsToLibcurl) {
  Serve([](int connection, int) {
    return Say(connection, absl::StrCat(Head("Transfer-Encoding: chunked"),
                                        "4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"));
  });
  EXPECT_EQ(Get().bytes, "0123456789");
  EXPECT_EQ(requests_, 2);
  EXPECT_EQ(Get().bytes, "0123456789");
  EXPECT_EQ(requests_, 3);  // Remembered.
}

TEST_F(PlainGetTest, ABodyThatEndsWithItsConnectionIsRead) {
  Serve([](int connection, int) {
    Say(connection, Head("X: y") + "0123456789");
    return false;
  });
  EXPECT_EQ(Get().bytes, "0123456789");
}

TEST_F(PlainGetTest, TwoLengthsAreNotBelieved) {
  Serve([](int connection, int) {
    Say(connection, Head("Content-Length: 4\r\nContent-Length: 10") + "0123456789");
    return false;
  });
  const Got got = Get();
  EXPECT_TRUE(!got.status.ok() || got.bytes == "0123" || got.bytes == "0123456789");
  EXPECT_EQ(requests_, 2);  // libcurl's to judge.
}

TEST_F(PlainGetTest, AShortBodyIsUnavailable) {
  Serve([](int connection, int) {
    Say(connection, Head("Content-Length: 10") + "0123");
    return false;
  });
  const Got got = Get();
  EXPECT_EQ(got.bytes, "0123");
  EXPECT_EQ(got.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(got.status.message(), HasSubstr("short body"));
}

TEST_F(PlainGetTest, NoAnswerIsUnavailable) {
  Serve([](int, int) { return false; });
  const Got got = Get();
  EXPECT_EQ(got.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(got.status.message(), HasSubstr("without an answer"));
}

TEST_F(PlainGetTest, NoHttpIsInvalid) {
  Serve([](int connection, int) {
    Say(connection, "SSH-2.0-OpenSSH\r\n");
    return false;
  });
  EXPECT_EQ(Get().status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PlainGetTest, AHugeHeadIsInvalid) {
  Serve([](int connection, int) {
    Say(connection, absl::StrCat("HTTP/1.1 206 Partial\r\nX: ", std::string(100'000, 'x')));
    return false;
  });
  EXPECT_EQ(Get().status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PlainGetTest, AnErrorsBodyIsKeptForItsReader) {
  Serve([](int connection, int) {
    return Say(connection, "HTTP/1.1 503 Slow Down\r\nContent-Length: 4\r\n\r\nslow");
  });
  const Got got = Get();
  EXPECT_TRUE(got.status.ok()) << got.status;
  EXPECT_EQ(got.code, 503);
  EXPECT_EQ(got.answer, "slow");
  EXPECT_EQ(got.bytes, "");
}

TEST_F(PlainGetTest, AStallIsUnavailable) {
  Serve([](int connection, int) {
    Say(connection, Head("Content-Length: 10") + "0123");
    test::AwaitClose(connection);
    return false;
  });
  const Got got = Get(nullptr, absl::Milliseconds(100));
  EXPECT_EQ(got.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(got.status.message(), HasSubstr("stalled"));
}

TEST_F(PlainGetTest, ACancelledCallEndsSoon) {
  std::atomic<bool> cancelled{false};
  Serve([&](int connection, int) {
    Say(connection, Head("Content-Length: 10") + "0123");
    cancelled = true;
    test::AwaitClose(connection);
    return false;
  });
  EXPECT_EQ(Get(&cancelled).status.code(), absl::StatusCode::kCancelled);
}

TEST_F(PlainGetTest, RefusedIsUnavailable) {
  Serve([](int, int) { return false; });
  Request request;
  request.url = absl::StrCat("http://127.0.0.1:", test::FreePort(), "/");
  request.headers = {{"Range", "bytes=0-9"}};
  const auto response = client_.Fetch(request);
  EXPECT_EQ(response.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(response.status().message(), HasSubstr("cannot connect"));
}

}  // namespace
}  // namespace millrace::http
