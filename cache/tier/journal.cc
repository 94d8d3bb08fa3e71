#include "cache/tier/journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "common/base/crc32c.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace millrace::tier {
namespace {

// Written without waiting for the delay once this much is pending.
constexpr size_t kFlushBytes = 64 * 1024;
// More than this is pending only when the disk is far behind: Append waits.
constexpr size_t kPendingMax = 8 * 1024 * 1024;
// A smaller journal is not worth rewriting.
constexpr uint64_t kRewriteSizeMin = 1024 * 1024;
// A disk that refuses the journal is asked again ever more rarely, up to this.
constexpr absl::Duration kRetryDelayMax = absl::Seconds(1);
constexpr size_t kSnapshotPiece = 256 * 1024;

// --- Encoding -----------------------------------------------------------------------------------

template <typename T>
void PutNumber(T value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void PutText(absl::string_view text, std::string* out) {
  PutNumber(static_cast<uint32_t>(text.size()), out);
  out->append(text.data(), text.size());
}

void PutRef(const FileRef& file, std::string* out) {
  PutNumber(file.source, out);
  out->append(reinterpret_cast<const char*>(file.id.bytes.data()), file.id.bytes.size());
}

uint32_t RecordCrc(const RecordHeader& header, absl::string_view payload) {
  const absl::string_view covered(reinterpret_cast<const char*>(&header.type),
                                  offsetof(RecordHeader, crc) - offsetof(RecordHeader, type));
  return base::Crc32c(base::Crc32c(0, covered), payload);
}

// Makes room for a header; the payload is appended behind it, and EndRecord fills it in.
size_t BeginRecord(std::string* out) {
  const size_t start = out->size();
  out->append(sizeof(RecordHeader), '\0');
  return start;
}

void EndRecord(size_t start, RecordType type, uint8_t flags, std::string* out) {
  const size_t payload_start = start + sizeof(RecordHeader);
  RecordHeader header = {};
  header.magic = kRecordMagic;
  header.type = static_cast<uint8_t>(type);
  header.flags = flags;
  header.length = static_cast<uint32_t>(out->size() - payload_start);
  header.crc = RecordCrc(header, absl::string_view(*out).substr(payload_start));
  std::memcpy(out->data() + start, &header, sizeof(header));
  const size_t length = out->size() - start;
  out->append((kRecordAlignment - length % kRecordAlignment) % kRecordAlignment, '\0');
}

// --- Decoding -----------------------------------------------------------------------------------

// Takes numbers and texts off the front of a payload. After a failure every call fails.
class PayloadReader {
 public:
  explicit PayloadReader(absl::string_view payload) : rest_(payload) {}

  template <typename T>
  T Number() {
    T value{};
    const absl::string_view bytes = Bytes(sizeof(T));
    if (ok_) std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }

  absl::string_view Text() { return Bytes(Number<uint32_t>()); }

  FileRef Ref() {
    FileRef file;
    file.source = Number<uint64_t>();
    const absl::string_view id = Bytes(file.id.bytes.size());
    if (ok_) std::memcpy(file.id.bytes.data(), id.data(), id.size());
    return file;
  }

  absl::string_view Bytes(size_t count) {
    if (!ok_ || count > rest_.size()) {
      ok_ = false;
      return absl::string_view();
    }
    const absl::string_view bytes = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return bytes;
  }

  // Everything was well-formed and nothing is left over.
  bool Complete() const { return ok_ && rest_.empty(); }

 private:
  absl::string_view rest_;
  bool ok_ = true;
};

}  // namespace

void AppendSession(absl::string_view boot_id, std::string* out) {
  const size_t start = BeginRecord(out);
  PutText(boot_id, out);
  EndRecord(start, RecordType::kSession, 0, out);
}

void AppendClean(std::string* out) { EndRecord(BeginRecord(out), RecordType::kClean, 0, out); }

void AppendSource(uint64_t hash, absl::string_view url, std::string* out) {
  const size_t start = BeginRecord(out);
  PutNumber(hash, out);
  PutText(url, out);
  EndRecord(start, RecordType::kSource, 0, out);
}

void AppendFile(const FileRef& file, uint64_t size, absl::string_view path,
                absl::string_view version, std::string* out) {
  const size_t start = BeginRecord(out);
  PutRef(file, out);
  PutNumber(size, out);
  PutText(path, out);
  PutText(version, out);
  EndRecord(start, RecordType::kFile, 0, out);
}

void AppendBlocks(const FileRef& file, uint64_t first, absl::Span<const uint32_t> crcs,
                  bool unverified, std::string* out) {
  while (!crcs.empty()) {
    const size_t count = std::min<size_t>(crcs.size(), kBlocksPerRecordMax);
    const size_t start = BeginRecord(out);
    PutRef(file, out);
    PutNumber(first, out);
    out->append(reinterpret_cast<const char*>(crcs.data()), count * sizeof(uint32_t));
    EndRecord(start, RecordType::kBlocks, unverified ? kFlagUnverified : 0, out);
    first += count;
    crcs.remove_prefix(count);
  }
}

void AppendDropped(const FileRef& file, uint64_t first, uint64_t count, std::string* out) {
  const size_t start = BeginRecord(out);
  PutRef(file, out);
  PutNumber(first, out);
  PutNumber(count, out);
  EndRecord(start, RecordType::kDropped, 0, out);
}

void AppendRemoved(const FileRef& file, std::string* out) {
  const size_t start = BeginRecord(out);
  PutRef(file, out);
  EndRecord(start, RecordType::kRemoved, 0, out);
}

std::string EncodeJournalHeader() {
  JournalHeader header = {};
  std::memcpy(header.magic, kJournalMagic, sizeof(header.magic));
  header.version = kJournalVersion;
  return std::string(reinterpret_cast<const char*>(&header), sizeof(header));
}

void JournalParser::Feed(absl::string_view bytes) {
  carry_.append(bytes.data(), bytes.size());
  Parse(false);
}

JournalReport JournalParser::Finish() {
  Parse(true);
  if (report_.usable) report_.torn_bytes = position_ - report_.valid_end;
  return report_;
}

bool JournalParser::ParseHeader() {
  JournalHeader header;
  if (carry_.size() < sizeof(header)) return false;
  std::memcpy(&header, carry_.data(), sizeof(header));
  header_done_ = true;
  position_ = report_.valid_end = sizeof(header);
  carry_.erase(0, sizeof(header));
  if (std::memcmp(header.magic, kJournalMagic, sizeof(header.magic)) != 0) return true;
  report_.version = header.version;
  report_.usable = header.version == kJournalVersion;
  return true;
}

void JournalParser::Parse(bool last) {
  if (!header_done_ && !ParseHeader()) return;
  if (!report_.usable) {
    carry_.clear();
    return;
  }
  const absl::string_view bytes(carry_);
  size_t at = 0;
  while (at < bytes.size()) {
    size_t size = 0;
    const Outcome outcome = ParseRecord(bytes.substr(at), &size);
    if (outcome == Outcome::kNeedMore && !last) break;
    if (outcome == Outcome::kRecord) {
      if (std::exchange(in_damage_, false)) ++report_.damaged_regions;
      ++report_.records;
      at += size;
      report_.valid_end = position_ + at;
    } else {
      // Not a record: the next one may start at any aligned place.
      in_damage_ = true;
      at = std::min(bytes.size(), at + kRecordAlignment);
    }
  }
  position_ += at;
  carry_.erase(0, at);
}

JournalParser::Outcome JournalParser::ParseRecord(absl::string_view bytes, size_t* size) {
  RecordHeader header;
  if (bytes.size() < sizeof(header)) return Outcome::kNeedMore;
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kRecordMagic || header.length > kPayloadMax) return Outcome::kNotARecord;
  const size_t unpadded = sizeof(header) + header.length;
  *size = (unpadded + kRecordAlignment - 1) / kRecordAlignment * kRecordAlignment;
  if (bytes.size() < *size) return Outcome::kNeedMore;
  const absl::string_view payload = bytes.substr(sizeof(header), header.length);
  if (header.crc != RecordCrc(header, payload)) return Outcome::kNotARecord;
  return Dispatch(header, payload) ? Outcome::kRecord : Outcome::kNotARecord;
}

bool JournalParser::Dispatch(const RecordHeader& header, absl::string_view payload) {
  PayloadReader reader(payload);
  switch (static_cast<RecordType>(header.type)) {
    case RecordType::kSession: {
      const absl::string_view boot_id = reader.Text();
      if (!reader.Complete()) return false;
      visitor_->OnSession(boot_id);
      return true;
    }
    case RecordType::kClean:
      if (!reader.Complete()) return false;
      visitor_->OnClean();
      return true;
    case RecordType::kSource: {
      const auto hash = reader.Number<uint64_t>();
      const absl::string_view url = reader.Text();
      if (!reader.Complete()) return false;
      visitor_->OnSource(hash, url);
      return true;
    }
    case RecordType::kFile: {
      const FileRef file = reader.Ref();
      const auto size = reader.Number<uint64_t>();
      const absl::string_view path = reader.Text();
      const absl::string_view version = reader.Text();
      if (!reader.Complete()) return false;
      visitor_->OnFile(file, size, path, version);
      return true;
    }
    case RecordType::kBlocks: {
      const FileRef file = reader.Ref();
      const auto first = reader.Number<uint64_t>();
      constexpr size_t kFixed = sizeof(uint64_t) + sizeof(FileId) + sizeof(uint64_t);
      if (payload.size() < kFixed || (payload.size() - kFixed) % sizeof(uint32_t) != 0) {
        return false;
      }
      const size_t count = (payload.size() - kFixed) / sizeof(uint32_t);
      if (count > kBlocksPerRecordMax) return false;
      // The payload need not be aligned for numbers in a foreign buffer: copied.
      std::string buffer(reader.Bytes(count * sizeof(uint32_t)));
      visitor_->OnBlocks(file, first,
                         absl::MakeSpan(reinterpret_cast<const uint32_t*>(buffer.data()), count),
                         (header.flags & kFlagUnverified) != 0);
      return true;
    }
    case RecordType::kDropped: {
      const FileRef file = reader.Ref();
      const auto first = reader.Number<uint64_t>();
      const auto count = reader.Number<uint64_t>();
      if (!reader.Complete()) return false;
      visitor_->OnDropped(file, first, count);
      return true;
    }
    case RecordType::kRemoved: {
      const FileRef file = reader.Ref();
      if (!reader.Complete()) return false;
      visitor_->OnRemoved(file);
      return true;
    }
  }
  return false;
}

absl::StatusOr<JournalReport> ParseJournalFile(int fd, JournalVisitor* visitor) {
  JournalParser parser(visitor);
  std::string piece(1024 * 1024, '\0');
  for (uint64_t offset = 0;;) {
    const ssize_t n = pread(fd, piece.data(), piece.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::ErrnoStatus(errno, "reading the journal");
    if (n == 0) return parser.Finish();
    parser.Feed(absl::string_view(piece.data(), static_cast<size_t>(n)));
    offset += static_cast<uint64_t>(n);
  }
}

Journal::Journal(Options options) : options_(std::move(options)) {}

Journal::~Journal() {
  if (thread_.joinable()) (void)Stop();
}

absl::Status Journal::Stop() {
  {
    base::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  work_.NotifyAll();
  thread_.join();
  base::MutexLock lock(&mutex_);
  return done_ < appended_ ? last_failure_ : absl::OkStatus();
}

absl::Status Journal::Continue(uint64_t end, uint64_t garbage_bytes) {
  base::UniqueFd fd(openat(options_.directory_fd, kJournalName, O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return base::ErrnoStatus(errno, "opening the journal");
  // A torn tail would be taken for damage once records follow it.
  if (ftruncate(fd.get(), static_cast<off_t>(end)) != 0) {
    return base::ErrnoStatus(errno, "cutting the journal's torn tail");
  }
  std::string session;
  AppendSession(options_.boot_id, &session);
  RETURN_IF_ERROR(options_.file_io->Write(fd.get(), end, session));
  fd_ = std::move(fd);
  base::MutexLock lock(&mutex_);
  size_ = end + session.size();
  garbage_ = garbage_bytes;
  thread_ = std::thread([this] { Run(); });
  return absl::OkStatus();
}

absl::Status Journal::StartAnew() {
  ASSIGN_OR_RETURN(const uint64_t size, WriteSnapshot(&fd_));
  base::MutexLock lock(&mutex_);
  size_ = size;
  garbage_ = 0;
  thread_ = std::thread([this] { Run(); });
  return absl::OkStatus();
}

uint64_t Journal::Append(absl::string_view records, uint64_t garbage_bytes) {
  base::MutexLock lock(&mutex_);
  while (pending_.size() > kPendingMax && !stopping_) written_.Wait(&mutex_);
  const bool wake = pending_.empty();
  const bool full_before = pending_.size() >= kFlushBytes;
  pending_.append(records.data(), records.size());
  appended_ += records.size();
  garbage_ += garbage_bytes;
  if (wake || (!full_before && pending_.size() >= kFlushBytes)) work_.NotifyOne();
  return appended_;
}

absl::Status Journal::Flush() {
  base::MutexLock lock(&mutex_);
  const uint64_t target = appended_;
  const uint64_t failures_before = failures_;
  flush_now_ = true;
  work_.NotifyOne();
  while (done_ < target) {
    if (failures_ != failures_before) return last_failure_;
    written_.Wait(&mutex_);
  }
  return absl::OkStatus();
}

absl::Status Journal::Sync() {
  RETURN_IF_ERROR(Flush());
  // By name: the thread may put a new file in place at any time.
  base::UniqueFd fd(openat(options_.directory_fd, kJournalName, O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return base::ErrnoStatus(errno, "opening the journal");
  return options_.file_io->Sync(fd.get());
}

void Journal::Run() {
  base::MutexLock lock(&mutex_);
  for (;;) {
    WaitForWork();
    WritePending();
    if (stopping_) return;
    if (WantsRewrite()) Rewrite();
  }
}

void Journal::WaitForWork() {
  while (pending_.empty() && !stopping_ && !flush_now_) work_.Wait(&mutex_);
  // Lets small records gather. A wake-up in between only shortens the wait.
  if (pending_.size() < kFlushBytes && !stopping_ && !flush_now_) {
    work_.WaitFor(&mutex_, options_.flush_delay);
  }
  flush_now_ = false;
}

void Journal::WritePending() {
  if (pending_.empty()) {
    written_.NotifyAll();
    return;
  }
  std::string records = std::exchange(pending_, std::string());
  const uint64_t offset = size_;
  mutex_.Unlock();
  const absl::Status status = options_.file_io->Write(fd_.get(), offset, records);
  // One fault, however often it is tried again.
  if (!status.ok() && retry_delay_ == absl::ZeroDuration()) options_.on_fault(status);
  mutex_.Lock();
  if (status.ok()) {
    retry_delay_ = absl::ZeroDuration();
    size_ += records.size();
    done_ += records.size();
    if (!lost_records_) written_position_.store(done_, std::memory_order_release);
  } else {
    ++failures_;
    last_failure_ = status;
    if (pending_.size() + records.size() > kPendingMax) {
      // The disk does not come back. Files whose records are lost are unknown at the next start.
      done_ += records.size();
      lost_records_ = true;
    } else {
      pending_.insert(0, records);
    }
    retry_delay_ = std::clamp(2 * retry_delay_, options_.flush_delay, kRetryDelayMax);
    written_.NotifyAll();
    // Cut short by a Flush, which then sees whether the disk is back.
    if (!stopping_ && !flush_now_) work_.WaitFor(&mutex_, retry_delay_);
  }
  written_.NotifyAll();
}

bool Journal::WantsRewrite() const {
  if (size_ < rewrite_size_min_) return false;
  return lost_records_ || (size_ >= kRewriteSizeMin && garbage_ > size_ / 2);
}

void Journal::Rewrite() {
  // Whatever is appended from here on stays pending and follows the snapshot. What it says twice
  // does no harm, and what it takes back comes after the snapshot that may still have it.
  const uint64_t position = done_;
  mutex_.Unlock();
  base::UniqueFd fd;
  const absl::StatusOr<uint64_t> size = WriteSnapshot(&fd);
  mutex_.Lock();
  if (!size.ok()) {
    base::Log(base::Severity::kWarning, "journal not compacted",
              {{"cause", size.status().ToString()}});
    rewrite_size_min_ = 2 * size_;  // Not before much more was appended.
    return;
  }
  fd_ = std::move(fd);
  size_ = *size;
  garbage_ = 0;
  rewrite_size_min_ = 0;
  lost_records_ = false;
  written_position_.store(position, std::memory_order_release);
}

absl::StatusOr<uint64_t> Journal::WriteSnapshot(base::UniqueFd* fd) {
  const int directory = options_.directory_fd;
  base::UniqueFd file(openat(directory, kJournalNewName,
                             O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.valid()) return base::ErrnoStatus(errno, "creating the new journal");
  std::string buffer = EncodeJournalHeader();
  AppendSession(options_.boot_id, &buffer);
  uint64_t size = 0;
  absl::Status status;
  const auto write_out = [&] {
    if (status.ok()) status = options_.file_io->Write(file.get(), size, buffer);
    size += buffer.size();
    buffer.clear();
  };
  options_.snapshot([&](absl::string_view records) {
    buffer.append(records.data(), records.size());
    if (buffer.size() >= kSnapshotPiece) write_out();
  });
  write_out();
  if (status.ok()) status = options_.file_io->Sync(file.get());
  if (status.ok() && renameat(directory, kJournalNewName, directory, kJournalName) != 0) {
    status = base::ErrnoStatus(errno, "renaming the new journal");
  }
  if (!status.ok()) {
    unlinkat(directory, kJournalNewName, 0);
    return status;
  }
  *fd = std::move(file);
  return size;
}

}  // namespace millrace::tier
