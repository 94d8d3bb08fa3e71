#include "cache/store/memory_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace millrace::store {
namespace {

constexpr size_t kPieceBytes = 64 * 1024;

std::string DirectoryPrefix(const std::string& path) {
  return path.empty() ? "" : absl::StrCat(path, "/");
}

absl::string_view LastComponent(absl::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == absl::string_view::npos ? path : path.substr(slash + 1);
}

// The first key behind every key that begins with `prefix`, which ends in '/'.
std::string AfterPrefix(std::string prefix) {
  prefix.back() = static_cast<char>('/' + 1);
  return prefix;
}

}  // namespace

void MemoryStore::Insert(const std::string& path, Object object, const std::string& version) {
  base::MutexLock lock(&mutex_);
  ++puts_;
  object.version = version.empty() ? absl::StrCat("v", puts_) : version;
  object.mtime = absl::UnixEpoch() + absl::Seconds(1'600'000'000 + static_cast<int64_t>(puts_));
  objects_[path] = std::move(object);
}

void MemoryStore::Put(const std::string& path, std::string bytes, const std::string& version) {
  Object object;
  object.size = bytes.size();
  object.bytes = std::make_shared<const std::string>(std::move(bytes));
  Insert(path, std::move(object), version);
}

void MemoryStore::PutClaimed(const std::string& path, uint64_t size, const std::string& version) {
  Object object;
  object.size = size;
  Insert(path, std::move(object), version);
}

void MemoryStore::Remove(const std::string& path) {
  base::MutexLock lock(&mutex_);
  objects_.erase(path);
}

Entry MemoryStore::MakeEntry(absl::string_view name, const Object& object) const {
  return {std::string(name), EntryKind::kObject, object.size, object.mtime, object.version};
}

absl::StatusOr<ListPage> MemoryStore::List(const std::string& path, const std::string& token,
                                           size_t max_entries, const CallOptions&) {
  const std::string prefix = DirectoryPrefix(path);
  ListPage page;
  base::MutexLock lock(&mutex_);
  // A token is the key at which the next page begins.
  auto at = objects_.lower_bound(token.empty() ? prefix : token);
  bool found = path.empty();
  while (at != objects_.end() && absl::StartsWith(at->first, prefix)) {
    found = true;
    if (page.entries.size() >= std::max<size_t>(max_entries, 1)) {
      page.next_token = at->first;
      return page;
    }
    const absl::string_view rest = absl::string_view(at->first).substr(prefix.size());
    const size_t slash = rest.find('/');
    if (slash == absl::string_view::npos) {
      page.entries.push_back(MakeEntry(rest, at->second));
      ++at;
    } else {
      Entry directory;
      directory.name = std::string(rest.substr(0, slash));
      directory.kind = EntryKind::kDirectory;
      page.entries.push_back(std::move(directory));
      at = objects_.lower_bound(AfterPrefix(absl::StrCat(prefix, rest.substr(0, slash + 1))));
    }
  }
  if (!found && token.empty()) {
    return absl::NotFoundError(absl::StrCat("memory: list \"", path, "\": no such directory"));
  }
  return page;
}

absl::StatusOr<Entry> MemoryStore::Stat(const std::string& path, const CallOptions&) {
  base::MutexLock lock(&mutex_);
  const auto found = objects_.find(path);
  if (found != objects_.end()) return MakeEntry(LastComponent(path), found->second);
  const std::string prefix = DirectoryPrefix(path);
  const auto below = objects_.lower_bound(prefix);
  if (!path.empty() && (below == objects_.end() || !absl::StartsWith(below->first, prefix))) {
    return absl::NotFoundError(absl::StrCat("memory: stat \"", path, "\": no such object"));
  }
  Entry directory;
  directory.name = std::string(LastComponent(path));
  directory.kind = EntryKind::kDirectory;
  return directory;
}

absl::Status MemoryStore::Get(const GetRequest& request, BodySink sink, const CallOptions& call) {
  Object object;
  {
    base::MutexLock lock(&mutex_);
    const auto found = objects_.find(request.path);
    if (found == objects_.end()) {
      return absl::NotFoundError(
          absl::StrCat("memory: get \"", request.path, "\": no such object"));
    }
    object = found->second;
  }
  if ((!request.version.empty() && request.version != object.version) ||
      request.length > object.size || request.offset > object.size - request.length) {
    return absl::FailedPreconditionError(
        absl::StrCat("memory: get \"", request.path, "\": the object has changed"));
  }
  const std::string zeros(object.bytes == nullptr ? kPieceBytes : 0, '\0');
  for (uint64_t done = 0; done < request.length;) {
    if (call.cancelled != nullptr && call.cancelled->load(std::memory_order_relaxed)) {
      return absl::CancelledError("memory: get: cancelled");
    }
    const size_t bytes = std::min<uint64_t>(kPieceBytes, request.length - done);
    const absl::string_view piece =
        object.bytes == nullptr
            ? absl::string_view(zeros).substr(0, bytes)
            : absl::string_view(*object.bytes).substr(request.offset + done, bytes);
    if (!sink(piece)) return absl::CancelledError("memory: get: stopped by the reader");
    done += bytes;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Entry>> MemoryStore::Sample(size_t max_objects, const CallOptions&) {
  std::vector<Entry> sample;
  base::MutexLock lock(&mutex_);
  for (const auto& [path, object] : objects_) {
    if (sample.size() >= max_objects) break;
    sample.push_back(MakeEntry(path, object));
  }
  return sample;
}

}  // namespace millrace::store
