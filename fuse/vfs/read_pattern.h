// Tells from the reads of one handle what will be read next.
//
//   sequential  reads that continue where one of the last few streams ended: a window ahead of
//               the stream that doubles up to a limit
//   strided     three reads the same distance apart: the next few of the series
//   random      anything else: nothing ahead, each read costs its own blocks only
//
// The kernel splits and reorders what it reads ahead by itself, so an established stream accepts
// reads a little before and after its end. Not thread-safe.
#pragma once

#include <array>
#include <cstdint>

#include "absl/container/inlined_vector.h"

namespace millrace::vfs {

struct Range {
  uint64_t offset = 0;
  uint64_t size = 0;
};

class ReadPattern {
 public:
  // Most read ahead of a stream. 64 MiB: 16 connections with a GET of 4 MiB each.
  static constexpr uint64_t kWindowMax = 64 << 20;

  // What to fetch ahead now that [offset, offset + size) is read; nothing beyond `file_size`, at
  // most `window_max` ahead.
  absl::InlinedVector<Range, 4> OnRead(uint64_t offset, uint64_t size, uint64_t file_size,
                                       uint64_t window_max);

  // The last read was neither of a stream nor of a series.
  bool random() const { return random_; }

 private:
  struct Stream {
    uint64_t next = 0;      // Where the stream will go on.
    uint64_t ahead = 0;     // Asked for up to here.
    uint64_t window = 0;    // 0: not known to be sequential yet.
    uint64_t last_use = 0;  // For replacement.
  };
  Stream* Match(uint64_t offset, uint64_t size);
  Stream* Replace(uint64_t offset, uint64_t size);

  // Readers of one handle that go through a file at several places (a loader's threads).
  std::array<Stream, 4> streams_ = {};
  uint64_t reads_ = 0;
  bool random_ = false;

  uint64_t last_offset_ = 0;
  int64_t stride_ = 0;
  int stride_repeats_ = 0;
};

}  // namespace millrace::vfs
