// What every FileIo promises (common/io/file_io.h), asked of each implementation and of the faulty
// decorator without a plan.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/base/errno_status.h"
#include "common/base/mutex.h"
#include "common/base/unique_fd.h"
#include "common/io/blocking_read.h"
#include "common/io/file_io.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"
#include "test/support/faulty_file_io.h"

namespace millrace::io {
namespace {

using ::millrace::testing::ContentOf;
using ::millrace::testing::FaultyFileIo;
using ::millrace::testing::TemporaryDirectory;

struct Maker {
  const char* name;
  std::function<absl::StatusOr<std::unique_ptr<FileIo>>()> make;
};

// Owns what it decorates.
class Decorated : public FileIo {
 public:
  explicit Decorated(std::unique_ptr<FileIo> base) : base_(std::move(base)), faulty_(base_.get()) {}
  absl::StatusOr<absl::optional<size_t>> ReadNow(int fd, uint64_t offset,
                                                 absl::Span<char> buffer) override {
    return faulty_.ReadNow(fd, offset, buffer);
  }
  void Read(int fd, uint64_t offset, absl::Span<char> buffer, ReadDone done) override {
    faulty_.Read(fd, offset, buffer, std::move(done));
  }
  absl::Status Write(int fd, uint64_t offset, absl::Span<const char> data) override {
    return faulty_.Write(fd, offset, data);
  }
  absl::Status Sync(int fd) override { return faulty_.Sync(fd); }

 private:
  std::unique_ptr<FileIo> base_;
  FaultyFileIo faulty_;
};

class FileIoContractTest : public ::testing::TestWithParam<Maker> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<FileIo>> made = GetParam().make();
    if (!made.ok() && made.status().code() == absl::StatusCode::kUnavailable) {
      GTEST_SKIP() << made.status().message();
    }
    ASSERT_TRUE(made.ok()) << made.status();
    file_io_ = *std::move(made);
    fd_ = base::UniqueFd(
        open((directory_.path() + "/f").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_TRUE(fd_.valid());
  }

  void Fill(uint64_t size) {
    const std::string content = ContentOf("f", "1", 0, size);
    ASSERT_TRUE(file_io_->Write(fd_.get(), 0, content).ok());
  }
  absl::StatusOr<std::string> Read(int fd, uint64_t offset, size_t size) {
    std::string buffer(size, '\0');
    const absl::StatusOr<size_t> got =
        ReadAndWait(*file_io_, fd, offset, absl::MakeSpan(buffer.data(), buffer.size()));
    if (!got.ok()) return got.status();
    buffer.resize(*got);
    return buffer;
  }

  TemporaryDirectory directory_;
  base::UniqueFd fd_;
  std::unique_ptr<FileIo> file_io_;
};

TEST_P(FileIoContractTest, ReadsWhatWasWritten) {
  Fill(1'000'000);
  EXPECT_EQ(*Read(fd_.get(), 0, 1'000'000), ContentOf("f", "1", 0, 1'000'000));
  EXPECT_EQ(*Read(fd_.get(), 12345, 678), ContentOf("f", "1", 12345, 678));
}

TEST_P(FileIoContractTest, ReadsLessOnlyAtTheEnd) {
  Fill(10'000);
  EXPECT_EQ(*Read(fd_.get(), 9'000, 5'000), ContentOf("f", "1", 9'000, 1'000));
  EXPECT_EQ(*Read(fd_.get(), 10'000, 10), "");
  EXPECT_EQ(*Read(fd_.get(), 20'000, 10), "");
  EXPECT_EQ(*Read(fd_.get(), 0, 0), "");
}

TEST_P(FileIoContractTest, ReadNowFindsWhatWasJustWritten) {
  Fill(300'000);
  std::string buffer(400'000, '\0');
  const auto got = file_io_->ReadNow(fd_.get(), 1, absl::MakeSpan(buffer.data(), buffer.size()));
  ASSERT_TRUE(got.ok()) << got.status();
  ASSERT_TRUE(got->has_value());
  EXPECT_EQ(**got, 299'999u);
  EXPECT_EQ(buffer.substr(0, **got), ContentOf("f", "1", 1, 299'999));
}

TEST_P(FileIoContractTest, ReadNowDoesNotWaitForADisk) {
  Fill(4'000'000);
  ASSERT_TRUE(file_io_->Sync(fd_.get()).ok());
  ASSERT_EQ(posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
  std::string buffer(1000, '\0');
  const auto got =
      file_io_->ReadNow(fd_.get(), 2'000'000, absl::MakeSpan(buffer.data(), buffer.size()));
  ASSERT_TRUE(got.ok()) << got.status();
  // A tmpfs keeps everything in memory: then the bytes must be right.
  if (got->has_value()) {
    EXPECT_EQ(buffer, ContentOf("f", "1", 2'000'000, 1000));
  }
  EXPECT_EQ(*Read(fd_.get(), 2'000'000, 1000), ContentOf("f", "1", 2'000'000, 1000));
}

TEST_P(FileIoContractTest, WritesPiecesOneBehindTheOther) {
  const std::string content = ContentOf("f", "1", 0, 300'000);
  // More pieces than one system call takes, an empty one among them.
  std::vector<absl::Span<const char>> pieces = {{content.data(), 0}};
  for (size_t at = 0; at < content.size(); at += 100) pieces.push_back({&content[at], 100});
  ASSERT_TRUE(file_io_->WritePieces(fd_.get(), 50, pieces).ok());
  EXPECT_EQ(*Read(fd_.get(), 50, 300'001), content);
  EXPECT_EQ(base::ErrnoOf(file_io_->WritePieces(-1, 0, pieces)), EBADF);
}

TEST_P(FileIoContractTest, WritesSparsely) {
  const std::string data = "data";
  ASSERT_TRUE(file_io_->Write(fd_.get(), 1'000'000, data).ok());
  EXPECT_EQ(*Read(fd_.get(), 999'998, 100), std::string(2, '\0') + "data");
}

TEST_P(FileIoContractTest, FailuresCarryTheErrno) {
  const base::UniqueFd read_only(open((directory_.path() + "/f").c_str(), O_RDONLY | O_CLOEXEC));
  const absl::Status written = file_io_->Write(read_only.get(), 0, std::string("x"));
  EXPECT_EQ(base::ErrnoOf(written), EBADF);
  const base::UniqueFd write_only(open((directory_.path() + "/f").c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(base::ErrnoOf(Read(write_only.get(), 0, 1).status()), EBADF);
  char byte;
  EXPECT_EQ(
      base::ErrnoOf(file_io_->ReadNow(write_only.get(), 0, absl::MakeSpan(&byte, 1)).status()),
      EBADF);
}

TEST_P(FileIoContractTest, EveryReadIsDoneOnce) {
  Fill(1'000'000);
  constexpr int kThreads = 4;
  constexpr int kReads = 500;  // More in flight than any ring or pool takes.
  std::atomic<int> done{0};
  std::atomic<int> wrong{0};
  base::Mutex mutex;
  base::CondVar all_done;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kReads; ++i) {
        const uint64_t offset = static_cast<uint64_t>((i * 7919 + t * 104729) % 990'000);
        auto buffer = std::make_unique<std::string>(4096, '\0');
        const absl::Span<char> into(buffer->data(), buffer->size());
        file_io_->Read(fd_.get(), offset, into,
                       [&, offset, buffer = std::move(buffer)](const absl::StatusOr<size_t>& got) {
                         if (!got.ok() || *buffer != ContentOf("f", "1", offset, 4096)) ++wrong;
                         base::MutexLock lock(&mutex);
                         if (++done == kThreads * kReads) all_done.NotifyAll();
                       });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  base::MutexLock lock(&mutex);
  while (done != kThreads * kReads) all_done.Wait(&mutex);
  EXPECT_EQ(wrong, 0);
}

TEST_P(FileIoContractTest, EndsOnlyAfterItsReads) {
  Fill(1'000'000);
  std::atomic<int> done{0};
  std::vector<std::string> buffers(100, std::string(10'000, '\0'));
  for (std::string& buffer : buffers) {
    file_io_->Read(fd_.get(), 0, absl::MakeSpan(buffer.data(), buffer.size()),
                   [&](const absl::StatusOr<size_t>&) { ++done; });
  }
  file_io_.reset();
  EXPECT_EQ(done, 100);
}

INSTANTIATE_TEST_SUITE_P(
    All, FileIoContractTest,
    ::testing::Values(
        Maker{"Posix", [] { return absl::StatusOr<std::unique_ptr<FileIo>>(NewPosixFileIo(3)); }},
        // Without a thread every read is the caller's.
        Maker{"PosixNoThreads",
              [] { return absl::StatusOr<std::unique_ptr<FileIo>>(NewPosixFileIo(0)); }},
        Maker{"Uring", [] { return NewUringFileIo(64); }},
        Maker{"UringTiny", [] { return NewUringFileIo(1); }},
        Maker{"Faulty",
              [] {
                return absl::StatusOr<std::unique_ptr<FileIo>>(
                    std::make_unique<Decorated>(NewPosixFileIo(2)));
              }}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace millrace::io
