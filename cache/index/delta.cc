#include "cache/index/delta.h"

#include <utility>

#include "cache/index/delta_records.h"
#include "cache/index/index_writer.h"
#include "common/base/status_macros.h"

namespace millrace::index {
namespace {

absl::Status Full() { return absl::ResourceExhaustedError("the delta is longer than it may be"); }

absl::Status Lies(const char* what) {
  return absl::DataLossError(absl::StrCat("the delta does not fit its index: ", what));
}

// Which of two cursors comes first, where either may be at its end.
template <typename A, typename B>
int OrderOfDirectories(bool more_a, const A& a, bool more_b, const B& b) {
  if (!more_a) return more_b ? 1 : 0;
  return more_b ? a.directory().compare(b.directory()) : -1;
}

template <typename A, typename B>
int OrderOfEntries(bool more_a, const A& a, bool more_b, const B& b) {
  if (!more_a) return more_b ? 1 : 0;
  return more_b ? Compare(a.entry(), b.entry()) : -1;
}

// --- Diff ---

absl::Status DiffEntries(RecordCursor& from, RecordCursor& to, DeltaWriter* delta) {
  ASSIGN_OR_RETURN(bool more_from, from.NextEntry());
  ASSIGN_OR_RETURN(bool more_to, to.NextEntry());
  while (more_from || more_to) {
    const int order = OrderOfEntries(more_from, from, more_to, to);
    if (order < 0) delta->Add(EntryChange::kRemoved, from.entry());
    if (order > 0) delta->Add(EntryChange::kAdded, to.entry());
    if (order == 0 && from.entry().raw != to.entry().raw) {
      delta->Add(EntryChange::kChanged, to.entry());
    }
    if (delta->full()) return Full();
    if (order <= 0) {
      ASSIGN_OR_RETURN(more_from, from.NextEntry());
    }
    if (order >= 0) {
      ASSIGN_OR_RETURN(more_to, to.NextEntry());
    }
  }
  return absl::OkStatus();
}

template <typename Cursor>
absl::Status AddAll(Cursor& entries, DeltaWriter* delta) {
  while (true) {
    ASSIGN_OR_RETURN(const bool more, entries.NextEntry());
    if (!more) return absl::OkStatus();
    delta->Add(EntryChange::kAdded, entries.entry());
    if (delta->full()) return Full();
  }
}

// --- Apply ---

absl::Status CopyEntries(RecordCursor& from, RecordWriter* to) {
  while (true) {
    ASSIGN_OR_RETURN(const bool more, from.NextEntry());
    if (!more) return absl::OkStatus();
    to->Add(from.entry());
  }
}

absl::Status WriteAdded(DeltaCursor& changes, RecordWriter* to) {
  while (true) {
    ASSIGN_OR_RETURN(const bool more, changes.NextEntry());
    if (!more) return absl::OkStatus();
    to->Add(changes.entry());
  }
}

absl::Status ApplyToEntries(RecordCursor& from, DeltaCursor& changes, RecordWriter* to) {
  ASSIGN_OR_RETURN(bool more_from, from.NextEntry());
  ASSIGN_OR_RETURN(bool more_changes, changes.NextEntry());
  while (more_from || more_changes) {
    const int order = OrderOfEntries(more_from, from, more_changes, changes);
    if (order < 0) to->Add(from.entry());
    if (order >= 0) {
      const EntryChange change = changes.entry_change();
      if ((change == EntryChange::kAdded) != (order > 0)) return Lies("an entry");
      if (change != EntryChange::kRemoved) to->Add(changes.entry());
      ASSIGN_OR_RETURN(more_changes, changes.NextEntry());
    }
    if (order <= 0) {
      ASSIGN_OR_RETURN(more_from, from.NextEntry());
    }
  }
  return absl::OkStatus();
}

absl::Status ApplyToDirectory(RecordCursor& from, DeltaCursor& changes, RecordWriter* to) {
  switch (changes.directory_change()) {
    case DirectoryChange::kStays:
      to->BeginDirectory(changes.directory());
      return ApplyToEntries(from, changes, to);
    case DirectoryChange::kReplaced:
      to->BeginDirectory(changes.directory());
      return WriteAdded(changes, to);
    case DirectoryChange::kRemoved:
      return absl::OkStatus();
    case DirectoryChange::kAdded:
      break;
  }
  return Lies("an added directory is there already");
}

// --- Compose ---

absl::Status CopyChanges(DeltaCursor& changes, DeltaWriter* delta) {
  while (true) {
    ASSIGN_OR_RETURN(const bool more, changes.NextEntry());
    if (!more) return absl::OkStatus();
    delta->Add(changes.entry_change(), changes.entry());
    if (delta->full()) return Full();
  }
}

// Both on one entry, first one and then the other.
absl::Status ComposeEntry(const DeltaCursor& first, const DeltaCursor& second, DeltaWriter* delta) {
  const bool there_before = first.entry_change() != EntryChange::kAdded;
  const bool there_between = first.entry_change() != EntryChange::kRemoved;
  const bool there_after = second.entry_change() != EntryChange::kRemoved;
  if ((second.entry_change() == EntryChange::kAdded) == there_between) return Lies("an entry");
  if (there_before) {
    delta->Add(there_after ? EntryChange::kChanged : EntryChange::kRemoved, second.entry());
  } else if (there_after) {
    delta->Add(EntryChange::kAdded, second.entry());
  }
  return absl::OkStatus();
}

absl::Status ComposeEntries(DeltaCursor& first, DeltaCursor& second, DeltaWriter* delta) {
  ASSIGN_OR_RETURN(bool more_first, first.NextEntry());
  ASSIGN_OR_RETURN(bool more_second, second.NextEntry());
  // Of a directory that was new after the first, all entries are known.
  const bool all_known = first.directory_change() != DirectoryChange::kStays;
  while (more_first || more_second) {
    const int order = OrderOfEntries(more_first, first, more_second, second);
    if (order < 0) delta->Add(first.entry_change(), first.entry());
    if (order == 0) RETURN_IF_ERROR(ComposeEntry(first, second, delta));
    if (order > 0) {
      if (all_known && second.entry_change() != EntryChange::kAdded) return Lies("an entry");
      delta->Add(second.entry_change(), second.entry());
    }
    if (delta->full()) return Full();
    if (order <= 0) {
      ASSIGN_OR_RETURN(more_first, first.NextEntry());
    }
    if (order >= 0) {
      ASSIGN_OR_RETURN(more_second, second.NextEntry());
    }
  }
  return absl::OkStatus();
}

absl::Status ComposeDirectory(DeltaCursor& first, DeltaCursor& second, DeltaWriter* delta) {
  const absl::string_view path = first.directory();
  const bool there_before = first.directory_change() != DirectoryChange::kAdded;
  const bool there_between = first.directory_change() != DirectoryChange::kRemoved;
  if ((second.directory_change() == DirectoryChange::kAdded) == there_between) {
    return Lies("a directory");
  }
  switch (second.directory_change()) {
    case DirectoryChange::kStays:
      delta->BeginDirectory(first.directory_change(), path);
      return ComposeEntries(first, second, delta);
    case DirectoryChange::kRemoved:
      if (there_before) delta->BeginDirectory(DirectoryChange::kRemoved, path);
      return absl::OkStatus();
    case DirectoryChange::kAdded:
    case DirectoryChange::kReplaced:
      break;
  }
  delta->BeginDirectory(there_before ? DirectoryChange::kReplaced : DirectoryChange::kAdded, path);
  return AddAll(second, delta);
}

}  // namespace

absl::StatusOr<std::string> Diff(const Index& from, const Index& to, uint64_t bytes_max) {
  if (from.header().seed != to.header().seed ||
      from.header().source_hash != to.header().source_hash) {
    return absl::FailedPreconditionError("index: not two versions of one index");
  }
  DeltaWriter delta(bytes_max);
  RecordCursor old_records = from.Records();
  RecordCursor new_records = to.Records();
  ASSIGN_OR_RETURN(bool more_old, old_records.NextDirectory());
  ASSIGN_OR_RETURN(bool more_new, new_records.NextDirectory());
  while (more_old || more_new) {
    const int order = OrderOfDirectories(more_old, old_records, more_new, new_records);
    if (order < 0) delta.BeginDirectory(DirectoryChange::kRemoved, old_records.directory());
    if (order > 0) {
      delta.BeginDirectory(DirectoryChange::kAdded, new_records.directory());
      RETURN_IF_ERROR(AddAll(new_records, &delta));
    }
    if (order == 0) {
      delta.BeginDirectory(DirectoryChange::kStays, new_records.directory());
      RETURN_IF_ERROR(DiffEntries(old_records, new_records, &delta));
    }
    if (order <= 0) {
      ASSIGN_OR_RETURN(more_old, old_records.NextDirectory());
    }
    if (order >= 0) {
      ASSIGN_OR_RETURN(more_new, new_records.NextDirectory());
    }
  }
  DeltaHeader header;
  header.from_version = from.header().version;
  header.to_version = to.header().version;
  header.from_content = from.header().content;
  header.to_content = to.header().content;
  header.seed = to.header().seed;
  header.source_hash = to.header().source_hash;
  return delta.Finish(header);
}

absl::StatusOr<std::shared_ptr<const Index>> Apply(const Index& from, absl::string_view delta,
                                                   base::UniqueFd file) {
  ASSIGN_OR_RETURN(DeltaCursor changes, DeltaCursor::Open(delta));
  const DeltaHeader& header = changes.header();
  if (header.from_version != from.header().version ||
      header.from_content != from.header().content || header.seed != from.header().seed ||
      header.source_hash != from.header().source_hash) {
    return absl::FailedPreconditionError("the delta is one of another index");
  }
  IndexWriter writer(std::move(file));
  RecordWriter& to = writer.records();
  RecordCursor records = from.Records();
  ASSIGN_OR_RETURN(bool more_records, records.NextDirectory());
  ASSIGN_OR_RETURN(bool more_changes, changes.NextDirectory());
  while (more_records || more_changes) {
    const int order = OrderOfDirectories(more_records, records, more_changes, changes);
    if (order < 0) {
      to.BeginDirectory(records.directory());
      RETURN_IF_ERROR(CopyEntries(records, &to));
    }
    if (order > 0) {
      if (changes.directory_change() != DirectoryChange::kAdded) return Lies("a directory");
      to.BeginDirectory(changes.directory());
      RETURN_IF_ERROR(WriteAdded(changes, &to));
    }
    if (order == 0) RETURN_IF_ERROR(ApplyToDirectory(records, changes, &to));
    if (order <= 0) {
      ASSIGN_OR_RETURN(more_records, records.NextDirectory());
    }
    if (order >= 0) {
      ASSIGN_OR_RETURN(more_changes, changes.NextDirectory());
    }
  }
  ASSIGN_OR_RETURN(
      std::shared_ptr<const Index> index,
      writer.Finish(
          {.version = header.to_version, .seed = header.seed, .source_hash = header.source_hash}));
  if (index->header().content != header.to_content) return Lies("the result's checksum");
  return index;
}

absl::StatusOr<std::string> Compose(absl::string_view first_delta, absl::string_view second_delta,
                                    uint64_t bytes_max) {
  ASSIGN_OR_RETURN(DeltaCursor first, DeltaCursor::Open(first_delta));
  ASSIGN_OR_RETURN(DeltaCursor second, DeltaCursor::Open(second_delta));
  if (first.header().to_version != second.header().from_version ||
      first.header().to_content != second.header().from_content ||
      first.header().seed != second.header().seed ||
      first.header().source_hash != second.header().source_hash) {
    return absl::FailedPreconditionError("the deltas do not follow each other");
  }
  DeltaWriter delta(bytes_max);
  ASSIGN_OR_RETURN(bool more_first, first.NextDirectory());
  ASSIGN_OR_RETURN(bool more_second, second.NextDirectory());
  while (more_first || more_second) {
    const int order = OrderOfDirectories(more_first, first, more_second, second);
    if (order < 0) {
      delta.BeginDirectory(first.directory_change(), first.directory());
      RETURN_IF_ERROR(CopyChanges(first, &delta));
    }
    if (order > 0) {
      delta.BeginDirectory(second.directory_change(), second.directory());
      RETURN_IF_ERROR(CopyChanges(second, &delta));
    }
    if (order == 0) RETURN_IF_ERROR(ComposeDirectory(first, second, &delta));
    if (order <= 0) {
      ASSIGN_OR_RETURN(more_first, first.NextDirectory());
    }
    if (order >= 0) {
      ASSIGN_OR_RETURN(more_second, second.NextDirectory());
    }
  }
  DeltaHeader header = second.header();
  header.from_version = first.header().from_version;
  header.from_content = first.header().from_content;
  return delta.Finish(header);
}

}  // namespace millrace::index
