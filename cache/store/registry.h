// From a URL to a store. The only place that knows every kind.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/store/store.h"

namespace millrace::store {

// What a source URL said, taken apart (uri.h) and checked.
struct Source {
  std::string name;  // NAME of NAME=URL; empty for a source that is the root of the mount.
  std::string url;   // As given, without options: names the source in logs and status.
  // The same with the endpoint where one was given: two buckets of one name on two servers differ
  // in it. Names the source in cache files.
  std::string identity;
};

// Parses "URL" or "NAME=URL", builds the store with its options ("?endpoint=…&region=…") and
// returns it. Does not touch the network: call CheckAccess for that. InvalidArgument names the
// part that is wrong and the remedy; an unknown scheme lists the known ones.
struct OpenedSource {
  Source source;
  std::shared_ptr<Store> store;
};
absl::StatusOr<OpenedSource> OpenSource(absl::string_view text);

// The same for a source of a mount that is taken over: it could be opened once. Where that fails
// now, its calls are Unavailable until it can be opened again. Only the text is checked.
absl::StatusOr<OpenedSource> ReopenSource(absl::string_view text);

// A store that is opened by the first call that can; until then calls are Unavailable.
using StoreOpener = std::function<absl::StatusOr<std::shared_ptr<Store>>()>;
std::shared_ptr<Store> NewLateStore(absl::string_view kind, StoreOpener open);

// One cheap request (a one-entry listing of the root) that tells whether the source can be read:
// its error is what `millrace mount` shows, with cause and remedy.
absl::Status CheckAccess(const OpenedSource& source, const CallOptions& call);

// A store that tries again what may succeed (Unavailable, and DeadlineExceeded of a single try)
// with exponential back-off and full jitter until `deadline` has passed since the call began,
// honouring Retry-After. Get goes on where the last try stopped. The final error carries the
// number of tries and the last cause.
struct RetryOptions {
  absl::Duration deadline = absl::Seconds(60);
  absl::Duration first_delay = absl::Milliseconds(50);
  absl::Duration delay_max = absl::Seconds(5);
  absl::Duration try_timeout = absl::Seconds(20);  // One try without a byte of progress.
};
std::shared_ptr<Store> NewRetryingStore(std::shared_ptr<Store> store, const RetryOptions& options);

// Told of each call a store has answered, from the thread that made it. Safe for concurrent use.
class StoreObserver {
 public:
  virtual ~StoreObserver() = default;
  struct Call {
    absl::string_view store;      // Store::kind().
    absl::string_view operation;  // "list", "stat", "get", "sample".
    absl::StatusCode code = absl::StatusCode::kOk;
    uint64_t bytes_in = 0;  // Of object bodies.
    absl::Duration elapsed;
  };
  virtual void OnCall(const Call& call) = 0;
};

// A store that reports each call to `observer`, which must outlive it. Put it below the retrying
// store to count every try:
//   NewRetryingStore(NewCountingStore(opened.store, &observer), retry)
std::shared_ptr<Store> NewCountingStore(std::shared_ptr<Store> store, StoreObserver* observer);

}  // namespace millrace::store
