// Answers reads of complete files whose bytes are in the page cache, without a copy through this
// process: the cache file's pages go to the kernel by way of a pipe.
//
// Why beside the common path: an epoch over small files is one READ of some 100 KB for each. Of the
// processor time that one took here, a fifth went into copying the file's pages into a buffer, and
// a tenth into walking that buffer's pages again for the reply.
//
// One for each serving thread; not thread-safe.
#pragma once

#define FUSE_USE_VERSION 318
#include <fuse_lowlevel.h>

#include "common/base/unique_fd.h"
#include "fuse/vfs/vfs.h"

namespace millrace::adapter {

class SplicedReads {
 public:
  // `device` is the session's /dev/fuse.
  explicit SplicedReads(int device) : device_(device) { MakePipe(); }

  // True: `request`, as it came from the device, was such a read and is answered. False: nothing
  // happened. `vfs` may be null as long as no INIT was seen.
  bool Answer(vfs::Vfs* vfs, const fuse_buf& request);

 private:
  // Also empties it. Without a pipe nothing is answered here.
  void MakePipe();
  bool FillPipe(const void* header, size_t header_size, int fd, uint64_t offset, uint64_t size);

  const int device_;
  base::UniqueFd from_;
  base::UniqueFd to_;
  uint64_t pages_max_ = 0;  // Of a file, beside the header's.
};

}  // namespace millrace::adapter
