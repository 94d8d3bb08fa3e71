// Reads what a tier held when its last process ended, and makes disk and journal agree.
//
// Trust. Blocks recorded in this boot are in the kernel, whatever killed the process: trusted.
// Blocks of another boot are trusted if a clean mark of that boot followed (everything was synced
// by then), else unverified. A damaged record makes all blocks of the tier unverified: what it said
// may have been a block's removal.
//
// Quick, for a mount may be waiting for it: where everything was written in this boot the journal
// is read once, and the directories' names are compared with it. Whether a data file has its size
// is looked at when it is first opened, or when a moment is left for it (DataFile::CheckSize).
//
// Used once, by one thread, before anybody knows the tier.
#pragma once

#include <dirent.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "cache/tier/data_file.h"
#include "cache/tier/journal.h"
#include "cache/tier/tier.h"

namespace millrace::tier {

class TierLoader : private JournalVisitor {
 public:
  explicit TierLoader(Tier* tier) : tier_(tier) {}

  // Files oldest first. Errors are those of the directories: the tier cannot be used.
  absl::StatusOr<std::vector<std::shared_ptr<DataFile>>> Load();

 private:
  // What became of a session. Whether it was clean takes a pass of its own.
  struct Session {
    std::string boot_id;
    bool clean = false;
    bool trusted = false;
  };
  class SessionScan;

  absl::Status LoadJournal();
  bool SameBoot() const;
  // As before the journal was read.
  void Forget();
  void DecideTrust(bool damaged);

  // JournalVisitor.
  void OnSession(absl::string_view boot_id) override;
  void OnClean() override {}
  void OnSource(uint64_t hash, absl::string_view url) override;
  void OnFile(const FileRef& ref, uint64_t size, absl::string_view path,
              absl::string_view version) override;
  void OnBlocks(const FileRef& ref, uint64_t first, absl::Span<const uint32_t> crcs,
                bool unverified) override;
  void OnDropped(const FileRef& ref, uint64_t first, uint64_t count) override;
  void OnRemoved(const FileRef& ref) override;

  // Finds the data files of the journal's files, and removes all others.
  absl::Status ScanSources();
  absl::Status ScanPlace(int directory, const Source* source, DataFile::Place place);
  // True if the name is the data file of a known file, which it then belongs to.
  bool Place(int directory, const Source* source, DataFile::Place place, const dirent& entry);
  void RemoveForeign(int directory, const char* name);
  void RemoveEmptySource(int directory, const std::string& name);

  // Takes the files that hold; drops the rest.
  std::vector<std::shared_ptr<DataFile>> Collect();
  bool Settle(DataFile& file);

  Tier* const tier_;
  bool scanned_ = false;  // The sessions are known before what they wrote is read.
  std::vector<Session> sessions_;
  size_t session_ = 0;  // Number of session records seen by this pass.
  bool anew_ = true;    // The journal is written anew.
  uint64_t live_bytes_ = 0;
  absl::flat_hash_map<uint64_t, Source*> sources_;  // By hash.
  struct Found {
    std::shared_ptr<DataFile> file;
    uint64_t order;
  };
  absl::flat_hash_map<FileRef, Found> files_;
  uint64_t next_order_ = 0;
};

}  // namespace millrace::tier
