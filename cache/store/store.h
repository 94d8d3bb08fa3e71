// SEAM: where bytes come from. One implementation per kind of store: {file,s3,http,memory}_store.
// `oss://` is a dialect of S3. A new store is one file pair and one line in registry.cc.
//
// Names. A store is a tree of directories and objects. Paths are relative to the source's root,
// without a leading or trailing slash; the root is "". A store reports names as it has them,
// however hostile ("..", "a/", control characters, 300 bytes): the file system decides which it
// shows (fuse/SEMANTICS.md). It never follows a name out of its root.
//
// Threads. All methods block and are safe for concurrent use; they are called from fetch threads.
//
// Errors, for every method:
//   NotFound            no such object or bucket
//   PermissionDenied    refused: credentials, or the store's policy
//   FailedPrecondition  the object is no longer the version asked for (412, or a changed ETag)
//   Unavailable         a try may help: 5xx, SlowDown, reset, refused connection, short body
//                       (payload kRetryAfterPayload: seconds, where the store sent Retry-After)
//   DeadlineExceeded    the call's own deadline passed
//   Cancelled           `cancelled` became true
//   InvalidArgument     wrong region, malformed answer, anything a retry cannot mend
// The message names store, operation, object and cause; it never holds a secret.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace millrace::store {

// Decimal seconds the store asked us to wait before the next try.
inline constexpr char kRetryAfterPayload[] = "millrace/retry-after";

enum class EntryKind : uint8_t { kObject, kDirectory };

struct Entry {
  std::string name;  // Last path component as the store has it; never with the parent's path.
  EntryKind kind = EntryKind::kObject;
  uint64_t size = 0;  // Up to 2^63-1 is believed; the file system decides about more.
  absl::Time mtime = absl::UnixEpoch();
  // The store's ETag (quotes removed), or "<mtime ns>-<size>" where it has none. Two equal
  // versions of one path have equal bytes. Empty for directories.
  std::string version;
};

// Limits of one call.
struct CallOptions {
  absl::Duration timeout = absl::Seconds(60);        // For the whole call.
  absl::Duration stall_timeout = absl::Seconds(20);  // Without a byte: Unavailable.
  const std::atomic<bool>* cancelled = nullptr;      // Polled at least every second; may be null.
  // How old an answer about names may be: one of an index of the source, where somebody keeps one
  // (cache/pool/index_client.h). Zero: the store is asked.
  absl::Duration age_max = absl::ZeroDuration();
};

struct ListPage {
  std::vector<Entry> entries;
  // The store was asked at most so long ago. Zero for whoever asks it now.
  absl::Duration age = absl::ZeroDuration();
  // Give it to the next call; empty after the last page.
  std::string next_token;
};

// Where the bytes of a Get came from, for those who count (kStore unless somebody says otherwise).
enum class BytesFrom : uint8_t { kStore, kWorker };

// Where the next bytes of a body belong; valid until the sink's next call.
using BodyRoom = absl::FunctionRef<absl::Span<char>()>;

struct GetRequest {
  std::string path;
  uint64_t offset = 0;
  uint64_t length = 0;  // > 0. The caller never asks beyond the object's size.
  // The bytes must be of this version, else FailedPrecondition (If-Match, or compared after the
  // fact with the answer's ETag / mtime and size). Empty: any.
  std::string version;
  // What a pool of workers wants to know and other stores pass over: the size of the file (0:
  // unknown), and how urgent the caller is (fetch::Priority as a number, 0 first).
  uint64_t file_size = 0;
  uint8_t urgency = 0;
  // Set before the piece it is about reaches the sink; may be null.
  BytesFrom* from = nullptr;
  // For a store that receives bytes itself: it may put the next ones here and then give them to the
  // sink as a piece that begins here, which saves copying them. May be null.
  const BodyRoom* room = nullptr;
};

// Takes the body in order, piece by piece; returns false to stop the transfer (Get then returns
// Cancelled). `piece` is valid only during the call.
using BodySink = absl::FunctionRef<bool(absl::string_view piece)>;

// Of a store that charges by the request, or is far.
inline constexpr uint64_t kRangeUnitDefault = 128 * 1024;
// Of one that reads pages of a disk.
inline constexpr uint64_t kRangeUnitPage = 4096;

class Store {
 public:
  virtual ~Store() = default;

  // For people and metrics: "s3", "file", "http", ….
  virtual absl::string_view kind() const = 0;

  // A reader who jumps about asks for ranges aligned to this, in bytes, a power of two: below it a
  // Get costs the store as much as one of this size.
  virtual uint64_t range_unit() const { return kRangeUnitDefault; }

  // One page of the directory `path`, directories included, sub-directories not entered, order as
  // the store has it. At most `max_entries` (a hint). NotFound when there is no such directory;
  // stores without real directories (S3) may answer an empty page instead.
  virtual absl::StatusOr<ListPage> List(const std::string& path, const std::string& token,
                                        size_t max_entries, const CallOptions& call) = 0;

  // One object or directory. `name` of the result is the last component of `path`.
  virtual absl::StatusOr<Entry> Stat(const std::string& path, const CallOptions& call) = 0;

  // Streams exactly `length` bytes from `offset` into `sink`. After a failure the sink has seen a
  // correct prefix: a retry may go on where it stopped.
  virtual absl::Status Get(const GetRequest& request, BodySink sink, const CallOptions& call) = 0;

  // For a store with a pool of workers in front: lets those that the range of `request` is placed
  // on load it, and returns when they have; the bytes of it that they keep now. Nothing is brought
  // here. Unimplemented: there is nobody to load it, the caller has to do so by itself.
  virtual absl::StatusOr<uint64_t> Warm(const GetRequest& /*request*/,
                                        const CallOptions& /*call*/) {
    return absl::UnimplementedError("this store has no workers");
  }

  // A sample of the source's objects for choosing a mount's profile: up to `max_objects` of any
  // directory, as cheaply as the store can (S3: one page without delimiter). Names are full paths.
  virtual absl::StatusOr<std::vector<Entry>> Sample(size_t max_objects,
                                                    const CallOptions& call) = 0;

  // Put and Delete join here with the issue about writing.
};

}  // namespace millrace::store
