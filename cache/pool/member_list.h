// Who is in the pool: found by the resolver, asked who they are, probed when they failed, by one
// thread; and the view of all that, which readers place by. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cache/pool/member.h"
#include "cache/pool/placement.h"
#include "cache/pool/resolver.h"
#include "common/base/mutex.h"

namespace millrace::pool {

struct MemberListOptions {
  std::vector<WorkerSource> sources;
  Resolver::LookUpFunction look_up;
  absl::Duration refresh;
  uint64_t seed = 0;  // Of the probes' delays.
};

class MemberList {
 public:
  // What placement needs, unchanging. Those that never answered are not in it, nor those whose
  // extent size is not that of most; of two addresses of one worker the Unix socket is.
  struct View {
    std::vector<PlacedMember> placed;
    std::vector<std::shared_ptr<Member>> members;  // Of `placed`, in its order.
    uint64_t extent_size = kExtentSizeDefault;
    uint32_t replicas = 1;
    std::shared_ptr<Member> local;  // The worker of this node; null: there is none. May be unknown.
  };

  // `context` must outlive this; its on_failure is this one's.
  MemberList(MemberListOptions options, MemberContext* context);
  ~MemberList();

  // The first calls of a process wait until everybody was asked once, not longer than until `wait`
  // after the start, and a fifth of a second after the first answer.
  std::shared_ptr<const View> Current(absl::Duration wait);

  // All, by address, those that never answered too. Who is placed by Current from now on is not
  // older than what this tells.
  std::vector<MemberStatus> Status();

 private:
  void Run();
  // Takes the resolver's endpoints over into members_.
  void Adopt();
  // Asks those that are due, several at once.
  void ProbeDue();
  void Publish();
  std::vector<std::shared_ptr<Member>> All() const;
  void Wake();

  const MemberListOptions options_;
  MemberContext* const context_;
  const absl::Duration born_;

  base::Mutex publish_mutex_;  // Taken before mutex_: a later view never yields to an earlier one.
  mutable base::Mutex mutex_;
  base::CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool first_round_done_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::shared_ptr<Member>> members_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const View> view_ ABSL_GUARDED_BY(mutex_) = std::make_shared<View>();
  uint64_t made_ = 0;  // Members ever made; the thread's own.

  std::unique_ptr<Resolver> resolver_;
  std::thread thread_;
};

}  // namespace millrace::pool
