#include "test/support/pattern_store.h"

#include <algorithm>
#include <cstring>

#include "common/base/hash.h"

namespace millrace::test {

char PatternByte(absl::string_view path, absl::string_view version, uint64_t offset) {
  const uint64_t seed = base::StableHash64({path, version});
  // Distinct in every block and at every position within it.
  return static_cast<char>((seed ^ (offset * 0x9e3779b97f4a7c15ull)) >> 29);
}

std::string PatternBytes(absl::string_view path, absl::string_view version, uint64_t offset,
                         uint64_t size) {
  const uint64_t seed = base::StableHash64({path, version});
  std::string bytes(size, '\0');
  for (uint64_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<char>((seed ^ ((offset + i) * 0x9e3779b97f4a7c15ull)) >> 29);
  }
  return bytes;
}

absl::Status PatternStore::Get(const store::GetRequest& request, store::BodySink sink,
                               const store::CallOptions& call) {
  std::string version = "v1";
  absl::Status failure;
  uint64_t size = request.length;
  bool uses_room = false;
  {
    base::MutexLock lock(&mutex_);
    gets_.push_back(request);
    if (request.from != nullptr) *request.from = from_;
    uses_room = uses_room_ && request.room != nullptr;
    changed_.NotifyAll();
    while (held_) changed_.Wait(&mutex_);
    if (const auto found = versions_.find(request.path); found != versions_.end()) {
      version = found->second;
    }
    if (fail_ > 0) {
      --fail_;
      failure = fail_status_;
      size = std::min(size, fail_after_);
    }
  }
  if (call.cancelled != nullptr && call.cancelled->load()) return absl::CancelledError("cancelled");
  if (!request.version.empty() && request.version != version) {
    return absl::FailedPreconditionError("the object is another version");
  }
  {
    // Before the first byte: a reader that has its bytes must find them counted.
    base::MutexLock lock(&mutex_);
    bytes_sent_ += size;
  }
  const std::string body = PatternBytes(request.path, version, request.offset, size);
  // Odd pieces, so that blocks and pieces do not line up.
  constexpr uint64_t kPiece = 50'021;
  for (uint64_t at = 0; at < size;) {
    absl::string_view piece = absl::string_view(body).substr(at, kPiece);
    if (uses_room) {
      const absl::Span<char> room = (*request.room)();
      piece = piece.substr(0, room.size());
      std::memcpy(room.data(), piece.data(), piece.size());
      piece = absl::string_view(room.data(), piece.size());
    }
    at += piece.size();
    if (!sink(piece)) return absl::CancelledError("the sink had enough");
  }
  return failure;
}

void PatternStore::SetVersion(const std::string& path, const std::string& version) {
  base::MutexLock lock(&mutex_);
  versions_[path] = version;
}

void PatternStore::SetFrom(store::BytesFrom from) {
  base::MutexLock lock(&mutex_);
  from_ = from;
}

void PatternStore::SetUsesRoom(bool uses) {
  base::MutexLock lock(&mutex_);
  uses_room_ = uses;
}

void PatternStore::SetRangeUnit(uint64_t bytes) {
  base::MutexLock lock(&mutex_);
  range_unit_ = bytes;
}

uint64_t PatternStore::range_unit() const {
  base::MutexLock lock(&mutex_);
  return range_unit_;
}

void PatternStore::Hold() {
  base::MutexLock lock(&mutex_);
  held_ = true;
}

void PatternStore::Open() {
  base::MutexLock lock(&mutex_);
  held_ = false;
  changed_.NotifyAll();
}

void PatternStore::AwaitGets(size_t count) {
  base::MutexLock lock(&mutex_);
  while (gets_.size() < count) changed_.Wait(&mutex_);
}

void PatternStore::FailNext(size_t count, absl::Status status, uint64_t bytes) {
  base::MutexLock lock(&mutex_);
  fail_ = count;
  fail_status_ = std::move(status);
  fail_after_ = bytes;
}

std::vector<store::GetRequest> PatternStore::requests() const {
  base::MutexLock lock(&mutex_);
  return gets_;
}

uint64_t PatternStore::bytes_sent() const {
  base::MutexLock lock(&mutex_);
  return bytes_sent_;
}

}  // namespace millrace::test
