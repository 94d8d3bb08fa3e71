// Listings of StoreTree: pages from the store to nodes, to those who wait, and the Stats that
// answer single names ahead of a long listing.
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/base/hash.h"
#include "common/base/log.h"
#include "fuse/vfs/store_tree.h"

namespace millrace::vfs {
namespace {

constexpr size_t kPageEntries = 1000;  // What S3 gives at most; a hint to others.
// A store that sends page after page with nothing on them never comes to an end.
constexpr size_t kEmptyPagesMax = 1000;
// How long a failed listing is not tried again, so that a directory of a failing store does not
// cost a call for every name that is looked up in it.
constexpr absl::Duration kFailureKept = absl::Seconds(1);
// What stands for the interval of a mount that is never refreshed.
constexpr absl::Duration kAgeMaxWithoutRefresh = absl::Minutes(1);

std::string Join(const std::string& directory, absl::string_view name) {
  return directory.empty() ? std::string(name) : absl::StrCat(directory, "/", name);
}

}  // namespace

store::CallOptions StoreTree::Call(absl::Duration age_max) const {
  store::CallOptions call;
  call.cancelled = &stopping_;
  call.age_max = age_max;
  return call;
}

// Less than the interval: a listing of an index is due again an interval after that of the index.
absl::Duration StoreTree::AgeMax() const {
  const bool never = options_.refresh == absl::InfiniteDuration();
  return (never ? kAgeMaxWithoutRefresh : options_.refresh) / 6 * 5;
}

std::string StoreTree::Describe(const Directory& directory) const {
  return absl::StrCat(options_.sources[directory.source].source.url, ":/", directory.path);
}

absl::Status StoreTree::EnsureListing(const std::shared_ptr<Directory>& directory,
                                      std::shared_ptr<ListJob>* job) {
  if (directory->listing != nullptr) return absl::OkStatus();
  const absl::Duration now = Now();
  if (now - directory->failed_at < kFailureKept) return directory->failure;
  directory->listing = std::make_shared<Listing>(nodes_);
  *job = std::make_shared<ListJob>();
  (*job)->directory = directory;
  (*job)->target = directory->listing;
  (*job)->started = now;
  (*job)->age_max = AgeMax();
  return absl::OkStatus();
}

void StoreTree::Submit(std::shared_ptr<ListJob> job) {
  const Work work = job->old == nullptr ? kListing : kRefresh;
  calls_.Submit(work, [this, job = std::move(job)] { ListPage(job); });
}

// One page a task: between two pages of a huge directory others have their turn.
void StoreTree::ListPage(const std::shared_ptr<ListJob>& job) {
  absl::StatusOr<store::ListPage> page = absl::CancelledError("the mount is ending");
  if (!stopping_) {
    page = options_.sources[job->directory->source].store->List(job->directory->path, job->token,
                                                                kPageEntries, Call(job->age_max));
  }
  absl::Status status = page.ok() ? CheckPage(*job, *page) : page.status();
  const bool last = status.ok() && page->next_token.empty();
  if (status.ok()) {
    Deliver(job, MakeNodes(*job, page->entries), last);
    job->age = std::max(job->age, page->age);
    job->token = std::move(page->next_token);
  }
  if (status.ok() && !last) return Submit(job);
  if (job->old == nullptr) {
    FinishFirst(*job, status);
  } else {
    FinishRefresh(*job, status);
  }
}

// A listing must come to an end and fit.
absl::Status StoreTree::CheckPage(ListJob& job, const store::ListPage& page) {
  job.empty_pages = page.entries.empty() ? job.empty_pages + 1 : 0;
  const bool repeats = !page.next_token.empty() && page.next_token == job.token;
  if (repeats || job.empty_pages > kEmptyPagesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "list ", Describe(*job.directory), ": the store's pages do not come to an end (",
        repeats ? "the same token twice" : "too many empty pages", ")"));
  }
  const uint64_t entries_max =
      std::min<uint64_t>(options_.entries_max, NameIndex::kNone - page.entries.size() - 1);
  if (job.target->size() + page.entries.size() > entries_max) {
    return absl::ResourceExhaustedError(absl::StrCat("list ", Describe(*job.directory),
                                                     ": more than ", entries_max,
                                                     " entries in one directory"));
  }
  return absl::OkStatus();
}

NodeSpec StoreTree::SpecOf(const Directory& directory, const store::Entry& entry) const {
  const bool is_directory = entry.kind == store::EntryKind::kDirectory;
  return {.parent = directory.node,
          .name = entry.name,
          .is_directory = is_directory,
          .size = is_directory ? 0 : entry.size,
          .mtime_ns = absl::ToUnixNanos(entry.mtime),
          .version = is_directory ? absl::string_view() : entry.version};
}

NodeId StoreTree::IdOf(const Directory& directory, const NodeSpec& spec) const {
  const store::Source& source = options_.sources[directory.source].source;
  const std::string path = Join(directory.path, spec.name);
  const NodeId id = spec.is_directory
                        ? base::StableHash64({source.name, source.url, path})
                        : base::StableHash64({source.name, source.url, path, spec.version});
  return std::max(id, kRootNode + 1);
}

StoreTree::PageNodes StoreTree::MakeNodes(ListJob& job, const std::vector<store::Entry>& entries) {
  PageNodes page;
  page.nodes.reserve(entries.size());
  for (const store::Entry& entry : entries) {
    if (const Hidden hidden = HiddenByRule(entry); hidden != Hidden::kNo) {
      page.hidden.emplace_back(hidden, &entry);
      continue;
    }
    NodeSpec spec = SpecOf(*job.directory, entry);
    // An unchanged name keeps its node, without the cost of its id.
    Node* node = job.old == nullptr ? nullptr : job.old->Find(entry.name);
    if (node != nullptr && node->Is(spec)) {
      nodes_->Pin(node);
    } else {
      spec.id = IdOf(*job.directory, spec);
      node = nodes_->FindOrCreate(spec);
    }
    if (node->is_directory() && node->mtime_ns() != spec.mtime_ns) {
      nodes_->SetMtime(node, spec.mtime_ns);
      job.events.push_back(DirectoryChanged(node->id()));
    }
    page.nodes.push_back(node);
  }
  return page;
}

void StoreTree::Deliver(const std::shared_ptr<ListJob>& job, const PageNodes& page, bool last) {
  const std::shared_ptr<Directory>& directory = job->directory;
  Answers answers;
  std::vector<std::string> stats;
  {
    const base::MutexLock lock(&directory->mutex);
    Listing& target = *job->target;
    // Only a first listing has someone waiting: a refresh is not seen before its end.
    const bool first = job->old == nullptr;
    for (const auto& [reason, entry] : page.hidden) target.CountHidden(reason, entry->name);
    for (Node* const node : page.nodes) {
      if (target.Add(node) == Listing::Added::kHidden) continue;
      if (!first || directory->waiting.empty()) continue;
      const auto waiting = directory->waiting.find(node->name());
      if (waiting == directory->waiting.end()) continue;
      nodes_->AddLookups(node, waiting->second.done.size());
      for (LookupDone& done : waiting->second.done) {
        answers.lookups.emplace_back(std::move(done), node->attributes());
      }
      directory->waiting.erase(waiting);
    }
    target.CountPage();
    if (first && !last) {
      answers.readers.swap(directory->readers);
      for (auto& [name, wait] : directory->waiting) {
        if (!wait.stat_asked) stats.push_back(name);
        wait.stat_asked = true;
      }
    }
  }
  if (last) {
    job->answers = std::move(answers);
    return;
  }
  AskStats(directory, std::move(stats));
  Run(directory, std::move(answers));
}

void StoreTree::FinishFirst(ListJob& job, const absl::Status& status) {
  const std::shared_ptr<Directory>& directory = job.directory;
  Answers& answers = job.answers;
  bool log_hidden = false;
  bool again = false;
  bool gone = false;
  std::vector<RefreshDone> waiters;
  std::unique_ptr<Listing> told;
  {
    const base::MutexLock lock(&directory->mutex);
    job.target->Finish(status);
    if (status.ok()) {
      directory->failure = absl::OkStatus();
      directory->refresh_due = DueAfter(job);
      log_hidden = !directory->hidden_logged && job.target->hidden().total() > 0;
      directory->hidden_logged |= log_hidden;
      told = ContradictEarly(*directory, *job.target, &job.events);
    } else {
      directory->listing = nullptr;
      directory->failure = status;
      directory->failed_at = Now();
      // As in FinishRefresh: what the kernel knows of it from a predecessor is no longer true.
      gone = directory->told != nullptr && absl::IsNotFound(status) &&
             !directory->node->is_source_root();
      if (gone) told = ContradictEarly(*directory, Listing(nodes_), &job.events);
      again = directory->told != nullptr;
    }
    waiters.swap(directory->refresh_waiters);
    for (auto& [name, wait] : directory->waiting) {
      for (LookupDone& done : wait.done) {
        answers.lookups.emplace_back(
            std::move(done),
            status.ok() ? absl::NotFoundError("no such file or directory") : status);
      }
    }
    directory->waiting.clear();
    answers.readers.swap(directory->readers);
  }
  if (gone) {
    job.events.push_back(EntryChanged(directory->node->parent()->id(), directory->node->name()));
  }
  if (status.ok()) {
    ++listings_;
    CountListing(*job.target, true);
    if (log_hidden) LogHidden(*directory, *job.target);
  } else if (!absl::IsCancelled(status) && !gone) {
    base::Log(base::Severity::kWarning, "directory could not be listed",
              {{"directory", Describe(*directory)}, {"cause", status.ToString()}});
  }
  Post(std::move(job.events),
       [this, directory, status = gone ? absl::OkStatus() : status, waiters = std::move(waiters),
        counted = job.counted, again]() mutable {
         for (RefreshDone& waiter : waiters) std::move(waiter)(status);
         if (counted) EndRestored(directory, again);
       });
  Run(directory, std::move(answers));
  DropUnused();
}

// What the kernel was told before the listing was complete, and is not so.
std::unique_ptr<Listing> StoreTree::ContradictEarly(Directory& directory, const Listing& now,
                                                    std::vector<Event>* events) {
  const NodeId id = directory.node->id();
  for (const auto& [name, told] : directory.early) {
    const Node* const node = now.Find(name);
    if ((node == nullptr ? 0 : node->id()) != told) events->push_back(EntryChanged(id, name));
  }
  std::unique_ptr<Listing> told = std::move(directory.told);
  if (told != nullptr) {
    for (size_t i = 0; i < told->size(); ++i) {
      const Node* const node = told->at(i);
      // What the kernel has forgotten since it need not be told of.
      if (node->lookups() == 0 || directory.early.contains(node->name())) continue;
      if (now.Find(node->name()) != node) events->push_back(EntryChanged(id, node->name()));
    }
    // Which other names the predecessor's listing had is not known.
    events->push_back(DirectoryChanged(id));
  }
  directory.early.clear();
  for (const Node* const file : now.replaced()) {
    events->push_back(EntryChanged(id, file->name()));
  }
  return told;
}

void StoreTree::Run(const std::shared_ptr<Directory>& directory, Answers answers) {
  for (auto& [done, answer] : answers.lookups) std::move(done)(std::move(answer));
  for (ReaderWait& reader : answers.readers) Feed(directory, std::move(reader));
}

void StoreTree::AskStats(const std::shared_ptr<Directory>& directory,
                         std::vector<std::string> names) {
  for (std::string& name : names) {
    calls_.Submit(kStat, [this, directory, name = std::move(name)] { RunStat(directory, name); });
  }
}

void StoreTree::RunStat(const std::shared_ptr<Directory>& directory, const std::string& name) {
  {
    const base::MutexLock lock(&directory->mutex);
    // A page was quicker.
    if (!directory->waiting.contains(name)) return;
  }
  absl::StatusOr<store::Entry> entry = absl::CancelledError("the mount is ending");
  if (!stopping_) {
    entry = options_.sources[directory->source].store->Stat(Join(directory->path, name),
                                                            Call(AgeMax()));
  }
  Node* node = nullptr;
  if (entry.ok()) {
    entry->name = name;
    if (HiddenByRule(*entry) == Hidden::kNo) {
      NodeSpec spec = SpecOf(*directory, *entry);
      spec.id = IdOf(*directory, spec);
      node = nodes_->FindOrCreate(spec);
    }
  } else if (!absl::IsNotFound(entry.status())) {
    return;  // The listing answers, with its own error if need be.
  }
  Answers answers;
  {
    const base::MutexLock lock(&directory->mutex);
    const auto waiting = directory->waiting.find(name);
    if (waiting != directory->waiting.end()) {
      if (node != nullptr) nodes_->AddLookups(node, waiting->second.done.size());
      for (LookupDone& done : waiting->second.done) {
        if (node != nullptr) {
          answers.lookups.emplace_back(std::move(done), node->attributes());
        } else {
          answers.lookups.emplace_back(std::move(done),
                                       absl::NotFoundError("no such file or directory"));
        }
      }
      directory->early[name] = node == nullptr ? 0 : node->id();
      directory->waiting.erase(waiting);
    }
  }
  Run(directory, std::move(answers));
  if (node != nullptr) nodes_->Unpin(node);
}

void StoreTree::LogHidden(const Directory& directory, const Listing& listing) {
  const HiddenCounts& hidden = listing.hidden();
  base::Log(base::Severity::kWarning, "names of the store are not shown",
            {{"directory", Describe(directory)},
             {"count", hidden.total()},
             {"why", hidden.ToString()},
             {"first", hidden.example()}});
}

}  // namespace millrace::vfs
