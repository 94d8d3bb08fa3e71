#include "fuse/adapter/spliced_reads.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

#include "common/base/clock.h"
#include "common/base/page_cache.h"

namespace millrace::adapter {
namespace {

// Below this a copy is cheaper than the two calls more that a pipe takes.
constexpr uint64_t kSizeMin = 32 << 10;

// A request of 1 MiB and its header need more than 1 MiB of pipe, which takes CAP_SYS_RESOURCE
// (fs.pipe-max-size); with 1 MiB all smaller requests are served, and with the 64 KiB that a user
// with many pipes gets the smallest.
constexpr int kPipeSizes[] = {2 << 20, 1 << 20};

}  // namespace

void SplicedReads::MakePipe() {
  pages_max_ = 0;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return;
  from_ = base::UniqueFd(ends[0]);
  to_ = base::UniqueFd(ends[1]);
  for (const int size : kPipeSizes) {
    if (fcntl(to_.get(), F_SETPIPE_SZ, size) >= 0) break;
  }
  const int size = fcntl(to_.get(), F_GETPIPE_SZ);
  if (size > 0) pages_max_ = base::PagesOf(0, static_cast<uint64_t>(size)) - 1;
}

bool SplicedReads::Answer(vfs::Vfs* vfs, const fuse_buf& request) {
  const auto* header = static_cast<const fuse_in_header*>(request.mem);
  if (header->opcode != FUSE_READ || vfs == nullptr) return false;
  const auto* read = reinterpret_cast<const fuse_read_in*>(header + 1);
  if (read->size < kSizeMin || pages_max_ == 0) return false;
  const absl::Duration start = base::RealClock()->Monotonic();
  const absl::optional<vfs::Vfs::Hit> hit = vfs->FindHit(header->nodeid, read->offset, read->size);
  if (!hit.has_value() || hit->size < kSizeMin) return false;
  const uint64_t pages = base::PagesOf(read->offset, hit->size);
  // The disk must not be waited for here: a splice from a file knows no RWF_NOWAIT.
  if (pages > pages_max_ || base::CachedPages(hit->data->fd(), read->offset, hit->size) != pages) {
    return false;
  }
  const fuse_out_header reply = {
      .len = static_cast<uint32_t>(sizeof(reply) + hit->size),
      .error = 0,
      .unique = header->unique,
  };
  if (!FillPipe(&reply, sizeof(reply), hit->data->fd(), read->offset, hit->size)) {
    MakePipe();
    return false;
  }
  // ENOENT: the reader was interrupted and waits no more.
  if (splice(from_.get(), nullptr, device_, nullptr, reply.len, 0) < 0 && errno != ENOENT) {
    MakePipe();
    return false;
  }
  vfs->CountHit(*hit, base::RealClock()->Monotonic() - start);
  return true;
}

// The header's page is lent to the pipe, and back when the device has taken it.
bool SplicedReads::FillPipe(const void* header, size_t header_size, int fd, uint64_t offset,
                            uint64_t size) {
  const iovec piece = {const_cast<void*>(header), header_size};
  if (vmsplice(to_.get(), &piece, 1, SPLICE_F_NONBLOCK) != static_cast<ssize_t>(header_size)) {
    return false;
  }
  auto position = static_cast<loff_t>(offset);
  while (size > 0) {
    const ssize_t moved =
        splice(fd, &position, to_.get(), nullptr, size, SPLICE_F_NONBLOCK | SPLICE_F_MORE);
    if (moved <= 0) return false;  // Truncated, or a bad sector: the common path finds out.
    size -= static_cast<uint64_t>(moved);
  }
  return true;
}

}  // namespace millrace::adapter
