#include "cache/tier/tier_loader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "cache/tier/directory.h"
#include "common/base/errno_status.h"
#include "common/base/hash.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace millrace::tier {

// Finds the sessions and their clean marks: whether a block is trusted depends on what follows it.
class TierLoader::SessionScan : public JournalVisitor {
 public:
  explicit SessionScan(std::vector<Session>* sessions) : sessions_(sessions) {}

  void OnSession(absl::string_view boot_id) override {
    sessions_->push_back({std::string(boot_id), false, false});
  }
  void OnClean() override {
    if (!sessions_->empty()) sessions_->back().clean = true;
  }
  void OnSource(uint64_t, absl::string_view) override { NotClean(); }
  void OnFile(const FileRef&, uint64_t, absl::string_view, absl::string_view) override {
    NotClean();
  }
  void OnBlocks(const FileRef&, uint64_t, absl::Span<const uint32_t>, bool) override { NotClean(); }
  void OnDropped(const FileRef&, uint64_t, uint64_t) override {}
  void OnRemoved(const FileRef&) override {}

 private:
  // A record behind the mark: the mark was not the session's end.
  void NotClean() {
    if (!sessions_->empty()) sessions_->back().clean = false;
  }

  std::vector<Session>* const sessions_;
};

absl::StatusOr<std::vector<std::shared_ptr<DataFile>>> TierLoader::Load() {
  RETURN_IF_ERROR(LoadJournal());
  RETURN_IF_ERROR(ScanSources());
  return Collect();
}

absl::Status TierLoader::LoadJournal() {
  const std::string& path = tier_->options().path;
  const base::UniqueFd fd(
      openat(tier_->directory_.get(), kJournalName, O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) {
    if (errno == ENOENT) return absl::OkStatus();
    return base::ErrnoStatus(errno, "opening the journal of " + path);
  }
  absl::StatusOr<JournalReport> report = ParseJournalFile(fd.get(), this);
  if (report.ok() && report->usable && (report->damaged_regions > 0 || !SameBoot())) {
    // What follows a session decides about it.
    Forget();
    SessionScan scan(&sessions_);
    report = ParseJournalFile(fd.get(), &scan);
    if (report.ok() && report->usable) {
      scanned_ = true;
      DecideTrust(report->damaged_regions > 0);
      report = ParseJournalFile(fd.get(), this);
    }
  }
  if (!report.ok() || !report->usable) {
    // Nothing in the directories can be told apart: all of it goes, as foreign files.
    base::Log(base::Severity::kWarning, "cache dropped: its journal is unreadable",
              {{"tier", path},
               {"cause", report.ok() ? "not of format version " + std::to_string(kJournalVersion)
                                     : report.status().ToString()}});
    tier_->CountDamage("unreadable journal", kJournalName);
    Forget();
    return absl::OkStatus();
  }
  if (report->damaged_regions > 0) {
    base::Log(base::Severity::kWarning, "the cache's journal is damaged; its files are checked",
              {{"tier", path}, {"regions", report->damaged_regions}});
    tier_->counters().faults_damaged.fetch_add(report->damaged_regions);
  }
  for (const auto& [ref, found] : files_) live_bytes_ += found.file->EncodedSize();
  const uint64_t size = report->valid_end;
  anew_ = report->damaged_regions > 0 || !SameBoot() || live_bytes_ < size / 2;
  if (!anew_) {
    tier_->journal_end_ = Tier::JournalEnd{size, size - std::min(size, live_bytes_)};
  }
  return absl::OkStatus();
}

bool TierLoader::SameBoot() const {
  return std::all_of(sessions_.begin(), sessions_.end(), [&](const Session& session) {
    return session.boot_id == tier_->environment().boot_id;
  });
}

void TierLoader::Forget() {
  tier_->counters().files.fetch_sub(files_.size());
  files_.clear();
  sessions_.clear();
  session_ = 0;
  next_order_ = 0;
}

void TierLoader::DecideTrust(bool damaged) {
  // A clean mark covers all that its boot wrote before: everything was synced.
  absl::flat_hash_map<std::string, bool> synced;
  for (auto session = sessions_.rbegin(); session != sessions_.rend(); ++session) {
    if (session->clean) synced[session->boot_id] = true;
    session->trusted = !damaged && (session->boot_id == tier_->environment().boot_id ||
                                    synced.contains(session->boot_id));
  }
}

void TierLoader::OnSession(absl::string_view boot_id) {
  ++session_;
  if (scanned_) return;
  sessions_.push_back({std::string(boot_id), false, boot_id == tier_->environment().boot_id});
}

void TierLoader::OnSource(uint64_t hash, absl::string_view url) {
  if (base::StableHash64({url}) != hash || sources_.contains(hash)) return;
  const absl::StatusOr<Source*> source = tier_->FindOrMakeSource(url);
  if (source.ok()) sources_[hash] = *source;
}

void TierLoader::OnFile(const FileRef& ref, uint64_t size, absl::string_view path,
                        absl::string_view version) {
  const auto source = sources_.find(ref.source);
  if (source == sources_.end() || !(FileId::Of(path, version) == ref.id)) return;
  if (BlockCount(size) > std::numeric_limits<uint32_t>::max()) return;
  FileKey key{source->second->url, std::string(path), std::string(version), size};
  const uint64_t committed = tier_->Expected(key);
  if (committed > tier_->options().quota_bytes) return;
  Found& found = files_[ref];
  // Said again (two threads, or a snapshot that overlaps): what is known stays.
  if (found.file != nullptr && found.file->key().size == size) return;
  if (found.file != nullptr) tier_->counters().files.fetch_sub(1);
  found.file = std::make_shared<DataFile>(std::move(key), ref.id, tier_, source->second, committed);
  found.order = next_order_++;
}

void TierLoader::OnBlocks(const FileRef& ref, uint64_t first, absl::Span<const uint32_t> crcs,
                          bool unverified) {
  const auto found = files_.find(ref);
  if (found == files_.end()) return;
  BlockMap& map = found->second.file->map_;
  if (first >= map.blocks() || crcs.size() > map.blocks() - first) return;
  const bool trusted = !unverified && session_ > 0 && sessions_[session_ - 1].trusted;
  for (size_t i = 0; i < crcs.size(); ++i) {
    if (trusted) {
      map.MarkVerified(first + i);
      map.Set(first + i, crcs[i]);
    } else {
      map.SetUnverified(first + i, crcs[i]);
    }
  }
}

void TierLoader::OnDropped(const FileRef& ref, uint64_t first, uint64_t count) {
  const auto found = files_.find(ref);
  if (found == files_.end()) return;
  BlockMap& map = found->second.file->map_;
  const uint64_t end = count > map.blocks() ? map.blocks() : first + count;
  for (uint64_t index = map.NextPresent(first); index < end && index < map.blocks();
       index = map.NextPresent(index + 1)) {
    map.Clear(index);
  }
}

void TierLoader::OnRemoved(const FileRef& ref) {
  if (files_.erase(ref) > 0) tier_->counters().files.fetch_sub(1);
}

// --- Directories --------------------------------------------------------------------------------

absl::Status TierLoader::ScanSources() {
  std::vector<std::string> names;
  RETURN_IF_ERROR(ForEachName(tier_->sources_directory_.get(),
                              [&](const char* name) { names.push_back(name); }));
  for (const std::string& name : names) {
    const absl::StatusOr<base::UniqueFd> directory =
        OpenDirectoryAt(tier_->sources_directory_.get(), name);
    if (!directory.ok()) {
      RemoveForeign(tier_->sources_directory_.get(), name.c_str());
      continue;
    }
    const auto known = std::find_if(sources_.begin(), sources_.end(), [&](const auto& source) {
      return SourceDirectoryName(source.first) == name;
    });
    for (const DataFile::Place place : {DataFile::Place::kComplete, DataFile::Place::kPartial}) {
      const absl::StatusOr<base::UniqueFd> files = OpenDirectoryAt(
          directory->get(), place == DataFile::Place::kComplete ? kCompleteName : kPartialName);
      if (!files.ok()) continue;
      const Source* source = known == sources_.end() ? nullptr : known->second;
      RETURN_IF_ERROR(ScanPlace(files->get(), source, place));
    }
    if (known == sources_.end()) RemoveEmptySource(directory->get(), name);
  }
  return absl::OkStatus();
}

absl::Status TierLoader::ScanPlace(int directory, const Source* source, DataFile::Place place) {
  return ForEachEntry(directory, [&](const dirent& entry) {
    if (!Place(directory, source, place, entry)) RemoveForeign(directory, entry.d_name);
  });
}

bool TierLoader::Place(int directory, const Source* source, DataFile::Place place,
                       const dirent& entry) {
  const char* const name = entry.d_name;
  FileRef ref;
  if (source == nullptr || !FileId::FromName(name, &ref.id)) return false;
  ref.source = source->hash;
  const auto found = files_.find(ref);
  // A name is in one place only: a second data file is a leftover.
  if (found == files_.end() || found->second.file->place_.load() != DataFile::Place::kNowhere) {
    return false;
  }
  if (!anew_ && entry.d_type == DT_REG) {
    found->second.file->place_ = place;
    found->second.file->size_checked_ = false;
    return true;
  }
  struct stat status;
  if (fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(status.st_mode)) {
    return false;
  }
  if (static_cast<uint64_t>(status.st_size) == found->second.file->key().size) {
    found->second.file->place_ = place;
  } else {
    unlinkat(directory, name, 0);  // Counted when the file is found to have no data.
  }
  return true;
}

void TierLoader::RemoveForeign(int directory, const char* name) {
  tier_->CountDamage("a file that no record describes", name);
  if (unlinkat(directory, name, 0) != 0 && errno != ENOENT) {
    base::Log(base::Severity::kWarning, "a foreign file in the cache cannot be removed",
              {{"tier", tier_->options().path},
               {"name", name},
               {"cause", base::ErrnoStatus(errno, "unlink").ToString()}});
  }
}

void TierLoader::RemoveEmptySource(int directory, const std::string& name) {
  unlinkat(directory, kUrlName, 0);
  unlinkat(directory, kCompleteName, AT_REMOVEDIR);
  unlinkat(directory, kPartialName, AT_REMOVEDIR);
  unlinkat(tier_->sources_directory_.get(), name.c_str(), AT_REMOVEDIR);
}

// --- Files --------------------------------------------------------------------------------------

std::vector<std::shared_ptr<DataFile>> TierLoader::Collect() {
  std::vector<Found> found;
  found.reserve(files_.size());
  for (auto& [ref, file] : files_) found.push_back(std::move(file));
  files_.clear();
  std::sort(found.begin(), found.end(),
            [](const Found& a, const Found& b) { return a.order < b.order; });
  std::vector<std::shared_ptr<DataFile>> files;
  files.reserve(found.size());
  for (Found& candidate : found) {
    if (Settle(*candidate.file)) {
      files.push_back(std::move(candidate.file));
    } else {
      tier_->counters().files.fetch_sub(1);
      anew_ = true;
    }
  }
  // Records of dropped files must not be believed next time.
  if (anew_) tier_->journal_end_.reset();
  return files;
}

bool TierLoader::Settle(DataFile& file) {
  const BlockMap& map = file.map_;
  if (file.place_.load() == DataFile::Place::kNowhere) {
    tier_->CountDamage("the data file is gone or of the wrong size", file.id_.Name());
    return false;
  }
  if (map.present() == 0 && map.blocks() > 0) {
    unlinkat(file.directory(file.place_.load()), file.id_.Name().c_str(), 0);
    return false;
  }
  uint64_t bytes = 0;
  for (uint64_t index = map.NextPresent(0); index < map.blocks();
       index = map.NextPresent(index + 1)) {
    bytes += file.BlockLength(index);
  }
  // Unverified files stay in complete/ until a check says otherwise: moving all of them after every
  // power cut, and back, would cost two renames a file for nothing.
  const bool whole = map.full();
  const bool verified = !map.any_unverified();
  const bool move = whole ? verified && file.place_.load() == DataFile::Place::kPartial
                          : file.place_.load() == DataFile::Place::kComplete;
  if (move) {
    const absl::Status moved =
        file.Move(whole ? DataFile::Place::kComplete : DataFile::Place::kPartial);
    if (!moved.ok()) return false;
  }
  tier_->Commit(file.committed_);
  tier_->ReserveFound(bytes);
  base::MutexLock lock(&file.mutex_);
  file.AddBytes(bytes);
  if (whole && verified) {
    file.complete_ = true;
    tier_->counters().files_complete.fetch_add(1);
  }
  return true;
}

}  // namespace millrace::tier
