#include "cache/store/retrying_store.h"

#include <algorithm>
#include <optional>
#include <random>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cache/store/http_answer.h"
#include "cache/store/store_decorator.h"

namespace millrace::store {
namespace {

// A wait is slept in pieces of this, so that a cancelled call ends soon.
constexpr absl::Duration kNap = absl::Milliseconds(100);

std::optional<absl::Duration> RetryAfterOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryAfterPayload);
  double seconds = 0;
  if (!payload.has_value() || !absl::SimpleAtod(std::string(*payload), &seconds) ||
      !(seconds >= 0) || seconds > 1e9) {
    return std::nullopt;
  }
  return absl::Seconds(seconds);
}

bool MayRetry(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable ||
         status.code() == absl::StatusCode::kDeadlineExceeded;
}

class RetryingStore : public StoreDecorator {
 public:
  RetryingStore(std::shared_ptr<Store> store, const RetryOptions& options, base::Clock* clock,
                std::function<double()> dice)
      : StoreDecorator(std::move(store)),
        options_(options),
        clock_(clock),
        dice_(std::move(dice)) {}

  absl::StatusOr<ListPage> List(const std::string& path, const std::string& token,
                                size_t max_entries, const CallOptions& call) override {
    return RunFor<ListPage>(
        call, [&](const CallOptions& one) { return store_->List(path, token, max_entries, one); });
  }

  absl::StatusOr<Entry> Stat(const std::string& path, const CallOptions& call) override {
    return RunFor<Entry>(call, [&](const CallOptions& one) { return store_->Stat(path, one); });
  }

  absl::StatusOr<std::vector<Entry>> Sample(size_t max_objects, const CallOptions& call) override {
    return RunFor<std::vector<Entry>>(
        call, [&](const CallOptions& one) { return store_->Sample(max_objects, one); });
  }

  absl::Status Get(const GetRequest& request, BodySink sink, const CallOptions& call) override;

 private:
  // What one try did: its end, and whether it got anything done.
  struct Try {
    absl::Status status;
    bool progressed = false;
    bool final = false;  // Must not be repeated whatever the status.
  };

  // Repeats `attempt` until it succeeds, fails for good, or time is up.
  absl::Status Run(const CallOptions& call, absl::FunctionRef<Try(const CallOptions&)> attempt);

  template <typename T>
  absl::StatusOr<T> RunFor(const CallOptions& call,
                           absl::FunctionRef<absl::StatusOr<T>(const CallOptions&)> attempt) {
    absl::StatusOr<T> result = absl::UnknownError("not tried");
    const absl::Status status = Run(call, [&](const CallOptions& one) {
      result = attempt(one);
      return Try{result.status()};
    });
    if (!status.ok()) return status;
    return result;
  }

  // Sleeps; false when the call was cancelled meanwhile.
  bool Wait(absl::Duration duration, const CallOptions& call);

  const RetryOptions options_;
  base::Clock* const clock_;
  const std::function<double()> dice_;
};

bool RetryingStore::Wait(absl::Duration duration, const CallOptions& call) {
  const absl::Duration end = clock_->Monotonic() + duration;
  while (true) {
    if (call.cancelled != nullptr && call.cancelled->load(std::memory_order_relaxed)) return false;
    const absl::Duration left = end - clock_->Monotonic();
    if (left <= absl::ZeroDuration()) return true;
    clock_->Sleep(std::min(left, kNap));
  }
}

absl::Status RetryingStore::Run(const CallOptions& call,
                                absl::FunctionRef<Try(const CallOptions&)> attempt) {
  const absl::Duration began = clock_->Monotonic();
  const absl::Duration end = began + std::min(options_.deadline, call.timeout);
  absl::Duration delay_max = options_.first_delay;
  for (int tries = 1;; ++tries) {
    CallOptions one = call;
    one.timeout = end - clock_->Monotonic();
    one.stall_timeout = std::min(call.stall_timeout, options_.try_timeout);
    const Try result = attempt(one);
    if (result.status.ok()) return result.status;
    // A try that moved bytes shows a store that works: begin the back-off anew.
    if (result.progressed) delay_max = options_.first_delay;
    // Full jitter: many readers that failed together must not come back together.
    absl::Duration delay = delay_max * dice_();
    delay_max = std::min(delay_max * 2, options_.delay_max);
    delay = std::max(delay, RetryAfterOf(result.status).value_or(absl::ZeroDuration()));
    const absl::Duration now = clock_->Monotonic();
    if (result.final || !MayRetry(result.status) || now + delay >= end) {
      if (tries == 1 && !MayRetry(result.status)) return result.status;
      return Prefixed(
          absl::StrCat("after ", tries, tries == 1 ? " try in " : " tries in ",
                       absl::FormatDuration(absl::Trunc(now - began, absl::Milliseconds(1)))),
          result.status);
    }
    if (!Wait(delay, call)) {
      return Prefixed(absl::StrCat("cancelled after ", tries, " tries"),
                      absl::CancelledError(result.status.message()));
    }
  }
}

absl::Status RetryingStore::Get(const GetRequest& request, BodySink sink, const CallOptions& call) {
  GetRequest rest = request;
  return Run(call, [&](const CallOptions& one) {
    uint64_t passed = 0;
    const auto counted = [&](absl::string_view piece) {
      passed += piece.size();
      return sink(piece);
    };
    Try result{store_->Get(rest, counted, one)};
    result.progressed = passed > 0;
    rest.offset += passed;
    rest.length -= std::min(passed, rest.length);
    // All bytes came, and something failed behind them: nothing is left to fetch.
    if (rest.length == 0 && MayRetry(result.status)) result.status = absl::OkStatus();
    // Going on without a version could join the halves of two objects.
    result.final = rest.offset != request.offset && request.version.empty();
    return result;
  });
}

double ThreadDice() {
  thread_local std::minstd_rand engine{std::random_device{}()};
  return std::uniform_real_distribution<double>(0, 1)(engine);
}

}  // namespace

std::shared_ptr<Store> NewRetryingStore(std::shared_ptr<Store> store, const RetryOptions& options,
                                        base::Clock* clock, std::function<double()> dice) {
  return std::make_shared<RetryingStore>(std::move(store), options, clock, std::move(dice));
}

std::shared_ptr<Store> NewRetryingStore(std::shared_ptr<Store> store, const RetryOptions& options) {
  return NewRetryingStore(std::move(store), options, base::RealClock(), &ThreadDice);
}

}  // namespace millrace::store
