#include "cache/index/entry_sorter.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace millrace::index {
namespace {

// What a directory takes beside its path: a string, a number, a slot.
constexpr size_t kDirectoryBytes = 100;

// One sorted run, being merged.
class Run {
 public:
  static absl::StatusOr<std::unique_ptr<Run>> Open(int fd) {
    struct stat st = {};
    if (fstat(fd, &st) != 0) return base::ErrnoStatus(errno, "index: fstat");
    const auto size = static_cast<size_t>(st.st_size);
    void* const memory = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (memory == MAP_FAILED) return base::ErrnoStatus(errno, "index: mmap");
    return std::unique_ptr<Run>(new Run(absl::string_view(static_cast<const char*>(memory), size)));
  }
  ~Run() { munmap(const_cast<char*>(bytes_.data()), bytes_.size()); }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  RecordCursor cursor;
  bool more_directories = false;
  bool more_entries = false;

 private:
  explicit Run(absl::string_view bytes) : cursor(bytes.substr(kHeaderSize)), bytes_(bytes) {}
  const absl::string_view bytes_;
};

// The entries of one directory, from all runs that have it, in the order of the runs.
absl::Status MergeEntries(absl::Span<Run* const> runs, RecordWriter* writer) {
  for (Run* const run : runs) {
    ASSIGN_OR_RETURN(run->more_entries, run->cursor.NextEntry());
  }
  std::optional<EntryView> last;
  while (true) {
    Run* first = nullptr;
    for (Run* const run : runs) {
      if (!run->more_entries) continue;
      // Of two equal ones that of the earlier run.
      if (first == nullptr || Compare(run->cursor.entry(), first->cursor.entry()) < 0) first = run;
    }
    if (first == nullptr) return absl::OkStatus();
    if (!last.has_value() || Compare(*last, first->cursor.entry()) != 0) {
      last = first->cursor.entry();
      writer->Add(*last);
    }
    ASSIGN_OR_RETURN(first->more_entries, first->cursor.NextEntry());
  }
}

absl::Status Merge(absl::Span<const std::unique_ptr<Run>> runs, RecordWriter* writer) {
  for (const auto& run : runs) {
    ASSIGN_OR_RETURN(run->more_directories, run->cursor.NextDirectory());
  }
  std::vector<Run*> having;
  while (true) {
    having.clear();
    for (const auto& run : runs) {
      if (!run->more_directories) continue;
      const int order =
          having.empty() ? 0 : run->cursor.directory().compare(having.front()->cursor.directory());
      if (order < 0) having.clear();
      if (order <= 0) having.push_back(run.get());
    }
    if (having.empty()) return absl::OkStatus();
    writer->BeginDirectory(having.front()->cursor.directory());
    RETURN_IF_ERROR(MergeEntries(having, writer));
    for (Run* const run : having) {
      ASSIGN_OR_RETURN(run->more_directories, run->cursor.NextDirectory());
    }
  }
}

}  // namespace

absl::Status EntrySorter::Add(absl::string_view path, absl::Span<const store::Entry> entries) {
  const base::MutexLock lock(&mutex_);
  const auto [found, is_new] =
      directory_numbers_.try_emplace(path, static_cast<uint32_t>(directories_.size()));
  if (is_new) {
    directories_.emplace_back(path);
    directory_bytes_ += 2 * path.size() + kDirectoryBytes;
  }
  for (const store::Entry& entry : entries) {
    const Item item = {found->second, static_cast<uint32_t>(records_.size())};
    if (!AppendEntry(entry, &records_)) {
      ++left_out_;
      continue;
    }
    items_.push_back(item);
    ++entries_;
  }
  const size_t held = records_.size() + items_.size() * sizeof(Item) + directory_bytes_;
  return held < options_.memory_bytes ? absl::OkStatus() : Spill();
}

void EntrySorter::WriteHeld(RecordWriter* writer) {
  std::vector<uint32_t> by_path(directories_.size());
  std::iota(by_path.begin(), by_path.end(), 0);
  std::sort(by_path.begin(), by_path.end(),
            [&](uint32_t a, uint32_t b) { return directories_[a] < directories_[b]; });
  std::vector<uint32_t> rank(by_path.size());
  for (uint32_t i = 0; i < by_path.size(); ++i) rank[by_path[i]] = i;
  const auto entry_of = [&](const Item& item) {
    EntryView entry;
    Decoder(absl::string_view(records_).substr(item.record)).ReadEntry(&entry);
    return entry;
  };
  const auto before = [&](const Item& a, const Item& b) {
    if (a.directory != b.directory) return rank[a.directory] < rank[b.directory];
    const int order = Compare(entry_of(a), entry_of(b));
    return order != 0 ? order < 0 : a.record < b.record;
  };
  std::sort(items_.begin(), items_.end(), before);
  auto item = items_.begin();
  for (const uint32_t directory : by_path) {
    writer->BeginDirectory(directories_[directory]);
    std::optional<EntryView> last;
    for (; item != items_.end() && item->directory == directory; ++item) {
      const EntryView entry = entry_of(*item);
      if (last.has_value() && Compare(*last, entry) == 0) continue;
      writer->Add(entry);
      last = entry;
    }
  }
}

absl::Status EntrySorter::Spill() {
  ASSIGN_OR_RETURN(base::UniqueFd file, NewUnnamedFile(options_.directory));
  RecordWriter writer(file.get());
  WriteHeld(&writer);
  RETURN_IF_ERROR(writer.Finish());
  runs_.push_back(std::move(file));
  records_.clear();
  items_.clear();
  directories_.clear();
  directory_numbers_.clear();
  directory_bytes_ = 0;
  return absl::OkStatus();
}

absl::Status EntrySorter::WriteTo(RecordWriter* writer) {
  const base::MutexLock lock(&mutex_);
  if (runs_.empty()) {
    WriteHeld(writer);
    return absl::OkStatus();
  }
  if (!directories_.empty()) RETURN_IF_ERROR(Spill());
  std::vector<std::unique_ptr<Run>> runs;
  for (const base::UniqueFd& file : runs_) {
    ASSIGN_OR_RETURN(runs.emplace_back(), Run::Open(file.get()));
  }
  return Merge(runs, writer);
}

uint64_t EntrySorter::entries() const {
  const base::MutexLock lock(&mutex_);
  return entries_;
}

uint64_t EntrySorter::left_out() const {
  const base::MutexLock lock(&mutex_);
  return left_out_;
}

}  // namespace millrace::index
