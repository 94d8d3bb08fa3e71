#include "cache/pool/member.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace millrace::pool {
namespace {

constexpr absl::Duration kLogEvery = absl::Minutes(1);
// A kept connection that was used a moment ago is used again without a look.
constexpr absl::Duration kTrusted = absl::Seconds(1);
constexpr absl::Duration kWaitStep = absl::Milliseconds(250);

}  // namespace

proto::Welcome Member::welcome() const {
  base::MutexLock lock(&mutex_);
  return welcome_;
}

void Member::Learn(const proto::Welcome& welcome) {
  base::MutexLock lock(&mutex_);
  welcome_ = welcome;
}

absl::StatusOr<std::unique_ptr<Connection>> Member::Dial() {
  ASSIGN_OR_RETURN(std::unique_ptr<net::Stream> stream,
                   context_->dial(endpoint_, context_->connect_timeout));
  proto::Welcome welcome;
  ASSIGN_OR_RETURN(std::unique_ptr<Connection> connection,
                   Connection::Greet(std::move(stream), context_->hello, context_->clock,
                                     context_->connect_timeout, &welcome));
  Learn(welcome);
  return connection;
}

Outcome Member::Take(const Patience& patience, bool may_be_kept, Taken* taken) {
  {
    base::MutexLock lock(&mutex_);
    while (true) {
      if (may_be_kept && !idle_.empty()) {
        std::unique_ptr<Connection> kept = std::move(idle_.back());
        idle_.pop_back();
        if (context_->clock->Monotonic() - kept->idle_since < kTrusted || kept->Quiet()) {
          *taken = {std::move(kept), true};
          return {};
        }
        --connections_;
        continue;
      }
      if (connections_ < kConnectionsMax) break;
      if (patience.cancelled != nullptr && patience.cancelled->load(std::memory_order_relaxed)) {
        return {End::kCaller, absl::CancelledError("cancelled while waiting for a connection")};
      }
      if (context_->clock->Monotonic() >= patience.deadline) {
        return {End::kCaller, absl::DeadlineExceededError("no connection to a worker in time")};
      }
      changed_.WaitFor(&mutex_, kWaitStep);
    }
    ++connections_;
  }
  absl::StatusOr<std::unique_ptr<Connection>> dialed = Dial();
  if (dialed.ok()) {
    *taken = {*std::move(dialed), false};
    return {};
  }
  base::MutexLock lock(&mutex_);
  --connections_;
  changed_.NotifyOne();
  return {End::kTransport, dialed.status()};
}

void Member::Give(std::unique_ptr<Connection> connection) {
  // What is closed is closed without the lock.
  base::MutexLock lock(&mutex_);
  if (connection->usable() && idle_.size() < kIdleMax) {
    connection->idle_since = context_->clock->Monotonic();
    idle_.push_back(std::move(connection));
  } else {
    --connections_;
  }
  changed_.NotifyOne();
}

Outcome Member::Do(const Patience& patience, const bool* used, Call call) {
  for (bool again = false;; again = true) {
    Taken taken;
    Outcome outcome = Take(patience, /*may_be_kept=*/!again, &taken);
    if (outcome.end == End::kDone) {
      outcome = call(*taken.connection);
      Give(std::move(taken.connection));
    }
    switch (outcome.end) {
      case End::kDone:
      case End::kAnswered:
      case End::kCaller:
        return outcome;
      case End::kTransport:
        // The worker closes connections that were idle for long, or was started again.
        if (taken.kept && !again && !*used && absl::IsUnavailable(outcome.status)) {
          DropIdle();
          continue;
        }
        break;
      case End::kDamaged:
        break;
    }
    Failed(outcome);
    return outcome;
  }
}

absl::StatusOr<std::unique_ptr<Connection>> Member::Detached() {
  absl::StatusOr<std::unique_ptr<Connection>> dialed = Dial();
  if (!dialed.ok()) Failed({End::kTransport, dialed.status()});
  return dialed;
}

void Member::Report(const Outcome& outcome) {
  if (outcome.end == End::kTransport || outcome.end == End::kDamaged) Failed(outcome);
}

void Member::DropIdle() {
  std::vector<std::unique_ptr<Connection>> dropped;
  base::MutexLock lock(&mutex_);
  dropped.swap(idle_);
  connections_ -= dropped.size();
  changed_.NotifyAll();
}

void Member::Failed(const Outcome& outcome) {
  const bool damaged = outcome.end == End::kDamaged;
  context_->faults.fetch_add(1, std::memory_order_relaxed);
  if (damaged) context_->damaged_frames.fetch_add(1, std::memory_order_relaxed);
  DropIdle();
  bool log = false;
  {
    base::MutexLock lock(&mutex_);
    const absl::Duration now = context_->clock->Monotonic();
    // Of many calls that failed together, one opens.
    if (breaker_.closed()) breaker_.Failure(now);
    usable_.store(false, std::memory_order_release);
    last_error_ = std::string(outcome.status.message());
    log = now - logged_ >= kLogEvery;
    if (log) logged_ = now;
  }
  if (log) {
    base::Log(base::Severity::kWarning,
              damaged ? "a worker sent what is not its answer; it is by-passed"
                      : "a worker does not answer; it is by-passed",
              {{"worker", endpoint_.shown}, {"cause", outcome.status.ToString()}});
  }
  if (context_->on_failure) context_->on_failure();
}

bool Member::Ask() {
  std::unique_ptr<Connection> kept;
  {
    base::MutexLock lock(&mutex_);
    if (!idle_.empty()) {
      kept = std::move(idle_.back());
      idle_.pop_back();
    }
  }
  if (kept != nullptr) {
    proto::Welcome welcome;
    const Patience patience = {.deadline = context_->clock->Monotonic() + context_->connect_timeout,
                               .silence = context_->connect_timeout};
    const Outcome outcome = kept->Ping(patience, &welcome);
    Give(std::move(kept));
    if (outcome.end == End::kDone) {
      Learn(welcome);
      return true;
    }
    if (!absl::IsUnavailable(outcome.status)) {
      base::MutexLock lock(&mutex_);
      last_error_ = "no answer to PING";
      return false;
    }
    // A kept connection may have been closed by a worker that is well.
  }
  {
    base::MutexLock lock(&mutex_);
    ++connections_;
  }
  absl::StatusOr<std::unique_ptr<Connection>> dialed = Dial();
  if (dialed.ok()) {
    Give(*std::move(dialed));
    return true;
  }
  base::MutexLock lock(&mutex_);
  --connections_;
  last_error_ = std::string(dialed.status().message());
  return false;
}

bool Member::Probe(bool fresh) {
  {
    base::MutexLock lock(&mutex_);
    if (probing_) {
      while (probing_) changed_.WaitFor(&mutex_, kWaitStep);
      return breaker_.closed();
    }
    if (!fresh && context_->clock->Monotonic() - probed_ < kTrusted) return breaker_.closed();
    probing_ = true;
  }
  const bool there = Ask();
  bool returned = false;
  bool lost = false;
  {
    base::MutexLock lock(&mutex_);
    const absl::Duration now = context_->clock->Monotonic();
    returned = there && !breaker_.closed();
    lost = !there && breaker_.closed();
    if (there) {
      breaker_.Success();
      last_error_.clear();
    } else {
      breaker_.Failure(now);
    }
    usable_.store(there, std::memory_order_release);
    probing_ = false;
    probed_ = now;
    changed_.NotifyAll();
  }
  if (lost) DropIdle();
  if (returned) {
    base::Log(base::Severity::kInfo, "a worker answers", {{"worker", endpoint_.shown}});
  }
  return there;
}

absl::Duration Member::NextProbe(absl::Duration refresh) const {
  base::MutexLock lock(&mutex_);
  return breaker_.closed() ? probed_ + refresh : breaker_.next_probe();
}

void Member::CloseIdle() {
  std::vector<std::unique_ptr<Connection>> closed;
  base::MutexLock lock(&mutex_);
  const absl::Duration limit = context_->clock->Monotonic() - kIdleTime;
  // The oldest are in front.
  const auto first_young = std::find_if(idle_.begin(), idle_.end(), [&](const auto& connection) {
    return connection->idle_since > limit;
  });
  std::move(idle_.begin(), first_young, std::back_inserter(closed));
  idle_.erase(idle_.begin(), first_young);
  connections_ -= closed.size();
}

MemberStatus Member::Status() const {
  base::MutexLock lock(&mutex_);
  MemberStatus status;
  status.address = endpoint_.shown;
  status.id = welcome_.worker;
  status.capacity_bytes = welcome_.capacity_bytes;
  status.draining = welcome_.draining;
  status.reachable = breaker_.closed();
  status.last_error = last_error_.empty() ? complaint_ : last_error_;
  return status;
}

void Member::SetComplaint(const std::string& complaint) {
  base::MutexLock lock(&mutex_);
  complaint_ = complaint;
}

}  // namespace millrace::pool
