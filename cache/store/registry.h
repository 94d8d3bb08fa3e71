// From a URL to a store. The only place that knows every kind.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/store/store.h"

namespace millrace::store {

// What a source URL said, taken apart (uri.h) and checked.
struct Source {
  std::string name;  // NAME of NAME=URL; empty for a source that is the root of the mount.
  std::string url;   // As given, without options: names the source in logs, status, cache files.
};

// Parses "URL" or "NAME=URL", builds the store with its options ("?endpoint=…&region=…") and
// returns it. Does not touch the network: call CheckAccess for that. InvalidArgument names the
// part that is wrong and the remedy; an unknown scheme lists the known ones.
struct OpenedSource {
  Source source;
  std::shared_ptr<Store> store;
};
absl::StatusOr<OpenedSource> OpenSource(absl::string_view text);

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

}  // namespace millrace::store
