// The words between a keeper and its daemon: frames of one fixed size over a Unix SOCK_SEQPACKET
// socket, with descriptors beside them.
//
//   daemon                          keeper
//   Hello(version)               -> Welcome(flags, identity; session, node memory)
//   Prepared                     -> Go                  only a stand-by of an upgrade
//   Open                         -> Grant(flags; descriptors of the mount), or Reply with an error
//   Serving                      -> Reply               it answers the kernel's requests
//   BackingOpen(node; file)      -> Reply(backing id)
//   BackingClose(node)
//   EndMount                                            it was asked to end: please unmount
//   Leaving                                             the mount is gone, and it ends
//   Refused(why)                                        it cannot serve, and ends
//                                <- Drain               hand over to a successor…
//   Drained(flags)                                      …done: cache and, mostly, device are free
//                                <- Finish              stop serving and end
//
// A keeper that adopts a daemon whose keeper died connects to the daemon's adoption socket:
//   Session(flags, count; descriptors) <- Adopt(version)
//   Backing(node, backing id) × count
// and from then on that connection is the custody socket.
//
// A frame that is not exactly right (size, magic, type, number of descriptors) is an error of the
// other side; nothing of it is used. Calls are answered by a frame of the same serial.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/base/unique_fd.h"

namespace millrace::keeper {

// Both sides must speak the same; a stand-by that does not is refused before anything changed.
inline constexpr uint64_t kProtocolVersion = 1;

// The exit status of a daemon that handed its session over.
inline constexpr int kExitDrained = 75;

enum class FrameType : uint32_t {
  kHello = 1,
  kWelcome,
  kPrepared,
  kGo,
  kOpen,
  kGrant,
  kServing,
  kReply,
  kBackingOpen,
  kBackingClose,
  kEndMount,
  kLeaving,
  kRefused,
  kDrain,
  kDrained,
  kFinish,
  kAdopt,
  kSession,
  kBacking,
};

// Flags of Welcome, Grant, Drained and Session.
inline constexpr uint64_t kTakeOver = 1 << 0;  // The mount was served by a predecessor.
inline constexpr uint64_t kStandby = 1 << 1;   // Wait for Go before the cache is opened.
inline constexpr uint64_t kCanBack = 1 << 2;   // The keeper may register files for passthrough.
inline constexpr uint64_t kLingers = 1 << 3;   // It serves on what is open of its session.

struct Frame {
  static constexpr uint32_t kMagic = 0x6b6c696d;
  static constexpr size_t kTextMax = 224;

  uint32_t magic = kMagic;
  FrameType type = FrameType::kReply;
  uint64_t serial = 0;
  uint64_t a = 0;  // By type: version of the protocol, flags, node, result.
  uint64_t b = 0;
  std::array<char, kTextMax> text = {};  // NUL-terminated.

  void SetText(absl::string_view value);  // Cut where it does not fit.
  std::string Text() const;
};
static_assert(sizeof(Frame) == 256 && std::is_trivially_copyable_v<Frame>);

// Places of the descriptors of Welcome…
inline constexpr size_t kWelcomeSession = 0;
inline constexpr size_t kWelcomeNodes = 1;
// …and of Grant and Session.
struct MountDescriptors {
  base::UniqueFd device;    // /dev/fuse.
  base::UniqueFd control;   // Listens at control.sock.
  base::UniqueFd adoption;  // Listens at adopt.sock.
  base::UniqueFd lock;      // The run directory's lock: the mount lives while anybody has it.
  base::UniqueFd recipe;    // How a daemon of this mount is started (recipe.h).
  base::UniqueFd session;   // Of Session only: the memory files of Welcome.
  base::UniqueFd nodes;
};

struct Message {
  Frame frame;
  std::vector<base::UniqueFd> descriptors;
  pid_t sender = 0;  // As the kernel says; 0 unless the socket asks for credentials.
};

// Sends one frame, or none. Never blocks with `wait` false: ResourceExhausted when the other side
// does not read. Unavailable when it is gone.
absl::Status SendFrame(int socket, const Frame& frame, absl::Span<const int> descriptors,
                       bool wait);

// The next frame; nullopt when there is none and `wait` is false, or a receive time-out passed.
// Unavailable at the end; InvalidArgument for what is no frame: close the socket.
absl::StatusOr<std::optional<Message>> ReceiveFrame(int socket, bool wait);

// How many descriptors a frame of this type carries.
size_t DescriptorCount(FrameType type);

// The descriptors of Grant (5) or Session (7), in the order above; and back.
std::vector<int> Numbers(const MountDescriptors& descriptors);
MountDescriptors Named(std::vector<base::UniqueFd> descriptors);

// A status as an answer, and back.
Frame ErrorReply(const absl::Status& status);
absl::Status StatusOfReply(const Frame& reply);

// The two ends of a new socket.
struct SocketPair {
  base::UniqueFd ours;
  base::UniqueFd theirs;
};
absl::StatusOr<SocketPair> NewSocketPair();

}  // namespace millrace::keeper
