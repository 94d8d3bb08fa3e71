// A tier's journal: what the tier holds, appended record by record (format.md).
//
// One file per tier rather than one beside each data file: a small file then costs no system call
// of its own for its bookkeeping. Records are buffered and written by the journal's thread, some
// milliseconds later. What a SIGKILL takes with it is only knowledge: a data file that no record
// names is removed at the next start. Data is written before its record is appended, so a record
// never promises bytes that are not in the kernel.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "cache/tier/format.h"
#include "common/base/mutex.h"
#include "common/base/unique_fd.h"
#include "common/io/file_io.h"

namespace millrace::tier {

// --- Records: encoding --------------------------------------------------------------------------
// Each appends one whole record (blocks: as many as needed) to `out`.

void AppendSession(absl::string_view boot_id, std::string* out);
void AppendClean(std::string* out);
void AppendSource(uint64_t hash, absl::string_view url, std::string* out);
void AppendFile(const FileRef& file, uint64_t size, absl::string_view path,
                absl::string_view version, std::string* out);
void AppendBlocks(const FileRef& file, uint64_t first, absl::Span<const uint32_t> crcs,
                  bool unverified, std::string* out);
void AppendDropped(const FileRef& file, uint64_t first, uint64_t count, std::string* out);
void AppendRemoved(const FileRef& file, std::string* out);
// The journal's first bytes.
std::string EncodeJournalHeader();

// --- Records: decoding --------------------------------------------------------------------------

// Sees the records of a journal in order. Views are valid during the call.
class JournalVisitor {
 public:
  virtual ~JournalVisitor() = default;
  virtual void OnSession(absl::string_view boot_id) = 0;
  virtual void OnClean() = 0;
  virtual void OnSource(uint64_t hash, absl::string_view url) = 0;
  virtual void OnFile(const FileRef& file, uint64_t size, absl::string_view path,
                      absl::string_view version) = 0;
  virtual void OnBlocks(const FileRef& file, uint64_t first, absl::Span<const uint32_t> crcs,
                        bool unverified) = 0;
  virtual void OnDropped(const FileRef& file, uint64_t first, uint64_t count) = 0;
  virtual void OnRemoved(const FileRef& file) = 0;
};

struct JournalReport {
  bool usable = false;     // The header is ours and of our version.
  uint32_t version = 0;    // Where the magic was right.
  uint64_t valid_end = 0;  // Behind the last valid record: where to append.
  uint64_t records = 0;
  uint64_t damaged_regions = 0;  // Stretches of bytes that held no valid record, but before one.
  uint64_t torn_bytes = 0;       // Behind the last valid record.
};

// Parses a journal piece by piece, in memory bounded by a piece and the longest record. Whatever
// the bytes are, it neither fails nor reads beyond them. Not thread-safe.
class JournalParser {
 public:
  explicit JournalParser(JournalVisitor* visitor) : visitor_(visitor) {}

  void Feed(absl::string_view bytes);
  JournalReport Finish();

 private:
  enum class Outcome { kRecord, kNotARecord, kNeedMore };

  void Parse(bool last);
  bool ParseHeader();
  Outcome ParseRecord(absl::string_view bytes, size_t* size);
  bool Dispatch(const RecordHeader& header, absl::string_view payload);

  JournalVisitor* const visitor_;
  std::string carry_;      // Bytes not parsed yet; starts at a multiple of the alignment.
  uint64_t position_ = 0;  // Of carry_ in the journal.
  bool header_done_ = false;
  bool in_damage_ = false;
  JournalReport report_;
};

// Parses an open journal file. Errors are those of reading it.
absl::StatusOr<JournalReport> ParseJournalFile(int fd, JournalVisitor* visitor);

// --- The file -----------------------------------------------------------------------------------

// Takes encoded records of a snapshot, piece by piece.
using SnapshotSink = absl::FunctionRef<void(absl::string_view records)>;

class Journal {
 public:
  struct Options {
    int directory_fd = -1;  // Must outlive the journal.
    io::FileIo* file_io = nullptr;
    // Encodes all that the tier holds now (sources, files, blocks). Called on the journal's thread
    // and in Start; may not call the journal.
    std::function<void(SnapshotSink)> snapshot;
    // Writes began to fail; the records stay pending and are tried again. May not call the journal.
    std::function<void(const absl::Status&)> on_fault;
    std::string boot_id;
    // Bounds what a SIGKILL forgets, and how many small files share one write.
    absl::Duration flush_delay = absl::Milliseconds(10);
  };

  explicit Journal(Options options);
  // Writes what is pending, without a clean mark.
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // Continues the file at `end`, or writes it anew from a snapshot; then opens a session.
  // Called once, before anything else.
  absl::Status Continue(uint64_t end, uint64_t garbage_bytes);
  absl::Status StartAnew();

  // Records become durable (against SIGKILL) in order, soon. `garbage_bytes`: bytes of the journal
  // that these records make worthless, their own included where they are. Blocks only when the disk
  // is megabytes behind. Returns the position behind the records, for IsWritten.
  uint64_t Append(absl::string_view records, uint64_t garbage_bytes);
  // Whether a SIGKILL can no longer take away the records before `position`. Lock-free.
  bool IsWritten(uint64_t position) const {
    return written_position_.load(std::memory_order_acquire) >= position;
  }

  // Returns when everything appended before is written; with the error of the last try otherwise.
  absl::Status Flush();

  // Writes what is pending, and from then on nothing: another process may continue the file. The
  // error of the last write that failed before its end, if one did. Once; no call may follow but
  // Append, whose records are lost.
  absl::Status Stop();

  // Flush, and the file synced to its device.
  absl::Status Sync();

 private:
  void Run();
  void WaitForWork() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WritePending() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool WantsRewrite() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Rewrite() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Writes a new journal from a snapshot and puts it in place of the old.
  absl::StatusOr<uint64_t> WriteSnapshot(base::UniqueFd* fd);

  const Options options_;
  base::Mutex mutex_;
  base::CondVar work_;     // For the thread.
  base::CondVar written_;  // For Flush, and Append that waits.
  std::string pending_ ABSL_GUARDED_BY(mutex_);
  uint64_t appended_ ABSL_GUARDED_BY(mutex_) = 0;  // Bytes, ever.
  uint64_t done_ ABSL_GUARDED_BY(mutex_) = 0;      // Of those: written, or given up.
  std::atomic<uint64_t> written_position_{0};      // done_ without what was given up.
  uint64_t failures_ ABSL_GUARDED_BY(mutex_) = 0;  // Failed writes, ever.
  absl::Status last_failure_ ABSL_GUARDED_BY(mutex_);
  uint64_t size_ ABSL_GUARDED_BY(mutex_) = 0;  // Of the file.
  uint64_t garbage_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t rewrite_size_min_ ABSL_GUARDED_BY(mutex_) = 0;
  bool flush_now_ ABSL_GUARDED_BY(mutex_) = false;
  bool lost_records_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // Used by the thread, and before it starts.
  base::UniqueFd fd_;
  absl::Duration retry_delay_;  // 0: the last write succeeded.
  std::thread thread_;
};

}  // namespace millrace::tier
