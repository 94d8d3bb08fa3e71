// What StoreTree does over time: refreshing listings, telling the kernel, dropping what is unused.
#include <algorithm>
#include <iterator>

#include "common/base/log.h"
#include "fuse/vfs/store_tree.h"

namespace millrace::vfs {
namespace {

// A directory's listing takes at most a twentieth of the time.
constexpr int kListingShare = 20;
// Refreshes started and not yet delivered, in the background.
constexpr size_t kRefreshesMax = 64;
// How soon a restored directory whose listing failed is tried again.
constexpr absl::Duration kUnlistedTick = absl::Seconds(1);
// A Directory's own memory, in entries.
constexpr uint64_t kDirectoryWeight = 8;

}  // namespace

absl::Duration StoreTree::DueAfter(const ListJob& job) {
  const absl::Duration now = Now();
  return now + std::max(options_.refresh - job.age, kListingShare * (now - job.started));
}

absl::Status StoreTree::Refresh(NodeId id) {
  const std::shared_ptr<Directory> directory = directories_.Find(id);
  if (directory == nullptr) {
    Attributes attributes;
    if (!nodes_->GetAttributes(id, &attributes)) return absl::NotFoundError("unknown node");
    return absl::OkStatus();
  }
  base::Mutex mutex;
  base::CondVar changed;
  std::optional<absl::Status> result;
  StartRefresh(directory, [&](absl::Status status) {
    const base::MutexLock lock(&mutex);
    result = std::move(status);
    changed.NotifyAll();
  });
  const base::MutexLock lock(&mutex);
  while (!result.has_value()) changed.Wait(&mutex);
  return *std::move(result);
}

absl::StatusOr<uint64_t> StoreTree::RefreshAll() {
  const uint64_t changes_before = changes_;
  absl::Status result;
  for (const std::shared_ptr<Directory>& directory : directories_.All()) {
    result.Update(Refresh(directory->node->id()));
  }
  if (!result.ok()) return result;
  return changes_ - changes_before;
}

void StoreTree::StartRefresh(const std::shared_ptr<Directory>& directory, RefreshDone done) {
  std::shared_ptr<ListJob> job;
  // Whoever asks for a refresh wants to know what the store has now.
  const bool asks_store = done != nullptr;
  bool nothing_to_do = false;
  absl::Status failure;
  {
    const base::MutexLock lock(&directory->mutex);
    const bool complete = directory->listing != nullptr && directory->listing->finished();
    if (directory->told != nullptr && !directory->dropped) {
      // What a predecessor told is as old as a listing may be: the first one is the refresh.
      failure = EnsureListing(directory, &job);
      if (job != nullptr && asks_store) job->age_max = absl::ZeroDuration();
      if (failure.ok() && done != nullptr) directory->refresh_waiters.push_back(std::move(done));
      nothing_to_do = !failure.ok();
      if (!nothing_to_do && job == nullptr) return;
    } else if (directory->is_sources_root || directory->dropped || !complete) {
      nothing_to_do = true;
    } else {
      if (directory->refreshing && asks_store) {
        // If an index answers that one, it is too old for this one.
        directory->fresh_waiters.push_back(std::move(done));
        return;
      }
      if (directory->refreshing) return;
      if (asks_store) directory->refresh_waiters.push_back(std::move(done));
      directory->refreshing = true;
      job = std::make_shared<ListJob>();
      job->directory = directory;
      job->old = directory->listing;
      job->target = std::make_shared<Listing>(nodes_);
      job->started = Now();
      job->age_max = asks_store ? absl::ZeroDuration() : AgeMax();
    }
  }
  if (nothing_to_do) {
    // NOLINTNEXTLINE(bugprone-use-after-move): moved away only where there is something to do.
    if (done != nullptr) std::move(done)(failure);
    return;
  }
  if (job->old != nullptr) {
    const base::MutexLock lock(&refresh_mutex_);
    ++refreshes_;
  }
  Submit(std::move(job));
}

// Fills the job's events with what is different. Both listings are constant by now.
void StoreTree::Compare(ListJob& job) {
  const NodeId id = job.directory->node->id();
  const Listing& now = *job.target;
  const Listing& before = *job.old;
  size_t kept = 0;
  uint64_t changes = 0;
  for (size_t i = 0; i < now.size(); ++i) {
    const Node* const old = before.Find(now.at(i)->name());
    if (old != nullptr) ++kept;
    if (old == now.at(i)) continue;
    ++changes;
    job.events.push_back(EntryChanged(id, now.at(i)->name()));
  }
  for (size_t i = 0; kept < before.size() && i < before.size(); ++i) {
    if (now.Find(before.at(i)->name()) != nullptr) continue;
    ++changes;
    job.events.push_back(EntryChanged(id, before.at(i)->name()));
  }
  if (changes == 0) return;
  job.events.push_back(DirectoryChanged(id));
  changes_ += changes;
}

void StoreTree::FinishRefresh(ListJob& job, const absl::Status& status) {
  const std::shared_ptr<Directory>& directory = job.directory;
  // A directory that is gone is like an empty one, and its own name is no longer true. A source's
  // root that is not found is a fault of the source: what is known stays.
  const bool gone = absl::IsNotFound(status) && !directory->node->is_source_root();
  bool changed = false;
  if (gone) job.target = std::make_shared<Listing>(nodes_);
  if (status.ok() || gone) {
    job.target->Finish(absl::OkStatus());
    const uint64_t changes_before = job.events.size();
    Compare(job);
    changed = job.events.size() != changes_before;
  }
  if (gone) {
    job.events.push_back(EntryChanged(directory->node->parent()->id(), directory->node->name()));
  }
  bool log_failure = false;
  bool log_hidden = false;
  std::vector<RefreshDone> waiters;
  std::vector<RefreshDone> once_more;
  {
    const base::MutexLock lock(&directory->mutex);
    if (changed || gone) directory->listing = gone ? nullptr : job.target;
    directory->refresh_due = DueAfter(job);
    directory->refreshing = false;
    waiters.swap(directory->refresh_waiters);
    if (job.age > absl::ZeroDuration()) {
      once_more.swap(directory->fresh_waiters);
    } else {
      std::move(directory->fresh_waiters.begin(), directory->fresh_waiters.end(),
                std::back_inserter(waiters));
      directory->fresh_waiters.clear();
    }
    log_failure = !status.ok() && !gone && !directory->refresh_failure_logged;
    directory->refresh_failure_logged = !status.ok() && !gone;
    log_hidden = changed && !directory->hidden_logged && job.target->hidden().total() > 0;
    directory->hidden_logged |= log_hidden;
  }
  if (status.ok()) ++listings_;
  if (changed || gone) CountListing(*job.old, false);
  if (changed && !gone) CountListing(*job.target, true);
  if (log_hidden) LogHidden(*directory, *job.target);
  if (log_failure && !absl::IsCancelled(status)) {
    base::Log(base::Severity::kWarning, "refresh failed, the old listing serves",
              {{"directory", Describe(*directory)}, {"cause", status.ToString()}});
  }
  // Whoever waits finds the old nodes gone.
  job.old = nullptr;
  job.target = nullptr;
  Post(std::move(job.events),
       [this, status = gone ? absl::OkStatus() : status, waiters = std::move(waiters)]() mutable {
         for (RefreshDone& waiter : waiters) std::move(waiter)(status);
         {
           const base::MutexLock lock(&refresh_mutex_);
           --refreshes_;
           refresh_wanted_ |= refreshes_ == kRefreshesMax / 2;
         }
         refresh_changed_.NotifyAll();
       });
  for (RefreshDone& waiter : once_more) StartRefresh(directory, std::move(waiter));
  DropUnused();
}

void StoreTree::Post(std::vector<Event> events, absl::AnyInvocable<void() &&> after) {
  if (events.empty()) return std::move(after)();
  notifier_.Submit(0, [this, events = std::move(events), after = std::move(after)]() mutable {
    for (const Event& event : events) {
      Invalidator* const invalidator = invalidator_;
      if (invalidator == nullptr || stopping_) break;
      switch (event.kind) {
        case Event::Kind::kEntryChanged:
          invalidator->EntryChanged(event.directory, event.name);
          break;
        case Event::Kind::kEntryExpired:
          invalidator->EntryExpired(event.directory, event.name);
          break;
        case Event::Kind::kDirectoryChanged:
          invalidator->DirectoryChanged(event.directory);
          break;
      }
    }
    std::move(after)();
  });
}

void StoreTree::RefreshLoop() {
  const absl::Duration usual_tick =
      std::clamp(options_.refresh / 10, absl::Milliseconds(10), absl::Seconds(10));
  while (true) {
    {
      const base::MutexLock lock(&refresh_mutex_);
      const absl::Duration tick =
          unlisted_.empty() ? usual_tick : std::min(usual_tick, kUnlistedTick);
      bool timed_out = false;
      while (!refresh_stop_ && !refresh_wanted_ && !timed_out) {
        timed_out = !refresh_changed_.WaitFor(&refresh_mutex_, tick);
      }
      if (refresh_stop_) return;
      refresh_wanted_ = false;
    }
    ListRestored();
    StartDue();
    ExpireIdle();
  }
}

size_t StoreTree::StartDue() {
  const absl::Duration now = Now();
  std::vector<std::pair<absl::Duration, std::shared_ptr<Directory>>> due;
  for (std::shared_ptr<Directory>& directory : directories_.All()) {
    if (absl::ToInt64Nanoseconds(now) - directory->last_used_ns > idle_ns_) continue;
    absl::Duration at;
    {
      const base::MutexLock lock(&directory->mutex);
      if (directory->refreshing || directory->listing == nullptr) continue;
      at = directory->refresh_due;
    }
    if (at <= now) due.emplace_back(at, std::move(directory));
  }
  size_t room = 0;
  {
    const base::MutexLock lock(&refresh_mutex_);
    room = kRefreshesMax - std::min(kRefreshesMax, refreshes_);
  }
  std::sort(due.begin(), due.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  if (due.size() > room) due.resize(room);
  for (const auto& [at, directory] : due) StartRefresh(directory, nullptr);
  return due.size();
}

// The kernel keeps names for ever and answers from them without asking us, so a directory may be in
// use and look idle. Once it is no longer refreshed, the kernel has to ask at the next use.
void StoreTree::ExpireIdle() {
  const int64_t now_ns = absl::ToInt64Nanoseconds(Now());
  for (const std::shared_ptr<Directory>& directory : directories_.All()) {
    const int64_t used_ns = directory->last_used_ns;
    if (now_ns - used_ns <= idle_ns_ || directory->is_sources_root) continue;
    if (directory->expired_after_ns == used_ns) continue;
    std::shared_ptr<Listing> listing;
    {
      const base::MutexLock lock(&directory->mutex);
      listing = directory->listing;
      if (listing == nullptr || !listing->finished()) continue;
    }
    directory->expired_after_ns = used_ns;
    Expire(*directory, *listing);
  }
}

void StoreTree::Expire(const Directory& directory, const Listing& listing) {
  std::vector<Event> events;
  const NodeId id = directory.node->id();
  for (size_t i = 0; i < listing.size(); ++i) {
    if (listing.at(i)->lookups() > 0) events.push_back(EntryExpired(id, listing.at(i)->name()));
  }
  Post(std::move(events), [] {});
}

void StoreTree::RefreshDue() {
  bool more = true;
  while (more) {
    size_t unlisted = 0;
    {
      const base::MutexLock lock(&refresh_mutex_);
      unlisted = unlisted_.size();
    }
    ListRestored();
    more = StartDue() > 0;
    const base::MutexLock lock(&refresh_mutex_);
    while (refreshes_ > 0 || restoring_ > 0) refresh_changed_.Wait(&refresh_mutex_);
    more |= unlisted_.size() < unlisted;
  }
  ExpireIdle();
  // Delivered in order: behind what was posted so far.
  base::Mutex mutex;
  base::CondVar changed;
  bool delivered = false;
  notifier_.Submit(0, [&] {
    const base::MutexLock lock(&mutex);
    delivered = true;
    changed.NotifyAll();
  });
  const base::MutexLock lock(&mutex);
  while (!delivered) changed.Wait(&mutex);
}

void StoreTree::CountListing(const Listing& listing, bool serves) {
  // Unsigned: adding the negative takes away.
  const auto add = [serves](std::atomic<uint64_t>& counter, uint64_t value) {
    counter += serves ? value : -value;
  };
  add(entries_, listing.size() + kDirectoryWeight);
  add(directory_count_, 1);
  add(files_, listing.files());
  add(hidden_, listing.hidden().total());
}

// Keeps the tree below entries_max: the directories used longest ago go, down to nine tenths, so
// that the sorting is rare. The one used last stays, else a large one could never be read.
void StoreTree::DropUnused() {
  if (entries_ <= options_.entries_max || dropping_.exchange(true)) return;
  std::vector<std::pair<int64_t, std::shared_ptr<Directory>>> by_use;
  for (std::shared_ptr<Directory>& directory : directories_.All()) {
    const int64_t used_ns = directory->last_used_ns;
    by_use.emplace_back(used_ns, std::move(directory));
  }
  std::sort(by_use.begin(), by_use.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  if (!by_use.empty()) by_use.pop_back();
  for (const auto& [used_ns, directory] : by_use) {
    if (entries_ <= options_.entries_max / 10 * 9) break;
    Drop(directory);
  }
  dropping_ = false;
}

// The kernel is asked to ask again about what it holds of a dropped directory: no refresh would
// correct it any more.
bool StoreTree::Drop(const std::shared_ptr<Directory>& directory) {
  std::shared_ptr<Listing> listing;
  {
    const base::MutexLock lock(&directory->mutex);
    const bool busy = directory->refreshing || directory->told != nullptr ||
                      !directory->waiting.empty() ||
                      (directory->listing != nullptr && !directory->listing->finished());
    if (directory->is_sources_root || directory->dropped || busy) return false;
    directory->dropped = true;
    listing.swap(directory->listing);
  }
  directories_.Erase(directory);
  if (listing == nullptr) return true;
  CountListing(*listing, false);
  Expire(*directory, *listing);
  return true;
}

}  // namespace millrace::vfs
