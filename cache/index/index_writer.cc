#include "cache/index/index_writer.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/io/system_calls.h"

namespace millrace::index {
namespace {

constexpr size_t kBufferBytes = 256 * 1024;

void PutWord(char* file, uint64_t offset, uint64_t value) {
  std::memcpy(file + offset, &value, sizeof(value));
}

// The first empty slot for the hash. There is one: a table has more slots than keys.
uint64_t EmptySlot(const char* file, uint64_t table, uint64_t slot_bytes, uint64_t slots,
                   uint64_t hash) {
  uint64_t at = FirstSlot(hash, slots);
  while (true) {
    uint64_t value = 0;
    std::memcpy(&value, file + table + slot_bytes * at, sizeof(value));
    if (value == 0) return table + slot_bytes * at;
    at = at + 1 == slots ? 0 : at + 1;
  }
}

// A file mapped for writing.
class Mapping {
 public:
  Mapping(int fd, size_t size)
      : size_(size), memory_(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) {}
  ~Mapping() {
    if (memory_ != MAP_FAILED) munmap(memory_, size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  bool ok() const { return memory_ != MAP_FAILED; }
  char* data() const { return static_cast<char*>(memory_); }

 private:
  const size_t size_;
  void* const memory_;
};

}  // namespace

RecordWriter::RecordWriter(int fd) : fd_(fd) { buffer_.reserve(kBufferBytes + kPathBytesMax); }

void RecordWriter::Flush() {
  if (status_.ok()) status_ = io::WriteFully(fd_, written_, absl::MakeConstSpan(buffer_));
  written_ += buffer_.size();
  buffer_.clear();
}

void RecordWriter::EndDirectory() {
  if (inside_) buffer_.push_back(static_cast<char>(kEndOfDirectory));
  inside_ = false;
}

void RecordWriter::BeginDirectory(absl::string_view path) {
  EndDirectory();
  AppendText(path, &buffer_);
  inside_ = true;
  ++directories_;
}

void RecordWriter::Add(const EntryView& entry) {
  buffer_.append(entry.raw.data(), entry.raw.size());
  ++entries_;
  if (buffer_.size() >= kBufferBytes) Flush();
}

absl::Status RecordWriter::Finish() {
  EndDirectory();
  Flush();
  return status_;
}

// The tables follow from the records: whoever has the same records has the same tables.
absl::Status IndexWriter::FillTables(const IndexIdentity& identity, const Layout& layout,
                                     char* file) const {
  RecordCursor cursor(absl::string_view(file + kHeaderSize, records_.bytes()));
  while (true) {
    ASSIGN_OR_RETURN(const bool more_directories, cursor.NextDirectory());
    if (!more_directories) return absl::OkStatus();
    const uint64_t directory = kHeaderSize + cursor.directory_offset();
    while (true) {
      ASSIGN_OR_RETURN(const bool more, cursor.NextEntry());
      if (!more) break;
      const uint64_t hash = base::SeededHash64(cursor.entry().name, identity.seed ^ directory);
      PutWord(file, EmptySlot(file, layout.entry_table, 8, layout.entry_slots, hash),
              MakeSlot(hash, kHeaderSize + cursor.entry_offset()));
    }
    const uint64_t hash = base::SeededHash64(cursor.directory(), identity.seed);
    const uint64_t slot = EmptySlot(file, layout.directory_table, 16, layout.directory_slots, hash);
    PutWord(file, slot, MakeSlot(hash, directory));
    PutWord(file, slot + 8, kHeaderSize + cursor.offset() - directory);
  }
}

absl::StatusOr<std::shared_ptr<const Index>> IndexWriter::Finish(const IndexIdentity& identity) {
  RETURN_IF_ERROR(records_.Finish());
  if (records_.bytes() > kRecordBytesMax - kHeaderSize) {
    return absl::ResourceExhaustedError("index: more than it can hold");
  }
  IndexHeader header;
  header.version = identity.version;
  header.seed = identity.seed;
  header.source_hash = identity.source_hash;
  header.entries = records_.entries();
  header.directories = records_.directories();
  header.record_bytes = records_.bytes();
  const Layout layout = LayoutOf(header.entries, header.directories, header.record_bytes);
  header.file_bytes = layout.file_bytes;
  // Room for all of it before it is written through the mapping, where a full disk is a SIGBUS.
  if (const int error = posix_fallocate(fd_.get(), 0, static_cast<off_t>(layout.file_bytes));
      error != 0) {
    return base::ErrnoStatus(error, "index: fallocate");
  }
  {
    const Mapping file(fd_.get(), layout.file_bytes);
    if (!file.ok()) return base::ErrnoStatus(errno, "index: mmap");
    RETURN_IF_ERROR(FillTables(identity, layout, file.data()));
    header.content = base::ContentHash128(
        absl::string_view(file.data() + kHeaderSize, layout.file_bytes - kHeaderSize));
    // Last: without it the file is none.
    std::memcpy(file.data(), EncodeIndexHeader(header).data(), kHeaderSize);
  }
  return Index::Open(std::move(fd_));
}

absl::StatusOr<base::UniqueFd> NewUnnamedFile(const std::string& directory) {
  base::UniqueFd fd(directory.empty()
                        ? memfd_create("millrace-index", MFD_CLOEXEC | MFD_ALLOW_SEALING)
                        : open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!fd.valid() && !directory.empty() && (errno == EOPNOTSUPP || errno == EISDIR)) {
    std::string name = absl::StrCat(directory, "/unnamed.XXXXXX");
    fd = base::UniqueFd(mkostemp(name.data(), O_CLOEXEC));
    if (fd.valid()) unlink(name.c_str());
  }
  if (!fd.valid()) {
    return base::ErrnoStatus(
        errno, absl::StrCat("index: make a file in ", directory.empty() ? "memory" : directory));
  }
  return fd;
}

}  // namespace millrace::index
