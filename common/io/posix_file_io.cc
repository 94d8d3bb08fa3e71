// FileIo over plain system calls and a small pool of threads.
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/mutex.h"
#include "common/io/file_io.h"
#include "common/io/system_calls.h"

namespace millrace::io {
namespace {

// Reads that wait for a thread. Beyond this the caller reads for itself: a disk this far behind
// gains nothing from a longer queue.
constexpr size_t kQueueMax = 1024;

class PosixFileIo : public FileIo {
 public:
  explicit PosixFileIo(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }

  ~PosixFileIo() override {
    {
      base::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    wake_.NotifyAll();
    for (std::thread& thread : threads_) thread.join();
  }

  absl::StatusOr<absl::optional<size_t>> ReadNow(int fd, uint64_t offset,
                                                 absl::Span<char> buffer) override {
    return ReadCached(fd, offset, buffer);
  }

  void Read(int fd, uint64_t offset, absl::Span<char> buffer, ReadDone done) override {
    {
      base::MutexLock lock(&mutex_);
      if (queue_.size() < kQueueMax && !threads_.empty()) {
        queue_.push_back({fd, offset, buffer, std::move(done)});
        wake_.NotifyOne();
        return;
      }
    }
    std::move(done)(ReadFully(fd, offset, buffer));
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
    ReadDone done;
  };

  // Leaves when stopping and the queue is empty: every `done` runs.
  void Work() {
    while (absl::optional<Request> request = Next()) {
      std::move(request->done)(ReadFully(request->fd, request->offset, request->buffer));
    }
  }

  absl::optional<Request> Next() {
    base::MutexLock lock(&mutex_);
    while (queue_.empty()) {
      if (stopping_) return absl::nullopt;
      wake_.Wait(&mutex_);
    }
    Request request = std::move(queue_.front());
    queue_.pop_front();
    return request;
  }

  base::Mutex mutex_;
  base::CondVar wake_;
  std::deque<Request> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;  // Constant after construction.
};

}  // namespace

std::unique_ptr<FileIo> NewPosixFileIo(int threads) {
  return std::make_unique<PosixFileIo>(threads);
}

}  // namespace millrace::io
