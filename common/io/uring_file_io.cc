// FileIo whose waiting reads go through one io_uring, reaped by one thread.
//
// Any thread submits, under a mutex that is held for one io_uring_enter (about 1 us): the ring
// cannot be SINGLE_ISSUER, and a queue with a submitting thread would add a context switch to
// every read. Writes and syncs block and need no ring.
#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/mutex.h"
#include "common/io/file_io.h"
#include "common/io/system_calls.h"

namespace millrace::io {
namespace {

// A kernel short of memory refuses a submission for moments; a longer refusal is by-passed.
constexpr int kSubmitTries = 64;

class UringFileIo : public FileIo {
 public:
  // Takes over an initialised ring.
  UringFileIo(const io_uring& ring, unsigned entries)
      : ring_(ring), in_flight_max_(entries), reaper_([this] { Reap(); }) {}

  ~UringFileIo() override {
    {
      base::MutexLock lock(&mutex_);
      stopping_ = true;
      // Wakes the reaper; it leaves when the last read is done.
      io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
      io_uring_prep_nop(sqe);
      io_uring_sqe_set_data(sqe, nullptr);
      while (io_uring_submit(&ring_) < 0) std::this_thread::yield();
    }
    reaper_.join();
    io_uring_queue_exit(&ring_);
  }

  absl::StatusOr<absl::optional<size_t>> ReadNow(int fd, uint64_t offset,
                                                 absl::Span<char> buffer) override {
    return ReadCached(fd, offset, buffer);
  }

  void Read(int fd, uint64_t offset, absl::Span<char> buffer, ReadDone done) override {
    Start(new Request{fd, offset, buffer, 0, std::move(done)});
  }

  absl::Status Write(int fd, uint64_t offset, absl::Span<const char> data) override {
    return WriteFully(fd, offset, data);
  }
  absl::Status WritePieces(int fd, uint64_t offset, Pieces pieces) override {
    return WritePiecesFully(fd, offset, pieces);
  }

  absl::Status Sync(int fd) override { return SyncData(fd); }

 private:
  struct Request {
    int fd;
    uint64_t offset;
    absl::Span<char> buffer;
    size_t read;  // Bytes that arrived already.
    ReadDone done;
  };

  // Submits the request, or reads at once when the ring is full or refuses. Takes `request` over.
  void Start(Request* request) {
    if (!Submit(request)) FinishBlocking(request);
  }

  bool Submit(Request* request) {
    base::MutexLock lock(&mutex_);
    if (in_flight_ >= in_flight_max_) return false;
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return false;
    const absl::Span<char> rest = request->buffer.subspan(request->read);
    // One request moves at most what its 32-bit result can tell.
    const unsigned length = static_cast<unsigned>(std::min<size_t>(rest.size(), 1u << 30));
    io_uring_prep_read(sqe, request->fd, rest.data(), length, request->offset + request->read);
    io_uring_sqe_set_data(sqe, request);
    for (int attempt = 0; attempt < kSubmitTries; ++attempt) {
      if (io_uring_submit(&ring_) >= 0) {
        ++in_flight_;
        return true;
      }
      std::this_thread::yield();
    }
    // The entry stays in the queue until the next submission: make it harmless.
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data(sqe, nullptr);
    return false;
  }

  void Reap() {
    for (;;) {
      io_uring_cqe* cqe = nullptr;
      if (io_uring_wait_cqe(&ring_, &cqe) != 0) continue;  // EINTR.
      auto* request = static_cast<Request*>(io_uring_cqe_get_data(cqe));
      const int result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);
      bool last;
      {
        // Also orders this thread after the one that filled in the request.
        base::MutexLock lock(&mutex_);
        if (request != nullptr) --in_flight_;
        last = stopping_ && in_flight_ == 0;
      }
      if (request != nullptr) Handle(request, result);
      if (last) return;
    }
  }

  void Handle(Request* request, int result) {
    if (result == -EINTR || result == -EAGAIN) {
      FinishBlocking(request);
    } else if (result < 0) {
      Finish(request, base::ErrnoStatus(-result, "io_uring read"));
    } else {
      request->read += static_cast<size_t>(result);
      if (result == 0 || request->read == request->buffer.size()) {
        Finish(request, request->read);
      } else {
        // Short: the end of the file, or a read the kernel cut. The rest is small or at the end,
        // and a second round through the ring would be lost on a ring that is stopping.
        FinishBlocking(request);
      }
    }
  }

  void FinishBlocking(Request* request) {
    absl::StatusOr<size_t> rest = ReadFully(request->fd, request->offset + request->read,
                                            request->buffer.subspan(request->read));
    if (rest.ok()) *rest += request->read;
    Finish(request, std::move(rest));
  }

  void Finish(Request* request, absl::StatusOr<size_t> result) {
    std::move(request->done)(std::move(result));
    delete request;
  }

  base::Mutex mutex_;  // Serialises the submission side of `ring_`; the reaper owns the other.
  io_uring ring_;
  const unsigned in_flight_max_;  // Completions always fit in the ring's other half.
  unsigned in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread reaper_;  // Last: it uses everything above.
};

absl::string_view LikelyCause(int error) {
  switch (error) {
    case ENOSYS:
      return "the kernel has no io_uring";
    case EPERM:
    case EACCES:
      return "a seccomp profile or the sysctl kernel.io_uring_disabled forbids it";
    case ENOMEM:
      return "RLIMIT_MEMLOCK is too small";
    case EMFILE:
    case ENFILE:
      return "no descriptor is left (RLIMIT_NOFILE)";
    default:
      return "the kernel refused its parameters";
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<FileIo>> NewUringFileIo(unsigned entries) {
  io_uring ring;
  io_uring_params params = {};
  params.flags = IORING_SETUP_CLAMP;
  const int result = io_uring_queue_init_params(entries, &ring, &params);
  if (result < 0) {
    return base::WithErrno(
        absl::UnavailableError(absl::StrCat("io_uring_setup: error ", -result,
                                            "; likely cause: ", LikelyCause(-result))),
        -result);
  }
  return std::unique_ptr<FileIo>(std::make_unique<UringFileIo>(ring, params.sq_entries));
}

}  // namespace millrace::io
