#include "fuse/vfs/read_pattern.h"

#include <algorithm>

namespace millrace::vfs {
namespace {

// What the first read of a stream that starts a file is worth, and the second of any other.
constexpr uint64_t kWindowFirst = 4 << 20;
// How far from its end an established stream still recognises its reads: the kernel keeps a few
// requests of 1 MiB in flight and they reach us in any order.
constexpr uint64_t kReorder = 8 << 20;
// How much a second read may skip and still begin a stream.
constexpr uint64_t kGap = 128 << 10;
// What is asked for ends at a multiple of this, so that it is fetched with whole GETs (object.h,
// kFlightSize): ending anywhere made 869 requests of what takes 512.
constexpr uint64_t kStep = 4 << 20;
constexpr int kStrideAhead = 4;

}  // namespace

ReadPattern::Stream* ReadPattern::Match(uint64_t offset, uint64_t size) {
  for (Stream& stream : streams_) {
    if (stream.last_use == 0) continue;
    const bool established = stream.window > 0;
    const uint64_t before = established ? kReorder : 0;
    const uint64_t after = established ? kReorder : kGap;
    if (offset + before >= stream.next && offset <= stream.next + after) {
      stream.next = std::max(stream.next, offset + size);
      return &stream;
    }
  }
  return nullptr;
}

ReadPattern::Stream* ReadPattern::Replace(uint64_t offset, uint64_t size) {
  Stream* const oldest =
      std::min_element(streams_.begin(), streams_.end(),
                       [](const Stream& a, const Stream& b) { return a.last_use < b.last_use; });
  *oldest = Stream{offset + size, offset + size, 0, 0};
  return oldest;
}

absl::InlinedVector<Range, 4> ReadPattern::OnRead(uint64_t offset, uint64_t size,
                                                  uint64_t file_size, uint64_t window_max) {
  absl::InlinedVector<Range, 4> ahead;
  ++reads_;
  Stream* stream = Match(offset, size);
  const bool continues = stream != nullptr;
  if (!continues) stream = Replace(offset, size);
  stream->last_use = reads_;
  random_ = false;
  if (continues || offset == 0) {
    stride_repeats_ = 0;
    last_offset_ = offset;
    window_max = std::min(window_max, kWindowMax);
    stream->window = std::min(window_max, std::max(kWindowFirst, stream->window * 2));
    uint64_t end = stream->next + stream->window;
    const uint64_t step = std::min(kStep, stream->window);
    end = end >= file_size ? file_size : end / step * step;
    const uint64_t begin = std::max(stream->next, stream->ahead);
    if (end > begin) {
      ahead.push_back({begin, end - begin});
      stream->ahead = end;
    }
    return ahead;
  }
  const int64_t stride = static_cast<int64_t>(offset - last_offset_);
  stride_repeats_ = (reads_ > 1 && stride == stride_ && stride != 0) ? stride_repeats_ + 1 : 0;
  stride_ = stride;
  last_offset_ = offset;
  random_ = stride_repeats_ < 2;
  if (!random_) {
    for (int step = 1; step <= kStrideAhead; ++step) {
      const uint64_t next = offset + static_cast<uint64_t>(stride * step);
      if (next >= file_size) break;
      ahead.push_back({next, std::min(size, file_size - next)});
    }
  }
  return ahead;
}

}  // namespace millrace::vfs
