#include "cache/pool/member_list.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/base/log.h"

namespace millrace::pool {
namespace {

constexpr size_t kProbesAtOnce = 8;
// Of the first call, after the first answer.
constexpr absl::Duration kGrace = absl::Milliseconds(200);
constexpr absl::Duration kWaitStep = absl::Milliseconds(20);

// The extent size of most members, of equally many the smallest: everybody who sees the same
// members comes to the same.
uint64_t CommonExtentSize(const std::vector<proto::Welcome>& welcomes) {
  std::map<uint64_t, size_t> counts;
  for (const proto::Welcome& welcome : welcomes) ++counts[welcome.extent_size];
  uint64_t common = kExtentSizeDefault;
  size_t most = 0;
  for (const auto& [size, count] : counts) {
    if (count > most) {
      common = size;
      most = count;
    }
  }
  return common;
}

}  // namespace

MemberList::MemberList(MemberListOptions options, MemberContext* context)
    : options_(std::move(options)), context_(context), born_(context->clock->Monotonic()) {
  context_->on_failure = [this] { Wake(); };
  resolver_ = std::make_unique<Resolver>(options_.sources, options_.refresh, options_.look_up,
                                         [this] { Wake(); });
  thread_ = std::thread([this] { Run(); });
}

MemberList::~MemberList() {
  {
    base::MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void MemberList::Wake() {
  base::MutexLock lock(&mutex_);
  woken_ = true;
  changed_.NotifyAll();
}

std::vector<std::shared_ptr<Member>> MemberList::All() const {
  base::MutexLock lock(&mutex_);
  return members_;
}

void MemberList::Run() {
  while (true) {
    const bool resolved = resolver_->ready();
    Adopt();
    ProbeDue();
    Publish();
    absl::Duration next = absl::InfiniteDuration();
    for (const std::shared_ptr<Member>& member : All()) {
      member->CloseIdle();
      next = std::min(next, member->NextProbe(options_.refresh));
    }
    base::MutexLock lock(&mutex_);
    first_round_done_ |= resolved;
    changed_.NotifyAll();
    // Not later than a refresh: kept connections grow old too.
    const absl::Duration wait =
        std::min(next - context_->clock->Monotonic(), std::max(options_.refresh, kWaitStep));
    if (!stopping_ && !woken_ && wait > absl::ZeroDuration()) changed_.WaitFor(&mutex_, wait);
    woken_ = false;
    if (stopping_) return;
  }
}

void MemberList::Adopt() {
  std::vector<Endpoint> endpoints = resolver_->endpoints();
  std::vector<std::shared_ptr<Member>> known = All();
  std::vector<std::shared_ptr<Member>> next;
  for (Endpoint& endpoint : endpoints) {
    const auto found = std::find_if(known.begin(), known.end(), [&](const auto& member) {
      return member->endpoint() == endpoint;
    });
    if (found != known.end()) {
      next.push_back(*found);
    } else {
      next.push_back(
          std::make_shared<Member>(std::move(endpoint), context_, options_.seed + ++made_));
    }
  }
  base::MutexLock lock(&mutex_);
  members_ = std::move(next);
}

void MemberList::ProbeDue() {
  std::vector<std::shared_ptr<Member>> due;
  const absl::Duration now = context_->clock->Monotonic();
  for (const std::shared_ptr<Member>& member : All()) {
    if (member->NextProbe(options_.refresh) <= now) due.push_back(member);
  }
  if (due.empty()) return;
  std::atomic<size_t> next{0};
  const auto work = [&] {
    while (true) {
      const size_t mine = next.fetch_add(1);
      if (mine >= due.size()) return;
      // Each answer may be the one that a first reader waits for.
      if (due[mine]->Probe(/*fresh=*/true)) Publish();
      base::MutexLock lock(&mutex_);
      if (stopping_) return;
    }
  };
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < std::min(due.size(), kProbesAtOnce); ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
}

void MemberList::Publish() {
  base::MutexLock publish_lock(&publish_mutex_);
  std::vector<std::shared_ptr<Member>> all = All();
  std::vector<std::shared_ptr<Member>> known;
  std::vector<proto::Welcome> welcomes;
  auto view = std::make_shared<View>();
  absl::flat_hash_map<std::string, size_t> by_id;
  for (const std::shared_ptr<Member>& member : all) {
    if (member->is_local()) view->local = member;
    proto::Welcome welcome = member->welcome();
    if (welcome.worker.empty()) continue;
    const auto [found, is_new] = by_id.try_emplace(welcome.worker, known.size());
    if (is_new) {
      known.push_back(member);
      welcomes.push_back(std::move(welcome));
    } else if (member->usable() && (member->is_local() || !known[found->second]->usable())) {
      // Two ways to one worker, or an old address of one that moved.
      known[found->second] = member;
      welcomes[found->second] = std::move(welcome);
    }
  }
  view->extent_size = CommonExtentSize(welcomes);
  view->replicas = 1;
  for (size_t i = 0; i < known.size(); ++i) {
    if (welcomes[i].extent_size != view->extent_size) {
      known[i]->SetComplaint(absl::StrCat("not used: its extents have ", welcomes[i].extent_size,
                                          " bytes, those of the others ", view->extent_size));
      continue;
    }
    known[i]->SetComplaint("");
    view->replicas = std::max(view->replicas, welcomes[i].replicas);
    view->placed.push_back({welcomes[i].worker, welcomes[i].capacity_bytes, welcomes[i].draining});
    view->members.push_back(known[i]);
  }
  base::MutexLock lock(&mutex_);
  view_ = std::move(view);
  changed_.NotifyAll();
}

std::shared_ptr<const MemberList::View> MemberList::Current(absl::Duration wait) {
  base::MutexLock lock(&mutex_);
  if (first_round_done_) return view_;
  base::Clock& clock = *context_->clock;
  absl::Duration end = born_ + wait;
  while (!first_round_done_ && !stopping_) {
    const absl::Duration now = clock.Monotonic();
    if (!view_->placed.empty()) end = std::min(end, now + kGrace);
    if (now >= end) break;
    changed_.WaitFor(&mutex_, std::min(end - now, kWaitStep));
  }
  return view_;
}

std::vector<MemberStatus> MemberList::Status() {
  std::vector<MemberStatus> all;
  for (const std::shared_ptr<Member>& member : All()) all.push_back(member->Status());
  Publish();
  std::sort(all.begin(), all.end(),
            [](const MemberStatus& a, const MemberStatus& b) { return a.address < b.address; });
  return all;
}

}  // namespace millrace::pool
