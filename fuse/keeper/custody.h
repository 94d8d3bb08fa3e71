// The daemon's end of custody: what it asks its keeper, what the keeper tells it, and how it finds
// another keeper when its own has died.
//
//   ASSIGN_OR_RETURN(auto custody, Custody::Connect(socket, version));
//   …options, sources…
//   if (custody->standby()) RETURN_IF_ERROR(custody->AwaitGo());
//   …cache…
//   ASSIGN_OR_RETURN(Grant grant, custody->Open());
//   …answers the kernel…
//   RETURN_IF_ERROR(custody->Serving());
//
// Without its keeper a daemon serves on: calls fail at once with Unavailable, and whoever connects
// to the adoption socket as the same user as the keeper was, or as root, becomes the keeper.
//
// Thread-safe. One thread of its own reads the sockets.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/mutex.h"
#include "common/base/unique_fd.h"
#include "fuse/keeper/custody_protocol.h"
#include "fuse/keeper/session_state.h"

namespace millrace::keeper {

// What a mount is served with.
struct Grant {
  base::UniqueFd device;
  base::UniqueFd control_listener;
  bool can_back = false;  // BackingOpen works.
};

// What the keeper asks of a daemon. Called by the custody's thread, which answers nothing
// meanwhile: note it, and return.
class CustodyEvents {
 public:
  virtual ~CustodyEvents() = default;
  // Hand over to a successor, then call Drained and exit with kExitDrained: at once, or when the
  // session that nobody can take over has ended.
  virtual void OnDrain() = 0;
  // Stop serving, close the cache, exit.
  virtual void OnFinish() = 0;
  // What a new keeper must know: the registered files, by node.
  virtual std::vector<std::pair<uint64_t, int>> BackingIds() = 0;
};

class Custody {
 public:
  // Says hello at the socket that the keeper gave this process. `version` is the program's.
  static absl::StatusOr<std::unique_ptr<Custody>> Connect(base::UniqueFd socket,
                                                          absl::string_view version);
  ~Custody();
  Custody(const Custody&) = delete;
  Custody& operator=(const Custody&) = delete;

  // The keeper made this process another user than it is itself.
  bool has_other_user() const { return keeper_uid_ != geteuid(); }

  bool take_over() const { return (flags_ & kTakeOver) != 0; }
  bool standby() const { return (flags_ & kStandby) != 0; }
  // Who this process runs as, in the keeper's words; for a person.
  const std::string& identity() const { return identity_; }
  SessionMemory& session() { return session_; }
  const SessionMemory& session() const { return session_; }
  // A descriptor of the node memory of its own. Once there was Go.
  absl::StatusOr<base::UniqueFd> NodeMemory() const;

  // Of a stand-by: everything is ready but the cache; waits until the predecessor has let go.
  absl::Status AwaitGo();
  // Mounts, if this is the first daemon. An error is for the person who mounts.
  absl::StatusOr<Grant> Open();
  // The kernel is answered. Returns when the keeper has made that known (mount.json).
  absl::Status Serving();

  // From now on events are told; those that came before are told now. Once.
  void Listen(CustodyEvents* events);

  // The kernel's id of the file behind `fd` as the backing file of `node`: the one that the node
  // has already, if it has one. Unavailable without a keeper, or once there is a successor.
  absl::StatusOr<int> BackingOpen(uint64_t node, int fd);
  void BackingClose(uint64_t node);

  // Asks for the unmount, which then ends the session. Unavailable without a keeper.
  absl::Status EndMount();
  void Leaving();
  // `lingers`: this daemon serves on what is open of its session, while a successor serves another
  // one. It has nothing more to do with the keeper, nor takes another.
  void Drained(bool lingers);
  void Refused(absl::string_view why);

  bool has_keeper() const;

 private:
  struct Call;

  Custody(base::UniqueFd socket, std::string version);

  absl::Status Tell(FrameType type, uint64_t a = 0, absl::string_view text = "");
  absl::StatusOr<Message> Ask(Frame frame, absl::Span<const int> descriptors = {});
  void Read();
  bool ReadOne();
  void Handle(Message message);
  void TellEvents();
  void LoseKeeper();
  void Adopt();
  absl::Status AnswerAdopter(int socket);

  const std::string version_;
  uid_t keeper_uid_ = 0;
  uint64_t flags_ = 0;
  std::string identity_;
  SessionMemory session_;
  base::UniqueFd nodes_;
  base::UniqueFd wakeup_;
  std::thread reader_;

  mutable base::Mutex mutex_;
  base::CondVar changed_;
  // Replaced by an adoption, by the reader alone; senders hold a reference of their own.
  std::shared_ptr<base::UniqueFd> socket_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_serial_ ABSL_GUARDED_BY(mutex_) = 1;
  absl::flat_hash_map<uint64_t, Call*> calls_ ABSL_GUARDED_BY(mutex_);
  MountDescriptors mount_ ABSL_GUARDED_BY(mutex_);
  bool go_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool lingers_ ABSL_GUARDED_BY(mutex_) = false;
  bool drain_ ABSL_GUARDED_BY(mutex_) = false;
  bool finish_ ABSL_GUARDED_BY(mutex_) = false;
  CustodyEvents* events_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace millrace::keeper
