#include "cache/worker/ranks.h"

#include <algorithm>
#include <utility>

namespace millrace::worker {

Ranks::Ranks(const Options& options) : options_(options) {
  auto view = std::make_shared<View>();
  view->members.push_back({options_.id, options_.capacity_bytes, false});
  view->reachable.push_back(true);
  base::MutexLock lock(&mutex_);
  view_ = std::move(view);
}

bool Ranks::View::operator==(const View& other) const {
  return self == other.self && reachable == other.reachable &&
         std::equal(members.begin(), members.end(), other.members.begin(), other.members.end(),
                    [](const pool::PlacedMember& a, const pool::PlacedMember& b) {
                      return a.id == b.id && a.weight == b.weight && a.draining == b.draining;
                    });
}

std::shared_ptr<const Ranks::View> Ranks::view() const {
  base::MutexLock lock(&mutex_);
  return view_;
}

bool Ranks::Update(absl::Span<const pool::MemberStatus> members) {
  auto next = std::make_shared<View>();
  for (const pool::MemberStatus& member : members) {
    // Never reached, or this worker as others see it.
    if (member.id.empty() || member.id == options_.id) continue;
    const bool known =
        std::any_of(next->members.begin(), next->members.end(),
                    [&](const pool::PlacedMember& other) { return other.id == member.id; });
    if (known) continue;
    next->members.push_back({member.id, member.capacity_bytes, member.draining});
    next->reachable.push_back(member.reachable);
  }
  next->self = next->members.size();
  base::MutexLock lock(&mutex_);
  next->members.push_back(
      {options_.id, options_.capacity_bytes, view_->members[view_->self].draining});
  next->reachable.push_back(true);
  const View& now = *view_;
  const bool moved = next->members.size() != now.members.size() ||
                     !(View{next->members, now.reachable, next->self} == now);
  if (moved || next->reachable != now.reachable) view_ = std::move(next);
  return moved;
}

void Ranks::SetDraining() {
  base::MutexLock lock(&mutex_);
  auto next = std::make_shared<View>(*view_);
  next->members[next->self].draining = true;
  view_ = std::move(next);
}

bool Ranks::draining() const {
  const std::shared_ptr<const View> now = view();
  return now->members[now->self].draining;
}

bool Ranks::Owns(absl::string_view source, absl::string_view path, uint64_t extent) const {
  const std::shared_ptr<const View> now = view();
  if (now->members.size() == 1) return true;
  const pool::Ranking ranking = pool::Rank(now->members, source, path, extent);
  const auto end = ranking.begin() + std::min<size_t>(options_.replicas, ranking.size());
  return !now->members[now->self].draining && std::find(ranking.begin(), end, now->self) != end;
}

bool Ranks::OwnsAny(const tier::FileKey& file) const {
  for (uint64_t extent = 0; extent < ExtentCount(file.size); ++extent) {
    if (Owns(file.source, file.path, extent)) return true;
  }
  return false;
}

bool Ranks::OwnsAll(const tier::FileKey& file) const {
  for (uint64_t extent = 0; extent < ExtentCount(file.size); ++extent) {
    if (!Owns(file.source, file.path, extent)) return false;
  }
  return true;
}

bool Ranks::Leads(absl::string_view source, absl::string_view path, uint64_t extent) const {
  const std::shared_ptr<const View> now = view();
  for (const size_t index : pool::Rank(now->members, source, path, extent)) {
    if (now->reachable[index]) return index == now->self;
  }
  return false;
}

uint64_t Ranks::OwnedBytes(const tier::FileKey& file) const {
  uint64_t bytes = 0;
  for (uint64_t extent = 0; extent < ExtentCount(file.size); ++extent) {
    if (Owns(file.source, file.path, extent)) bytes += ExtentBytes(file.size, extent);
  }
  return bytes;
}

std::vector<std::string> Ranks::Ranking(absl::string_view source, absl::string_view path,
                                        uint64_t extent) const {
  const std::shared_ptr<const View> now = view();
  std::vector<std::string> ids;
  for (const size_t index : pool::Rank(now->members, source, path, extent)) {
    ids.push_back(now->members[index].id);
  }
  return ids;
}

uint64_t Ranks::ExtentCount(uint64_t file_size) const {
  return file_size == 0 ? 1 : (file_size - 1) / options_.extent_size + 1;
}

uint64_t Ranks::ExtentBytes(uint64_t file_size, uint64_t extent) const {
  return std::min(options_.extent_size, file_size - extent * options_.extent_size);
}

}  // namespace millrace::worker
