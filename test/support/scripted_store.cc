#include "test/support/scripted_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace millrace::test {

void ScriptedStore::PutEntry(const std::string& directory, store::Entry entry, bool again) {
  const base::MutexLock lock(&mutex_);
  std::vector<store::Entry>& entries = directories_[directory];
  for (store::Entry& old : entries) {
    if (again || old.name != entry.name || old.kind != entry.kind) continue;
    old = std::move(entry);
    return;
  }
  entries.push_back(std::move(entry));
}

void ScriptedStore::PutFile(const std::string& directory, const std::string& name, uint64_t size,
                            const std::string& version) {
  PutEntry(directory, {.name = name, .size = size, .version = version});
}

void ScriptedStore::PutDirectory(const std::string& directory, const std::string& name) {
  PutEntry(directory, {.name = name, .kind = store::EntryKind::kDirectory});
}

void ScriptedStore::Remove(const std::string& directory, const std::string& name) {
  const base::MutexLock lock(&mutex_);
  std::vector<store::Entry>& entries = directories_[directory];
  entries.erase(std::remove_if(entries.begin(), entries.end(),
                               [&](const store::Entry& entry) { return entry.name == name; }),
                entries.end());
}

void ScriptedStore::Fill(const std::string& directory, size_t files) {
  const base::MutexLock lock(&mutex_);
  std::vector<store::Entry>& entries = directories_[directory];
  entries.reserve(files);
  for (size_t i = 0; i < files; ++i) {
    entries.push_back({.name = absl::StrFormat("file-%07d.jpg", i),
                       .size = 100'000 + i,
                       .version = absl::StrFormat("%032x", i)});
  }
}

void ScriptedStore::FailLists(absl::Status status, size_t count) {
  const base::MutexLock lock(&mutex_);
  list_fault_ = {std::move(status), count};
}

void ScriptedStore::FailStats(absl::Status status, size_t count) {
  const base::MutexLock lock(&mutex_);
  stat_fault_ = {std::move(status), count};
}

void ScriptedStore::SetNotFound(const std::string& directory) {
  const base::MutexLock lock(&mutex_);
  not_found_[directory] = true;
}

void ScriptedStore::SetFlag(bool* flag) {
  const base::MutexLock lock(&mutex_);
  *flag = true;
}

void ScriptedStore::Let(Gate* gate, size_t count) {
  const base::MutexLock lock(&mutex_);
  gate->permits += count;
  changed_.NotifyAll();
}

void ScriptedStore::OpenGates() {
  const base::MutexLock lock(&mutex_);
  list_gate_.closed = false;
  stat_gate_.closed = false;
  changed_.NotifyAll();
}

void ScriptedStore::Await(Gate* gate, size_t count) {
  const base::MutexLock lock(&mutex_);
  while (gate->waiting < count) changed_.Wait(&mutex_);
}

absl::Status ScriptedStore::Pass(Gate* gate, Fault* fault, const store::CallOptions& call) {
  ++gate->waiting;
  changed_.NotifyAll();
  // Polled, as the seam says of `cancelled`.
  while (gate->closed && gate->permits == 0 && (call.cancelled == nullptr || !*call.cancelled)) {
    changed_.WaitFor(&mutex_, absl::Milliseconds(20));
  }
  --gate->waiting;
  if (gate->closed && gate->permits == 0) return absl::CancelledError("cancelled");
  if (gate->closed) --gate->permits;
  if (fault->count == 0) return absl::OkStatus();
  --fault->count;
  return fault->status;
}

size_t ScriptedStore::list_calls() const {
  const base::MutexLock lock(&mutex_);
  return list_calls_;
}

size_t ScriptedStore::stat_calls() const {
  const base::MutexLock lock(&mutex_);
  return stat_calls_;
}

size_t ScriptedStore::stats_at_once_max() const {
  const base::MutexLock lock(&mutex_);
  return stats_at_once_max_;
}

absl::StatusOr<store::ListPage> ScriptedStore::List(const std::string& path,
                                                    const std::string& token, size_t max_entries,
                                                    const store::CallOptions& call) {
  const base::MutexLock lock(&mutex_);
  ++list_calls_;
  if (absl::Status status = Pass(&list_gate_, &list_fault_, call); !status.ok()) return status;
  if (not_found_.count(path) != 0) return absl::NotFoundError("no such directory");
  const std::vector<store::Entry>& entries = directories_[path];
  size_t begin = 0;
  if (!token.empty() && !absl::SimpleAtoi(token, &begin)) {
    return absl::InvalidArgumentError("token");
  }
  begin = std::min(begin, entries.size());
  const size_t end = std::min(begin + std::min(page_entries_, max_entries), entries.size());
  store::ListPage page;
  page.entries.assign(entries.begin() + static_cast<ptrdiff_t>(begin),
                      entries.begin() + static_cast<ptrdiff_t>(end));
  if (end < entries.size()) page.next_token = absl::StrCat(end);
  if (repeat_token_) page.next_token.assign(1, '0');
  return page;
}

absl::StatusOr<store::Entry> ScriptedStore::Stat(const std::string& path,
                                                 const store::CallOptions& call) {
  const base::MutexLock lock(&mutex_);
  ++stat_calls_;
  stats_at_once_max_ = std::max(stats_at_once_max_, ++stats_now_);
  const absl::Status status = Pass(&stat_gate_, &stat_fault_, call);
  --stats_now_;
  if (!status.ok()) return status;
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "" : path.substr(0, slash);
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  for (const store::Entry& entry : directories_[directory]) {
    if (entry.name == name) return entry;
  }
  return absl::NotFoundError("no such object");
}

absl::Status ScriptedStore::Get(const store::GetRequest&, store::BodySink,
                                const store::CallOptions&) {
  return absl::UnimplementedError("a store of names has no bytes");
}

absl::StatusOr<std::vector<store::Entry>> ScriptedStore::Sample(size_t, const store::CallOptions&) {
  return std::vector<store::Entry>();
}

}  // namespace millrace::test
