// The S3 store behind a proxy that breaks answers: what each fault becomes, and that a retry mends
// what it can without a wrong byte.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cache/store/registry.h"
#include "cache/store/s3_store.h"
#include "test/support/fault_proxy.h"
#include "test/support/scripted_http_server.h"

namespace millrace::store {
namespace {

using test::Fault;
using test::FaultKind;
using test::HttpHead;
using test::ScriptedHttpServer;
using ::testing::HasSubstr;

constexpr uint64_t kObjectBytes = 400'000;

std::string Object() {
  std::string bytes(kObjectBytes, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 31 + i / 251);
  return bytes;
}

// An object with ranges and an ETag at every path.
std::string ServeObject(const HttpHead& request, const std::string& object) {
  std::string range = request.header("range");
  uint64_t first = 0;
  uint64_t last = object.size() - 1;
  if (!range.empty()) {
    const std::vector<std::string> ends = absl::StrSplit(range.substr(6), '-');
    EXPECT_TRUE(absl::SimpleAtoi(ends[0], &first) && absl::SimpleAtoi(ends[1], &last));
  }
  if (!request.header("if-match").empty() && request.header("if-match") != "\"v1\"") {
    return ScriptedHttpServer::Answer(412, {}, "");
  }
  return ScriptedHttpServer::Answer(
      range.empty() ? 200 : 206,
      {"ETag: \"v1\"", absl::StrCat("Content-Range: bytes ", first, "-", last, "/", object.size())},
      object.substr(first, last - first + 1));
}

class FaultsTest : public ::testing::Test {
 protected:
  FaultsTest()
      : object_(Object()),
        server_([this](const HttpHead& request) { return ServeObject(request, object_); }) {
    int port = 0;
    EXPECT_TRUE(absl::SimpleAtoi(server_.url().substr(server_.url().rfind(':') + 1), &port));
    proxy_ = std::make_unique<test::FaultProxy>(0, "127.0.0.1", static_cast<uint16_t>(port));
    const auto uri = ParseUri(absl::StrCat("s3://b?anonymous=true&endpoint=", proxy_->url()));
    store_ = NewS3Store(*S3OptionsFromUri(*uri, ProcessEnvironment()));
    RetryOptions retry;
    retry.deadline = absl::Seconds(10);
    retry.first_delay = absl::Milliseconds(1);
    retry.try_timeout = absl::Seconds(1);
    retrying_ = NewRetryingStore(store_, retry);
  }

  absl::Status Read(Store* store) {
    GetRequest request;
    request.path = "a.bin";
    request.length = kObjectBytes;
    request.version = "v1";
    seen_.clear();
    const absl::Status status = store->Get(
        request,
        [this](absl::string_view piece) {
          seen_.append(piece.data(), piece.size());
          return true;
        },
        call_);
    EXPECT_TRUE(seen_ == object_.substr(0, seen_.size())) << "wrong bytes";
    return status;
  }

  // One try fails with `code`; through the retrying store the same fault does not show.
  void ExpectMended(const Fault& fault, absl::StatusCode code) {
    proxy_->Add(fault);
    EXPECT_EQ(Read(store_.get()).code(), code);
    proxy_->Add(fault);
    const absl::Status mended = Read(retrying_.get());
    EXPECT_TRUE(mended.ok()) << mended;
    EXPECT_TRUE(seen_ == object_);
    EXPECT_EQ(proxy_->faults_done(), 2);
  }

  const std::string object_;
  ScriptedHttpServer server_;
  std::unique_ptr<test::FaultProxy> proxy_;
  std::shared_ptr<Store> store_;
  std::shared_ptr<Store> retrying_;
  CallOptions call_;
  std::string seen_;
};

TEST_F(FaultsTest, SlowDown) {
  ExpectMended({.kind = FaultKind::kStatus, .status = 503}, absl::StatusCode::kUnavailable);
}

TEST_F(FaultsTest, RetryAfterIsWaitedFor) {
  proxy_->Add({.kind = FaultKind::kStatus, .status = 429, .retry_after_s = 1});
  const absl::Time began = absl::Now();
  EXPECT_TRUE(Read(retrying_.get()).ok());
  EXPECT_GE(absl::Now() - began, absl::Milliseconds(950));
}

TEST_F(FaultsTest, Reset) {
  ExpectMended({.kind = FaultKind::kReset, .after_bytes = 150'000}, absl::StatusCode::kUnavailable);
}

TEST_F(FaultsTest, ResetBeforeTheBody) {
  ExpectMended({.kind = FaultKind::kReset, .after_bytes = 0}, absl::StatusCode::kUnavailable);
}

TEST_F(FaultsTest, TruncatedBody) {
  ExpectMended({.kind = FaultKind::kTruncate, .after_bytes = 150'000},
               absl::StatusCode::kUnavailable);
}

TEST_F(FaultsTest, StalledBody) {
  call_.stall_timeout = absl::Seconds(1);
  ExpectMended({.kind = FaultKind::kStall, .after_bytes = 150'000}, absl::StatusCode::kUnavailable);
}

TEST_F(FaultsTest, TheDeadlineEndsAStall) {
  call_.timeout = absl::Milliseconds(500);
  proxy_->Add({.kind = FaultKind::kStall, .after_bytes = 10});
  const absl::Time began = absl::Now();
  EXPECT_EQ(Read(store_.get()).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(absl::Now() - began, absl::Seconds(3));
}

TEST_F(FaultsTest, WrongLength) {
  ExpectMended({.kind = FaultKind::kWrongLength, .after_bytes = 10},
               absl::StatusCode::kUnavailable);
}

TEST_F(FaultsTest, ChangedETagIsAChangedObject) {
  proxy_->Add({.kind = FaultKind::kChangedETag});
  EXPECT_EQ(Read(retrying_.get()).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(seen_.empty());
}

TEST_F(FaultsTest, AStoreThatStaysBrokenIsNamedWithTheTries) {
  proxy_->Add({.kind = FaultKind::kStatus, .times = 0, .status = 500});
  call_.timeout = absl::Milliseconds(300);
  const absl::Status status = Read(retrying_.get());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tries in"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("s3: get s3://b/a.bin: 500"));
}

TEST_F(FaultsTest, ARefusedConnectionSaysSo) {
  proxy_.reset();
  const absl::Status status = Read(store_.get());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("Connection refused"));
}

}  // namespace
}  // namespace millrace::store
