// The few words of the FUSE protocol that a keeper speaks itself: include/uapi/linux/fuse.h, of
// which distributions have older versions than this needs.
#pragma once

#include <sys/ioctl.h>

#include <cstddef>
#include <cstdint>

namespace millrace::keeper::wire {

struct InHeader {
  uint32_t len;
  uint32_t opcode;
  uint64_t unique;
  uint64_t nodeid;
  uint32_t uid;
  uint32_t gid;
  uint32_t pid;
  uint16_t total_extlen;
  uint16_t padding;
};
static_assert(sizeof(InHeader) == 40);

struct OutHeader {
  uint32_t len;
  int32_t error;  // A negative errno; of a notification its code.
  uint64_t unique;
};
static_assert(sizeof(OutHeader) == 16);

// Requests without an answer.
inline constexpr uint32_t kForget = 2;
inline constexpr uint32_t kInterrupt = 36;
inline constexpr uint32_t kBatchForget = 42;

// Notification (unique 0): send again what was read from the device and not answered. Linux 6.9.
inline constexpr int32_t kNotifyResend = 7;

// A read of the device needs room for the largest request, though none of a read-only mount is.
inline constexpr size_t kReadBuffer = (1 << 20) + 8192;

struct BackingMap {
  int32_t fd;
  uint32_t flags;
  uint64_t padding;
};
inline constexpr unsigned long kBackingOpen = _IOW(229, 1, BackingMap);
inline constexpr unsigned long kBackingClose = _IOW(229, 2, uint32_t);

}  // namespace millrace::keeper::wire
