// The data port of a worker: how cached bytes travel. cache/README.md has the same for people who
// write a second implementation.
//
// A connection (TCP, TLS over TCP, or the worker's Unix socket) begins with HELLO and its answer;
// from then on the client asks and the worker answers, frames with the request's id. Several
// requests may be on their way; the answers to one never mix with another's inside a frame. All
// numbers are little-endian.
//
//   header, 32 bytes
//     0  u32  length of the payload
//     4  u8   type                 5  u8  flags           6  u16  0
//     8  u64  request id
//    16  u64  DATA: offset of the first byte in the file; others: 0
//    24  u32  CRC32C of the payload
//    28  u32  CRC32C of bytes 0 to 27
//
// A client's request ids grow on a connection: one that was used before is a frame sent again. It
// may tell with ERROR (DataLoss) that the bytes of a request were damaged: the worker checks its
// own.
//
// The payload of DATA is the bytes of the file, at most kDataMax; of every other frame the fields
// of a message below in their order, at most kMessageMax: integers as they are, a string as u32
// length and bytes, a boolean as one byte 0 or 1, nothing behind the last field.
//
// Whoever receives what is not this (unknown version, type or flag, a length or checksum that does
// not hold, a message that does not end where its payload does) sends ERROR where the other side
// is still in step, and closes. Nothing of such a frame is used.
//
// Everything here is pure: bytes in, values out. Safe on any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace millrace::proto {

inline constexpr uint32_t kMagic = 0x4352'4c4d;  // "MLRC" as the first field of HELLO.
inline constexpr uint16_t kVersion = 1;
inline constexpr uint32_t kHeaderSize = 32;
// One block of the cache: its checksum is in the block map, so that a worker need not look at the
// bytes it sends.
inline constexpr uint32_t kDataMax = 128 * 1024;
inline constexpr uint32_t kMessageMax = 64 * 1024;

enum class FrameType : uint8_t {
  kHello = 1,     // Hello; first frame of a client.
  kWelcome = 2,   // Welcome; its answer.
  kError = 3,     // Error; ends a request (id 0: the connection).
  kGet = 16,      // Get; answered by DATA frames in order, the last one with kLast.
  kData = 17,     // Bytes of a file.
  kCancel = 18,   // No payload: the request's answer is not wanted any more. Not answered itself;
                  // the request's answer may still come, or end with ERROR (cancelled).
  kLoad = 19,     // Get: the worker is to have the range; answered by DONE when it has.
  kDone = 20,     // Done.
  kIndex = 24,    // IndexGet; answered like kGet: what cache/index/format.md calls an answer.
  kOpen = 32,     // Open; Unix socket only; answered by OPENED with one descriptor (SCM_RIGHTS).
  kOpened = 33,   // Opened.
  kRelease = 34,  // Release: a lease is given back. Not answered.
  kPing = 48,     // No payload; answered by PONG.
  kPong = 49,     // Welcome: what the worker is by now.
};

// Flags of DATA.
inline constexpr uint8_t kLast = 0x01;       // No frame of this request comes after it.
inline constexpr uint8_t kFromStore = 0x02;  // The worker had to ask the store for these bytes.
inline constexpr uint8_t kFromPeer = 0x04;   // The worker had them from another worker.

// How a worker is to see a Get.
enum class Role : uint8_t {
  kOwner =
      0,  // As one that this file is placed on: from the cache, else its peers, else the store.
  kGuest = 1,   // For a reader on the same node: as a client of the pool, keeping a copy.
  kCached = 2,  // Only what is present or on its way; else ERROR kNotFound.
};

// As fetch::Priority.
enum class Urgency : uint8_t { kDemand = 0, kReadAhead = 1, kLookAhead = 2, kBulk = 3 };

struct Header {
  uint32_t length = 0;
  FrameType type = FrameType::kError;
  uint8_t flags = 0;
  uint64_t request = 0;
  uint64_t offset = 0;
  uint32_t payload_crc = 0;
};

struct Hello {
  uint16_t version = kVersion;
  std::string cluster;  // Of the pool; must be the worker's.
  std::string peer;     // Who asks, for logs: host name or worker id.
};

// What a worker tells of itself.
struct Welcome {
  uint16_t version = kVersion;
  std::string cluster;
  std::string worker;           // Its id: stable over restarts, unique in the pool.
  uint64_t capacity_bytes = 0;  // Of all tiers: its weight in placement.
  uint64_t extent_size = 0;     // Bytes; the whole pool must have the same.
  uint32_t replicas = 1;        // Likewise.
  bool draining = false;        // Leaves soon: still serves, owns nothing new.
};

// The codes are those of absl::StatusCode.
struct Error {
  uint16_t code = 0;
  uint64_t retry_after_ms = 0;  // 0: not said.
  std::string message;          // Without secrets.
};

// A file as the pool knows it: tier::FileKey.
struct FileName {
  std::string source;  // store::Source::identity.
  std::string path;
  std::string version;
  uint64_t size = 0;
};

struct Get {
  FileName file;
  uint64_t offset = 0;
  uint64_t length = 0;  // > 0, within the file.
  Role role = Role::kOwner;
  Urgency urgency = Urgency::kDemand;
};

struct Done {
  uint64_t bytes = 0;  // Present in the worker now, of those asked for.
  uint64_t fetched_from_store = 0;
};

struct IndexGet {
  std::string source;
  uint64_t have = 0;  // Version of the index the client has; 0: none. Answered by a delta from it
                      // where the worker still knows it, else by the whole index.
  // The worker is to list the source again, for the next time, when its last listing began longer
  // ago. It does so as often as it thinks right.
  uint64_t max_age_ms = 0;
};

struct Open {
  FileName file;
};

struct Opened {
  uint64_t lease = 0;  // The worker does not evict the file until it is released, or the
                       // connection ends.
};

struct Release {
  uint64_t lease = 0;
};

// --- Encoding: whole frames, header and payload ---
// A message longer than kMessageMax, which only a name of that length makes, gives an empty string:
// workers cannot be asked about such a file. The text of an Error is cut instead.
std::string EncodeHeader(const Header& header);
std::string Encode(uint64_t request, const Hello& message);
std::string Encode(uint64_t request, const Welcome& message, FrameType type = FrameType::kWelcome);
std::string Encode(uint64_t request, const Error& message);
std::string Encode(uint64_t request, const Get& message, FrameType type = FrameType::kGet);
std::string Encode(uint64_t request, const Done& message);
std::string Encode(uint64_t request, const IndexGet& message);
std::string Encode(uint64_t request, const Open& message);
std::string Encode(uint64_t request, const Opened& message);
std::string Encode(uint64_t request, const Release& message);
std::string EncodeEmpty(uint64_t request, FrameType type);  // kCancel, kPing.

// --- Decoding ---
// InvalidArgument names what does not hold: also for another version in HELLO and WELCOME, which
// begin the same in every version. `bytes` are kHeaderSize long. A header that decodes is within
// the limits above for its type; what its payload is, CheckPayload tells.
absl::StatusOr<Header> DecodeHeader(absl::string_view bytes);
// DataLoss when the payload is not what the header vouches for.
absl::Status CheckPayload(const Header& header, absl::string_view payload);
absl::StatusOr<Hello> DecodeHello(absl::string_view payload);
absl::StatusOr<Welcome> DecodeWelcome(absl::string_view payload);
absl::StatusOr<Error> DecodeError(absl::string_view payload);
absl::StatusOr<Get> DecodeGet(absl::string_view payload);
absl::StatusOr<Done> DecodeDone(absl::string_view payload);
absl::StatusOr<IndexGet> DecodeIndexGet(absl::string_view payload);
absl::StatusOr<Open> DecodeOpen(absl::string_view payload);
absl::StatusOr<Opened> DecodeOpened(absl::string_view payload);
absl::StatusOr<Release> DecodeRelease(absl::string_view payload);

// Decimal seconds to wait before the next try; the payload that stores use too
// (store::kRetryAfterPayload).
inline constexpr char kRetryAfterPayload[] = "millrace/retry-after";

// Between a status and its message. The time to wait travels; an errno in the status does not.
Error ToError(const absl::Status& status);
absl::Status ToStatus(const Error& error);

}  // namespace millrace::proto
