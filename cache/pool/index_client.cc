#include "cache/pool/index_client.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "cache/index/answer.h"
#include "cache/index/delta.h"
#include "cache/index/index_file.h"
#include "cache/index/index_writer.h"
#include "common/base/log.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "common/io/system_calls.h"

namespace millrace::pool {
namespace {

constexpr absl::Duration kRefreshMin = absl::Seconds(10);
// With `refresh` infinite, an index is asked for as with this.
constexpr absl::Duration kRefreshMax = absl::Minutes(10);
constexpr int kUpdatesPerRefresh = 12;
constexpr int kIdleRefreshes = 10;
constexpr absl::Duration kRetryFirst = absl::Seconds(1);
constexpr absl::Duration kCallTimeout = absl::Minutes(5);
constexpr uint64_t kDeltaBytesMax = uint64_t{64} << 20;
constexpr size_t kPageEntriesMax = 10'000;

// Tokens tell who goes on with a listing: "s" and the store's own, or "i", the kind and the name of
// the last entry.
constexpr char kStoreToken = 's';
constexpr char kIndexToken = 'i';

std::string TokenBehind(const index::EntryView& entry) {
  return absl::StrCat("i", static_cast<int>(entry.kind), entry.name);
}

// What arrives of one answer: the head, then a file or a delta.
class Receiver {
 public:
  Receiver(uint64_t bytes_max, const std::string& directory,
           absl::FunctionRef<absl::Status(const index::AnswerHead&)> accept)
      : bytes_max_(bytes_max), directory_(directory), accept_(accept) {}

  // False to stop.
  bool Take(absl::string_view piece) {
    if (!status_.ok()) return false;
    if (!head_.has_value()) {
      const size_t wanted = index::kAnswerHeadSize - head_bytes_.size();
      absl::StrAppend(&head_bytes_, piece.substr(0, wanted));
      piece.remove_prefix(std::min(wanted, piece.size()));
      if (head_bytes_.size() < index::kAnswerHeadSize) return true;
      status_ = Begin();
    }
    if (status_.ok()) status_ = Append(piece);
    return status_.ok();
  }

  // Why it was stopped.
  const absl::Status& status() const { return status_; }
  // What is wrong with all that came.
  absl::Status Finish() const {
    if (!status_.ok()) return status_;
    if (!head_.has_value() || received_ != head_->bytes) {
      return absl::DataLossError("an answer about an index was cut");
    }
    return absl::OkStatus();
  }

  const index::AnswerHead& head() const { return *head_; }
  const std::string& delta() const { return delta_; }
  base::UniqueFd TakeFile() { return std::move(file_); }
  uint64_t received() const { return head_bytes_.size() + received_; }

 private:
  absl::Status Begin() {
    ASSIGN_OR_RETURN(head_, index::DecodeAnswerHead(head_bytes_));
    RETURN_IF_ERROR(accept_(*head_));
    const bool is_delta = head_->kind == index::AnswerKind::kDelta;
    if (head_->bytes > (is_delta ? kDeltaBytesMax : bytes_max_)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the index is larger than allowed: ", head_->bytes, " bytes"));
    }
    if (head_->kind == index::AnswerKind::kIndex) {
      ASSIGN_OR_RETURN(file_, index::NewUnnamedFile(directory_));
    }
    return absl::OkStatus();
  }

  absl::Status Append(absl::string_view piece) {
    if (piece.size() > head_->bytes - received_) {
      return absl::DataLossError("an answer about an index is longer than it says");
    }
    if (file_.valid()) {
      RETURN_IF_ERROR(
          io::WriteFully(file_.get(), received_, absl::MakeConstSpan(piece.data(), piece.size())));
    } else {
      delta_.append(piece.data(), piece.size());
    }
    received_ += piece.size();
    return absl::OkStatus();
  }

  const uint64_t bytes_max_;
  const std::string& directory_;
  const absl::FunctionRef<absl::Status(const index::AnswerHead&)> accept_;
  absl::Status status_;
  std::string head_bytes_;
  std::optional<index::AnswerHead> head_;
  base::UniqueFd file_;
  std::string delta_;
  uint64_t received_ = 0;
};

class RealIndexClient final : public IndexClient {
 public:
  RealIndexClient(const IndexClientOptions& options, std::shared_ptr<store::Store> store,
                  Fetch fetch)
      : IndexClient(std::move(store)), options_(options), fetch_(std::move(fetch)) {
    if (options_.clock == nullptr) options_.clock = base::RealClock();
    refresh_ = std::min(options_.refresh, kRefreshMax);
  }

  ~RealIndexClient() override {
    {
      const base::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    changed_.NotifyAll();
    if (thread_.joinable()) thread_.join();
  }

  absl::StatusOr<store::ListPage> List(const std::string& path, const std::string& token,
                                       size_t max_entries, const store::CallOptions& call) override;
  absl::StatusOr<store::Entry> Stat(const std::string& path,
                                    const store::CallOptions& call) override;
  absl::StatusOr<std::vector<store::Entry>> Sample(size_t max_objects,
                                                   const store::CallOptions& call) override;

  absl::Status Update() override;
  IndexClientStats Stats() const override;

 private:
  struct Held {
    std::shared_ptr<const index::Index> index;
    absl::Duration age;
  };
  absl::Duration Now() const { return options_.clock->Monotonic(); }
  // An index that is new enough for the call, waiting for the first one if need be. Null: none.
  Held NewEnough(const store::CallOptions& call);
  Held Any() const;
  void StartThread() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run();
  // Until the next update is due, or the end: false.
  bool Wait(absl::Duration delay);

  absl::StatusOr<std::optional<store::ListPage>> ListFrom(
      const Held& held, const std::string& path, const std::optional<index::Index::Position>& after,
      size_t max_entries);
  absl::StatusOr<store::ListPage> ListStore(const std::string& path, const std::string& token,
                                            size_t max_entries, const store::CallOptions& call);
  absl::StatusOr<std::shared_ptr<const index::Index>> Make(
      Receiver& receiver, const std::shared_ptr<const index::Index>& old);
  void Fault(const absl::Status& status);

  IndexClientOptions options_;
  const Fetch fetch_;
  absl::Duration refresh_;

  base::Mutex update_mutex_;  // Of one update at a time; before mutex_.
  bool ask_for_all_ ABSL_GUARDED_BY(update_mutex_) = false;

  mutable base::Mutex mutex_;
  base::CondVar changed_;
  std::shared_ptr<const index::Index> index_ ABSL_GUARDED_BY(mutex_);
  absl::Duration listed_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
  bool asked_ ABSL_GUARDED_BY(mutex_) = false;  // An update ended, however.
  absl::Duration wait_until_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteDuration();
  absl::Duration used_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
  bool fault_logged_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> stopping_{false};

  std::atomic<uint64_t> answers_{0};
  std::atomic<uint64_t> asked_store_{0};
  std::atomic<uint64_t> bytes_received_{0};
};

// --- Keeping it up to date ---

absl::StatusOr<std::shared_ptr<const index::Index>> RealIndexClient::Make(
    Receiver& receiver, const std::shared_ptr<const index::Index>& old) {
  const index::AnswerHead& head = receiver.head();
  std::shared_ptr<const index::Index> made = old;
  switch (head.kind) {
    case index::AnswerKind::kUnchanged:
      break;
    case index::AnswerKind::kIndex: {
      ASSIGN_OR_RETURN(made, index::Index::Open(receiver.TakeFile()));
      break;
    }
    case index::AnswerKind::kDelta: {
      if (old == nullptr) return absl::DataLossError("a delta from an index that is not here");
      ASSIGN_OR_RETURN(base::UniqueFd file, index::NewUnnamedFile(options_.directory));
      ASSIGN_OR_RETURN(made, index::Apply(*old, receiver.delta(), std::move(file)));
      break;
    }
  }
  if (made == nullptr || made->header().version != head.version ||
      made->header().content != head.content ||
      made->header().source_hash != base::StableHash64({options_.source})) {
    return absl::DataLossError("the index is not the one that was announced");
  }
  if (made->header().file_bytes > options_.bytes_max) {
    return absl::ResourceExhaustedError("the index has become larger than allowed");
  }
  return made;
}

absl::Status RealIndexClient::Update() {
  const base::MutexLock update_lock(&update_mutex_);
  std::shared_ptr<const index::Index> old;
  absl::Duration old_listed;
  {
    const base::MutexLock lock(&mutex_);
    old = index_;
    old_listed = listed_;
  }
  proto::IndexGet get;
  get.source = options_.source;
  get.have = old == nullptr || ask_for_all_ ? 0 : old->header().version;
  get.max_age_ms = absl::ToInt64Milliseconds(refresh_ / 2);
  const absl::Duration asked = Now();
  // Another worker, or one that has just started, may know less than we do.
  const auto accept = [&](const index::AnswerHead& head) {
    const bool older = old != nullptr && asked - head.age < old_listed;
    return older ? absl::UnavailableError("the worker's index is older than ours")
                 : absl::OkStatus();
  };
  Receiver receiver(options_.bytes_max, options_.directory, accept);
  store::CallOptions call;
  call.timeout = kCallTimeout;
  call.cancelled = &stopping_;
  absl::Status status = fetch_(
      get, [&](absl::string_view piece) { return receiver.Take(piece); }, call);
  bytes_received_ += receiver.received();
  // The receiver's own reason to stop is the better one.
  if (status.ok() || !receiver.status().ok()) status = receiver.Finish();
  absl::StatusOr<std::shared_ptr<const index::Index>> made(nullptr);
  if (status.ok()) {
    made = Make(receiver, old);
  } else {
    made = status;
  }
  // What does not fit is asked for anew, and not as a difference to something else.
  ask_for_all_ = absl::IsDataLoss(made.status()) || absl::IsFailedPrecondition(made.status()) ||
                 absl::IsResourceExhausted(made.status());
  {
    const base::MutexLock lock(&mutex_);
    if (made.ok()) {
      index_ = *made;
      listed_ = asked - receiver.head().age;
      fault_logged_ = false;
    }
    asked_ = true;
  }
  changed_.NotifyAll();
  if (!made.ok()) Fault(made.status());
  return made.status();
}

// Nothing is wrong while a worker builds, or is away: then there is no index, and that is all.
void RealIndexClient::Fault(const absl::Status& status) {
  if (absl::IsUnavailable(status) || absl::IsCancelled(status) || absl::IsNotFound(status)) return;
  {
    const base::MutexLock lock(&mutex_);
    if (std::exchange(fault_logged_, true)) return;
  }
  base::Log(base::Severity::kWarning, "an index is of no use, the store is listed",
            {{"source", options_.source}, {"cause", status.ToString()}});
}

void RealIndexClient::StartThread() {
  if (!thread_.joinable() && !stopping_) thread_ = std::thread([this] { Run(); });
}

bool RealIndexClient::Wait(absl::Duration delay) {
  const base::MutexLock lock(&mutex_);
  const absl::Duration until = Now() + delay;
  while (!stopping_) {
    const absl::Duration now = Now();
    const bool idle = now - used_ > kIdleRefreshes * refresh_;
    if (!idle && now >= until) return true;
    if (idle) {
      changed_.Wait(&mutex_);
    } else {
      changed_.WaitFor(&mutex_, until - now);
    }
  }
  return false;
}

void RealIndexClient::Run() {
  const absl::Duration usual =
      std::clamp(refresh_ / kUpdatesPerRefresh, absl::Seconds(1), absl::Seconds(30));
  absl::Duration retry = kRetryFirst;
  absl::Duration delay = absl::ZeroDuration();
  while (Wait(delay)) {
    const absl::Status status = Update();
    // There will be one soon, where somebody builds it now; one that is too large stays so.
    delay = absl::IsResourceExhausted(status) ? kIdleRefreshes * refresh_
            : status.ok()                     ? usual
                                              : std::min(retry, usual);
    retry = status.ok() ? kRetryFirst : std::min(2 * retry, usual);
  }
}

// --- Answering ---

RealIndexClient::Held RealIndexClient::Any() const {
  const base::MutexLock lock(&mutex_);
  return {index_, Now() - listed_};
}

RealIndexClient::Held RealIndexClient::NewEnough(const store::CallOptions& call) {
  if (call.age_max <= absl::ZeroDuration() || refresh_ < kRefreshMin) return {};
  const base::MutexLock lock(&mutex_);
  const absl::Duration now = Now();
  const bool was_idle = now - used_ > kIdleRefreshes * refresh_;
  used_ = now;
  StartThread();
  if (was_idle) changed_.NotifyAll();
  // Not each call anew: an index may take its time to come.
  wait_until_ = std::min(wait_until_, now + options_.first_wait);
  while (!asked_ && !stopping_) {
    if (call.cancelled != nullptr && *call.cancelled) break;
    const absl::Duration left = std::min(wait_until_ - Now(), call.timeout);
    if (left <= absl::ZeroDuration()) break;
    changed_.WaitFor(&mutex_, left);
  }
  const absl::Duration age = Now() - listed_;
  if (index_ != nullptr && age <= call.age_max) {
    ++answers_;
    return {index_, std::max(age, absl::ZeroDuration())};
  }
  ++asked_store_;
  return {};
}

absl::StatusOr<std::optional<store::ListPage>> RealIndexClient::ListFrom(
    const Held& held, const std::string& path, const std::optional<index::Index::Position>& after,
    size_t max_entries) {
  ASSIGN_OR_RETURN(
      const std::optional<index::Index::Page> found,
      held.index->List(path, after, std::clamp<size_t>(max_entries, 1, kPageEntriesMax)));
  if (!found.has_value()) return std::nullopt;
  store::ListPage page;
  page.age = held.age;
  page.entries.reserve(found->entries.size());
  for (const index::EntryView& entry : found->entries) page.entries.push_back(entry.ToEntry());
  if (!found->last) page.next_token = TokenBehind(found->entries.back());
  return page;
}

absl::StatusOr<store::ListPage> RealIndexClient::ListStore(const std::string& path,
                                                           const std::string& token,
                                                           size_t max_entries,
                                                           const store::CallOptions& call) {
  ASSIGN_OR_RETURN(store::ListPage page, store_->List(path, token, max_entries, call));
  if (!page.next_token.empty()) page.next_token.insert(0, 1, kStoreToken);
  return page;
}

absl::StatusOr<store::ListPage> RealIndexClient::List(const std::string& path,
                                                      const std::string& token, size_t max_entries,
                                                      const store::CallOptions& call) {
  if (!token.empty() && token[0] == kStoreToken) {
    return ListStore(path, token.substr(1), max_entries, call);
  }
  std::optional<index::Index::Position> after;
  Held held;
  if (token.empty()) {
    held = NewEnough(call);
  } else {
    // What was begun from an index goes on in the index that there is now: its order is the same.
    if (token.size() < 2 || token[0] != kIndexToken || token[1] < '0' || token[1] > '1') {
      return absl::InvalidArgumentError("a token that is not one of ours");
    }
    after = {absl::string_view(token).substr(2), static_cast<store::EntryKind>(token[1] - '0')};
    held = Any();
  }
  if (held.index != nullptr) {
    absl::StatusOr<std::optional<store::ListPage>> page = ListFrom(held, path, after, max_entries);
    if (page.ok() && page->has_value()) return **std::move(page);
    if (!page.ok()) Fault(page.status());
    if (after.has_value()) {
      return page.ok() ? absl::NotFoundError(absl::StrCat("no directory ", path, " any more"))
                       : absl::UnavailableError(page.status().message());
    }
  }
  return ListStore(path, "", max_entries, call);
}

absl::StatusOr<store::Entry> RealIndexClient::Stat(const std::string& path,
                                                   const store::CallOptions& call) {
  if (const Held held = NewEnough(call); held.index != nullptr) {
    const absl::StatusOr<std::optional<index::EntryView>> found = held.index->Find(path);
    if (found.ok() && found->has_value()) return (*found)->ToEntry();
    if (!found.ok()) Fault(found.status());
  }
  return store_->Stat(path, call);
}

absl::StatusOr<std::vector<store::Entry>> SampleOf(const index::Index& index, size_t max_objects) {
  std::vector<store::Entry> sample;
  index::RecordCursor cursor = index.Records();
  while (sample.size() < max_objects) {
    ASSIGN_OR_RETURN(const bool more_directories, cursor.NextDirectory());
    if (!more_directories) break;
    while (sample.size() < max_objects) {
      ASSIGN_OR_RETURN(const bool more, cursor.NextEntry());
      if (!more) break;
      if (cursor.entry().kind != store::EntryKind::kObject) continue;
      sample.push_back(cursor.entry().ToEntry());
      if (cursor.directory().empty()) continue;
      sample.back().name = absl::StrCat(cursor.directory(), "/", sample.back().name);
    }
  }
  return sample;
}

absl::StatusOr<std::vector<store::Entry>> RealIndexClient::Sample(size_t max_objects,
                                                                  const store::CallOptions& call) {
  if (const Held held = NewEnough(call); held.index != nullptr) {
    absl::StatusOr<std::vector<store::Entry>> sample = SampleOf(*held.index, max_objects);
    if (sample.ok()) return sample;
    Fault(sample.status());
  }
  return store_->Sample(max_objects, call);
}

IndexClientStats RealIndexClient::Stats() const {
  const Held held = Any();
  IndexClientStats stats;
  if (held.index != nullptr) {
    stats.entries = held.index->header().entries;
    stats.file_bytes = held.index->header().file_bytes;
    stats.age = held.age;
  }
  stats.answers = answers_;
  stats.asked_store = asked_store_;
  stats.bytes_received = bytes_received_;
  return stats;
}

}  // namespace

std::shared_ptr<IndexClient> IndexClient::Create(const IndexClientOptions& options,
                                                 std::shared_ptr<store::Store> store, Fetch fetch) {
  return std::make_shared<RealIndexClient>(options, std::move(store), std::move(fetch));
}

}  // namespace millrace::pool
