#include "cache/store/retrying_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "cache/store/memory_store.h"

namespace millrace::store {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Time passes only in Sleep.
class FakeClock : public base::Clock {
 public:
  absl::Time Now() override { return absl::UnixEpoch() + now_; }
  absl::Duration Monotonic() override { return now_; }
  void Sleep(absl::Duration duration) override { now_ += duration; }

 private:
  absl::Duration now_ = absl::Hours(1);
};

// Fails as told before it answers: `bytes` of a Get arrive first.
class FaultyStore : public MemoryStore {
 public:
  struct Step {
    absl::Status status;
    uint64_t bytes = 0;
  };
  std::deque<Step> steps;
  std::vector<std::string> gets;  // "offset+length@version" of each.
  int tries = 0;

  absl::StatusOr<Entry> Stat(const std::string& path, const CallOptions& call) override {
    ++tries;
    const Step step = Next();
    if (!step.status.ok()) return step.status;
    return MemoryStore::Stat(path, call);
  }

  absl::Status Get(const GetRequest& request, BodySink sink, const CallOptions& call) override {
    ++tries;
    gets.push_back(absl::StrCat(request.offset, "+", request.length, "@", request.version));
    const Step step = Next();
    if (step.status.ok()) return MemoryStore::Get(request, sink, call);
    if (step.bytes > 0) {
      GetRequest part = request;
      part.length = step.bytes;
      const absl::Status status = MemoryStore::Get(part, sink, call);
      if (!status.ok()) return status;
    }
    return step.status;
  }

 private:
  Step Next() {
    if (steps.empty()) return {};
    const Step step = steps.front();
    if (steps.size() > 1 || step.status.ok()) steps.pop_front();
    return step;
  }
};

class RetryingStoreTest : public ::testing::Test {
 protected:
  RetryingStoreTest() {
    faulty_->Put("a", "0123456789", "v");
    store_ = NewRetryingStore(faulty_, RetryOptions(), &clock_, [] { return 0.5; });
  }

  absl::Status Read(const std::string& version, std::string* bytes) {
    return store_->Get(
        GetRequest{.path = "a", .offset = 2, .length = 8, .version = version},
        [bytes](absl::string_view piece) {
          bytes->append(piece.data(), piece.size());
          return true;
        },
        call_);
  }

  FakeClock clock_;
  std::shared_ptr<FaultyStore> faulty_ = std::make_shared<FaultyStore>();
  std::shared_ptr<Store> store_;
  CallOptions call_;
};

const absl::Status kBusy = absl::UnavailableError("503 SlowDown");

TEST_F(RetryingStoreTest, BacksOffTwiceAsLongEachTime) {
  faulty_->steps = {{kBusy}, {kBusy}, {kBusy}, {absl::OkStatus()}};
  const absl::Duration began = clock_.Monotonic();
  EXPECT_TRUE(store_->Stat("a", call_).ok());
  EXPECT_EQ(faulty_->tries, 4);
  EXPECT_EQ(clock_.Monotonic() - began, absl::Milliseconds(25 + 50 + 100));
}

TEST_F(RetryingStoreTest, GoesOnWhereTheLastTryStopped) {
  faulty_->steps = {{kBusy, 3}, {kBusy, 0}, {kBusy, 4}, {absl::OkStatus()}};
  std::string bytes;
  EXPECT_TRUE(Read("v", &bytes).ok());
  EXPECT_EQ(bytes, "23456789");
  EXPECT_THAT(faulty_->gets, ElementsAre("2+8@v", "5+5@v", "5+5@v", "9+1@v"));
}

TEST_F(RetryingStoreTest, NeverJoinsPartsOfUnknownVersions) {
  faulty_->steps = {{kBusy, 3}, {absl::OkStatus()}};
  std::string bytes;
  EXPECT_EQ(Read("", &bytes).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(faulty_->tries, 1);
  faulty_->steps = {{kBusy, 0}, {absl::OkStatus()}};
  bytes.clear();
  EXPECT_TRUE(Read("", &bytes).ok());
  EXPECT_EQ(bytes, "23456789");
}

TEST_F(RetryingStoreTest, AFailureBehindTheLastByteIsNone) {
  faulty_->steps = {{kBusy, 8}};
  std::string bytes;
  EXPECT_TRUE(Read("v", &bytes).ok());
  EXPECT_EQ(bytes, "23456789");
}

TEST_F(RetryingStoreTest, HonoursRetryAfter) {
  absl::Status busy = kBusy;
  busy.SetPayload(kRetryAfterPayload, absl::Cord("7"));
  faulty_->steps = {{busy}, {absl::OkStatus()}};
  const absl::Duration began = clock_.Monotonic();
  EXPECT_TRUE(store_->Stat("a", call_).ok());
  EXPECT_EQ(clock_.Monotonic() - began, absl::Seconds(7));
}

TEST_F(RetryingStoreTest, GivesUpAtTheDeadlineAndCountsTheTries) {
  faulty_->steps = {{kBusy}};
  const absl::Duration began = clock_.Monotonic();
  const absl::Status status = store_->Stat("a", call_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_LE(clock_.Monotonic() - began, absl::Seconds(60));
  EXPECT_GT(clock_.Monotonic() - began, absl::Seconds(50));
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(faulty_->tries, " tries")));
  EXPECT_THAT(std::string(status.message()), HasSubstr("SlowDown"));
}

TEST_F(RetryingStoreTest, TheCallsOwnTimeoutIsShorter) {
  faulty_->steps = {{kBusy}};
  call_.timeout = absl::Seconds(1);
  const absl::Duration began = clock_.Monotonic();
  EXPECT_FALSE(store_->Stat("a", call_).ok());
  EXPECT_LE(clock_.Monotonic() - began, absl::Seconds(1));
}

TEST_F(RetryingStoreTest, FinalErrorsAreNotRepeated) {
  for (const absl::StatusCode code :
       {absl::StatusCode::kNotFound, absl::StatusCode::kPermissionDenied,
        absl::StatusCode::kFailedPrecondition, absl::StatusCode::kInvalidArgument,
        absl::StatusCode::kCancelled}) {
    faulty_->tries = 0;
    faulty_->steps = {{absl::Status(code, "no")}};
    EXPECT_EQ(store_->Stat("a", call_).status().code(), code);
    EXPECT_EQ(faulty_->tries, 1);
  }
}

TEST_F(RetryingStoreTest, ACancelledCallStopsWaiting) {
  std::atomic<bool> cancelled{true};
  call_.cancelled = &cancelled;
  faulty_->steps = {{kBusy}};
  EXPECT_EQ(store_->Stat("a", call_).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(faulty_->tries, 1);
}

class Recorder : public StoreObserver {
 public:
  void OnCall(const Call& call) override {
    calls.push_back(absl::StrCat(call.store, " ", call.operation, " ",
                                 absl::StatusCodeToString(call.code), " ", call.bytes_in));
  }
  std::vector<std::string> calls;
};

TEST_F(RetryingStoreTest, EveryTryIsCounted) {
  Recorder recorder;
  store_ = NewRetryingStore(NewCountingStore(faulty_, &recorder), RetryOptions(), &clock_,
                            [] { return 0.5; });
  faulty_->steps = {{kBusy, 3}, {absl::OkStatus()}};
  std::string bytes;
  EXPECT_TRUE(Read("v", &bytes).ok());
  EXPECT_THAT(recorder.calls, ElementsAre("memory get UNAVAILABLE 3", "memory get OK 5"));
}

}  // namespace
}  // namespace millrace::store
