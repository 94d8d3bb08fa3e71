#include "fuse/adapter/mount.h"

#define FUSE_USE_VERSION 318
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "fuse/adapter/errno_map.h"
#include "fuse/adapter/in_flight.h"
#include "fuse/adapter/notifier.h"
#include "fuse/adapter/spliced_reads.h"

namespace millrace::adapter {
namespace {

// Nodes keep their attributes and names until the tree says otherwise (Invalidator).
constexpr double kForever = 365.0 * 24 * 3600;

// include/uapi/linux/fuse.h of Linux 6.9, which Debian 12's headers do not have yet: the kernel
// sends again, with this bit in their numbers, the requests that were taken and not answered.
constexpr int kNotifyResend = 7;
constexpr uint64_t kUniqueResend = uint64_t{1} << 63;

// INIT waits in the device as soon as it is mounted.
constexpr int kInitTimeoutMs = 30'000;

// Interrupts a serving thread's read of /dev/fuse; its handler does nothing.
constexpr int kWakeSignal = SIGUSR1;
constexpr absl::Duration kWakeInterval = absl::Milliseconds(10);

enum Operation : size_t {
  kLookup,
  kForget,
  kGetattr,
  kOpen,
  kRead,
  kRelease,
  kOpendir,
  kReaddir,
  kReleasedir,
  kStatfs,
  kXattr,
  kAccess,
};

// The number of the request that this thread is processing, as the kernel gave it. libfuse keeps it
// to itself. 0 with the io_uring transport, whose requests are never sent again.
thread_local uint64_t current_unique = 0;

vfs::Vfs::OpenRequest CurrentRequest() {
  return {.unique = current_unique & ~kUniqueResend,
          .resent = (current_unique & kUniqueResend) != 0};
}

// A read that may be answered by its completion or by the kernel's wish to interrupt it, whichever
// comes first. An application that is killed while the store hangs goes away at once.
class PendingRead : public std::enable_shared_from_this<PendingRead> {
 public:
  PendingRead(fuse_req_t request, InFlight::Token token)
      : request_(request), token_(std::move(token)) {}

  // True for the one who may answer.
  bool Claim() {
    base::MutexLock lock(&mutex_);
    return !std::exchange(answered_, true);
  }
  // The same for an interrupt. The kernel's word is checked again: the request that was
  // interrupted may be gone, and this one may have its address.
  bool ClaimInterrupted() {
    base::MutexLock lock(&mutex_);
    if (answered_ || !fuse_req_interrupted(request_)) return false;
    return answered_ = true;
  }
  // After the read was started and not answered inline: hear of interrupts. While this holds the
  // lock nobody can answer, so libfuse's request lives.
  template <typename Register>
  void IfUnanswered(Register registration) {
    base::MutexLock lock(&mutex_);
    if (!answered_) registration();
  }
  fuse_req_t request() const { return request_; }
  // By the one who answered. The read itself may go on.
  void Answered() { token_.Done(); }

 private:
  const fuse_req_t request_;
  InFlight::Token token_;
  base::Mutex mutex_;
  bool answered_ ABSL_GUARDED_BY(mutex_) = false;
};

// Slow reads by request, for the interrupts that name them. Thread-safe.
class SlowReads {
 public:
  void Add(fuse_req_t request, std::weak_ptr<PendingRead> read) {
    base::MutexLock lock(&mutex_);
    reads_[request] = std::move(read);
    count_.store(reads_.size(), std::memory_order_release);
  }
  void Remove(fuse_req_t request) {
    // The common read was never slow.
    if (count_.load(std::memory_order_acquire) == 0) return;
    base::MutexLock lock(&mutex_);
    reads_.erase(request);
    count_.store(reads_.size(), std::memory_order_release);
  }
  std::shared_ptr<PendingRead> Find(fuse_req_t request) {
    base::MutexLock lock(&mutex_);
    const auto found = reads_.find(request);
    return found == reads_.end() ? nullptr : found->second.lock();
  }

 private:
  std::atomic<size_t> count_{0};
  base::Mutex mutex_;
  absl::flat_hash_map<fuse_req_t, std::weak_ptr<PendingRead>> reads_ ABSL_GUARDED_BY(mutex_);
};

class FuseMount : public Mount, public vfs::Invalidator {
 public:
  FuseMount(const MountOptions& options, Session session, MakeVfs make_vfs,
            absl::AnyInvocable<Capacity()> capacity)
      : options_(options),
        from_(std::move(session)),
        make_vfs_(std::move(make_vfs)),
        capacity_(std::move(capacity)) {}
  ~FuseMount() override;

  absl::Status Start();

  vfs::Vfs& vfs() override { return *vfs_; }
  Features features() const override { return features_; }
  const OperationCounts& operations() const override { return operations_; }
  void Wait() override;
  void Stop() override;
  bool Detach(absl::Duration timeout) override;

  // Invalidator.
  void EntryChanged(vfs::NodeId parent, absl::string_view name) override;
  void DirectoryChanged(vfs::NodeId directory) override;
  void EntryExpired(vfs::NodeId parent, absl::string_view name) override;

  // Requests.
  void Init(fuse_conn_info* connection);
  void Lookup(fuse_req_t request, fuse_ino_t parent, const char* name);
  void Getattr(fuse_req_t request, fuse_ino_t node);
  void OpenFile(fuse_req_t request, fuse_ino_t node, const fuse_file_info& info);
  void Read(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset, uint64_t handle);
  void Release(fuse_req_t request, fuse_ino_t node, const fuse_file_info& info);
  void Opendir(fuse_req_t request, fuse_ino_t node, const fuse_file_info& info);
  void Readdir(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset,
               const fuse_file_info& info, bool plus);
  void Releasedir(fuse_req_t request, const fuse_file_info& info) {
    vfs_->ReleaseDirectory(info.fh);
    fuse_reply_err(request, 0);
  }
  void Statfs(fuse_req_t request);
  void Access(fuse_req_t request, fuse_ino_t node, int mask);
  void Getxattr(fuse_req_t request, fuse_ino_t node, const char* name, size_t size);
  void Listxattr(fuse_req_t request, fuse_ino_t node, size_t size);
  void Forget(fuse_ino_t node, uint64_t count) { vfs_->Forget(node, count); }
  void Count(Operation operation) {
    operations_[operation].fetch_add(1, std::memory_order_relaxed);
  }

 private:
  void Interrupt(fuse_req_t request);
  using NotifyEntry = int (*)(fuse_session*, fuse_ino_t parent, const char* name, size_t size);
  void TellEntry(vfs::NodeId parent, absl::string_view name, NotifyEntry notify);
  struct stat StatOf(const vfs::Attributes& attributes) const;
  fuse_entry_param EntryOf(const vfs::Attributes& attributes) const;
  absl::Status MakeSession();
  absl::Status TakeOver();
  absl::Status BeginSession();
  void Process(const fuse_buf& buffer);
  void Serve();
  void EndServing();

  const MountOptions options_;
  Session from_;
  MakeVfs make_vfs_;
  absl::AnyInvocable<Capacity()> capacity_;

  fuse_session* session_ = nullptr;
  Features features_;
  OperationCounts operations_ = {};
  std::unique_ptr<vfs::Vfs> vfs_;
  std::vector<std::thread> threads_;
  InFlight in_flight_;
  std::atomic<bool> detaching_{false};
  SlowReads slow_reads_;
  Notifier notifier_;

  base::Mutex mutex_;
  base::CondVar ended_;
  size_t serving_ ABSL_GUARDED_BY(mutex_) = 0;
};

FuseMount* Self(fuse_req_t request) { return static_cast<FuseMount*>(fuse_req_userdata(request)); }

// ---- libfuse's callbacks: a count and a call ----

void OnInit(void* self, fuse_conn_info* connection) {
  static_cast<FuseMount*>(self)->Init(connection);
}
void OnLookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  Self(request)->Count(kLookup);
  Self(request)->Lookup(request, parent, name);
}
void OnForget(fuse_req_t request, fuse_ino_t node, uint64_t count) {
  Self(request)->Count(kForget);
  Self(request)->Forget(node, count);
  fuse_reply_none(request);
}
void OnForgetMulti(fuse_req_t request, size_t count, fuse_forget_data* forgets) {
  Self(request)->Count(kForget);
  for (size_t i = 0; i < count; ++i) Self(request)->Forget(forgets[i].ino, forgets[i].nlookup);
  fuse_reply_none(request);
}
void OnGetattr(fuse_req_t request, fuse_ino_t node, fuse_file_info*) {
  Self(request)->Count(kGetattr);
  Self(request)->Getattr(request, node);
}
void OnOpen(fuse_req_t request, fuse_ino_t node, fuse_file_info* info) {
  Self(request)->Count(kOpen);
  Self(request)->OpenFile(request, node, *info);
}
void OnRead(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset, fuse_file_info* info) {
  Self(request)->Count(kRead);
  Self(request)->Read(request, node, size, offset, info->fh);
}
void OnRelease(fuse_req_t request, fuse_ino_t node, fuse_file_info* info) {
  Self(request)->Count(kRelease);
  Self(request)->Release(request, node, *info);
}
void OnOpendir(fuse_req_t request, fuse_ino_t node, fuse_file_info* info) {
  Self(request)->Count(kOpendir);
  Self(request)->Opendir(request, node, *info);
}
void OnReaddir(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset,
               fuse_file_info* info) {
  Self(request)->Count(kReaddir);
  Self(request)->Readdir(request, node, size, offset, *info, /*plus=*/false);
}
void OnReaddirplus(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset,
                   fuse_file_info* info) {
  Self(request)->Count(kReaddir);
  Self(request)->Readdir(request, node, size, offset, *info, /*plus=*/true);
}
void OnReleasedir(fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
  Self(request)->Count(kReleasedir);
  Self(request)->Releasedir(request, *info);
}
void OnStatfs(fuse_req_t request, fuse_ino_t) {
  Self(request)->Count(kStatfs);
  Self(request)->Statfs(request);
}
void OnAccess(fuse_req_t request, fuse_ino_t node, int mask) {
  Self(request)->Count(kAccess);
  Self(request)->Access(request, node, mask);
}
void OnGetxattr(fuse_req_t request, fuse_ino_t node, const char* name, size_t size) {
  Self(request)->Count(kXattr);
  Self(request)->Getxattr(request, node, name, size);
}
void OnListxattr(fuse_req_t request, fuse_ino_t node, size_t size) {
  Self(request)->Count(kXattr);
  Self(request)->Listxattr(request, node, size);
}

fuse_lowlevel_ops Operations() {
  fuse_lowlevel_ops operations = {};
  operations.init = OnInit;
  operations.lookup = OnLookup;
  operations.forget = OnForget;
  operations.forget_multi = OnForgetMulti;
  operations.getattr = OnGetattr;
  operations.open = OnOpen;
  operations.read = OnRead;
  operations.release = OnRelease;
  operations.opendir = OnOpendir;
  operations.readdir = OnReaddir;
  operations.readdirplus = OnReaddirplus;
  operations.releasedir = OnReleasedir;
  operations.statfs = OnStatfs;
  operations.access = OnAccess;
  operations.getxattr = OnGetxattr;
  operations.listxattr = OnListxattr;
  return operations;
}

// ---- Attributes ----

struct stat FuseMount::StatOf(const vfs::Attributes& attributes) const {
  struct stat result = {};
  result.st_ino = attributes.id;
  result.st_uid = options_.uid;
  result.st_gid = options_.gid;
  result.st_nlink = 1;
  result.st_mode =
      attributes.is_directory ? S_IFDIR | options_.directory_mode : S_IFREG | options_.file_mode;
  result.st_size = static_cast<off_t>(attributes.size);
  result.st_blocks = static_cast<blkcnt_t>((attributes.size + 511) / 512);
  result.st_blksize = 128 * 1024;
  const timespec mtime = absl::ToTimespec(attributes.mtime);
  result.st_atim = result.st_mtim = result.st_ctim = mtime;
  return result;
}

fuse_entry_param FuseMount::EntryOf(const vfs::Attributes& attributes) const {
  fuse_entry_param entry = {};
  entry.ino = attributes.id;
  entry.attr = StatOf(attributes);
  entry.attr_timeout = kForever;
  entry.entry_timeout = kForever;
  return entry;
}

// ---- Requests ----

void FuseMount::Init(fuse_conn_info* connection) {
  features_.protocol_minor = connection->proto_minor;
  connection->max_readahead = options_.read_ahead_kib * 1024;
  connection->max_write = 1 << 20;  // Decides the pages of a request, reads included: 256.
  connection->max_background = 64;
  connection->congestion_threshold = 48;
  for (const uint64_t flag :
       {FUSE_CAP_READDIRPLUS, FUSE_CAP_READDIRPLUS_AUTO, FUSE_CAP_PARALLEL_DIROPS,
        FUSE_CAP_ASYNC_READ, FUSE_CAP_ASYNC_DIO, FUSE_CAP_EXPLICIT_INVAL_DATA}) {
    fuse_set_feature_flag(connection, flag);
  }
  // Pages of a node never change: another version is another node.
  fuse_unset_feature_flag(connection, FUSE_CAP_AUTO_INVAL_DATA);
  // Replies go by writev: splicing was measured slower (and by others).
  for (const uint64_t flag : {FUSE_CAP_SPLICE_READ, FUSE_CAP_SPLICE_WRITE, FUSE_CAP_SPLICE_MOVE}) {
    fuse_unset_feature_flag(connection, flag);
  }
  features_.without_open = fuse_get_feature_flag(connection, FUSE_CAP_NO_OPEN_SUPPORT);
  // The kernel offers passthrough to anybody; registering a backing file takes CAP_SYS_ADMIN, which
  // the holder of the session has or not.
  features_.passthrough = options_.passthrough && from_.backing != nullptr &&
                          fuse_set_feature_flag(connection, FUSE_CAP_PASSTHROUGH);
  // Without it a shared mapping of a file that is read directly would be refused.
  features_.direct = fuse_set_feature_flag(connection, FUSE_CAP_DIRECT_IO_ALLOW_MMAP);
  features_.uring = options_.uring && fuse_get_feature_flag(connection, FUSE_CAP_OVER_IO_URING);
  if (options_.uring && !features_.uring) {
    base::Log(base::Severity::kWarning, "the kernel offers no io_uring transport any more");
  }
  if (features_.passthrough) connection->max_backing_stack_depth = options_.backing_stack_depth;
  vfs_ = make_vfs_(features_.passthrough ? from_.backing : nullptr, features_);
  vfs_->tree().SetInvalidator(this);
}

void FuseMount::Lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  vfs_->tree().Lookup(parent, name,
                      [this, request, parent, name = std::string(name),
                       token = in_flight_.Begin()](absl::StatusOr<vfs::Attributes> found) {
                        if (found.ok()) {
                          const fuse_entry_param entry = EntryOf(*found);
                          // An interrupted lookup's reply is dropped by the kernel, and its count
                          // with it.
                          if (fuse_reply_entry(request, &entry) == -ENOENT)
                            vfs_->Forget(found->id, 1);
                          return;
                        }
                        const int error = ErrnoFor(found.status());
                        if (error == ENOENT) {
                          fuse_entry_param negative = {};
                          negative.entry_timeout = absl::ToDoubleSeconds(options_.negative_timeout);
                          fuse_reply_entry(request, &negative);
                          return;
                        }
                        base::Log(base::Severity::kWarning, "lookup failed",
                                  {{"name", name}, {"cause", found.status().ToString()}});
                        fuse_reply_err(request, error);
                      });
}

void FuseMount::Getattr(fuse_req_t request, fuse_ino_t node) {
  const absl::StatusOr<vfs::Attributes> attributes = vfs_->tree().GetAttributes(node);
  if (!attributes.ok()) {
    fuse_reply_err(request, ESTALE);
    return;
  }
  const struct stat stat = StatOf(*attributes);
  fuse_reply_attr(request, &stat, kForever);
}

// The mode of an open file travels in its handle, so that RELEASE needs no table: the lowest bit
// says passthrough.
void FuseMount::OpenFile(fuse_req_t request, fuse_ino_t node, const fuse_file_info& info) {
  if ((info.flags & O_ACCMODE) != O_RDONLY) {
    fuse_reply_err(request, EROFS);
    return;
  }
  vfs_->Open(node, CurrentRequest(),
             [this, request, node, info = info,
              token = in_flight_.Begin()](absl::StatusOr<vfs::Vfs::OpenReply> opened) mutable {
               if (!opened.ok()) {
                 fuse_reply_err(request, ErrnoFor(opened.status()));
                 return;
               }
               if (opened->without_open) {
                 fuse_reply_err(request, ENOSYS);
                 return;
               }
               info.fh = opened->handle;
               info.noflush = 1;
               if (opened->mode == vfs::OpenMode::kPassthrough) {
                 info.backing_id = opened->backing_id;
                 info.keep_cache = 0;  // The kernel refuses it beside passthrough.
               } else {
                 info.keep_cache = 1;
                 info.direct_io = opened->mode == vfs::OpenMode::kDirect;
               }
               // The opener was interrupted and there will be no RELEASE.
               if (fuse_reply_open(request, &info) == -ENOENT) {
                 vfs_->Release(node, opened->handle);
               }
             });
}

void FuseMount::Read(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset,
                     uint64_t handle) {
  const auto pending = std::make_shared<PendingRead>(request, in_flight_.Begin());
  vfs_->Read(node, handle, static_cast<uint64_t>(offset), size,
             [this, pending](absl::StatusOr<fetch::ReadResult> result) {
               if (!pending->Claim()) return;
               slow_reads_.Remove(pending->request());
               if (!result.ok()) {
                 fuse_reply_err(pending->request(), ErrnoFor(result.status()));
                 return pending->Answered();
               }
               absl::InlinedVector<iovec, 10> pieces;
               for (const absl::Span<const char> piece : result->pieces) {
                 pieces.push_back({const_cast<char*>(piece.data()), piece.size()});
               }
               fuse_reply_iov(pending->request(), pieces.data(), static_cast<int>(pieces.size()));
               pending->Answered();
             });
  pending->IfUnanswered([this, &pending] {
    slow_reads_.Add(pending->request(), pending);
    fuse_req_interrupt_func(
        pending->request(),
        [](fuse_req_t interrupted, void* self) {
          static_cast<FuseMount*>(self)->Interrupt(interrupted);
        },
        this);
  });
}

void FuseMount::Interrupt(fuse_req_t request) {
  // libfuse calls with the request's lock held: the answer has to come from elsewhere.
  notifier_.Post([this, request] {
    const std::shared_ptr<PendingRead> read = slow_reads_.Find(request);
    if (read == nullptr || !read->ClaimInterrupted()) return;
    slow_reads_.Remove(request);
    fuse_reply_err(request, EINTR);
    read->Answered();
  });
}

void FuseMount::Release(fuse_req_t request, fuse_ino_t node, const fuse_file_info& info) {
  vfs_->Release(node, info.fh);
  fuse_reply_err(request, 0);
}

void FuseMount::Opendir(fuse_req_t request, fuse_ino_t node, const fuse_file_info& info) {
  const absl::StatusOr<uint64_t> directory = vfs_->OpenDirectory(node);
  if (!directory.ok()) {
    fuse_reply_err(request, ErrnoFor(directory.status()));
    return;
  }
  fuse_file_info reply = info;
  reply.fh = *directory;
  reply.cache_readdir = 1;
  reply.keep_cache = 1;
  // Without the kernel's knowledge of it there will be no RELEASEDIR.
  if (fuse_reply_open(request, &reply) != 0) vfs_->ReleaseDirectory(*directory);
}

// Fills one reply of READDIR or READDIRPLUS.
class DirectoryReply {
 public:
  DirectoryReply(fuse_req_t request, size_t size, bool plus, InFlight::Token token)
      : request_(request), plus_(plus), token_(std::move(token)), buffer_(size) {}

  // False when the entry does not fit any more.
  bool Add(const char* name, const fuse_entry_param& entry, off_t next_offset) {
    const size_t left = buffer_.size() - used_;
    const size_t needed = plus_ ? fuse_add_direntry_plus(request_, buffer_.data() + used_, left,
                                                         name, &entry, next_offset)
                                : fuse_add_direntry(request_, buffer_.data() + used_, left, name,
                                                    &entry.attr, next_offset);
    if (needed > left) return false;
    used_ += needed;
    return true;
  }

  void Send(const absl::Status& status) {
    // What was found before an error is given first; the next call meets the error again.
    if (!status.ok() && used_ == 0) {
      fuse_reply_err(request_, ErrnoFor(status));
    } else {
      fuse_reply_buf(request_, buffer_.data(), used_);
    }
  }

 private:
  const fuse_req_t request_;
  const bool plus_;
  const InFlight::Token token_;
  std::vector<char> buffer_;
  size_t used_ = 0;
};

void FuseMount::Readdir(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset,
                        const fuse_file_info& info, bool plus) {
  const auto reply = std::make_shared<DirectoryReply>(request, size, plus, in_flight_.Begin());
  // Positions 0 and 1 are "." and ".."; the tree's start after them.
  constexpr off_t kDots = 2;
  fuse_entry_param dot = {};
  dot.attr.st_mode = S_IFDIR;
  dot.attr.st_ino = node;
  if (offset < 1 && !reply->Add(".", dot, 1)) return reply->Send(absl::OkStatus());
  dot.attr.st_ino = vfs_->tree().Parent(node);
  if (offset < 2 && !reply->Add("..", dot, 2)) return reply->Send(absl::OkStatus());
  vfs_->ReadDirectory(
      node, info.fh, static_cast<uint64_t>(offset < kDots ? 0 : offset - kDots), plus,
      [this, reply](const vfs::Tree::DirectoryEntry& entry) {
        return reply->Add(std::string(entry.name).c_str(), EntryOf(*entry.attributes),
                          static_cast<off_t>(entry.next_offset) + kDots);
      },
      [reply](const absl::Status& status) { reply->Send(status); });
}

void FuseMount::Statfs(fuse_req_t request) {
  // `df` shows the cache: what a mount takes on this machine. The store has no size to tell.
  const Capacity capacity = capacity_();
  struct statvfs result = {};
  result.f_bsize = result.f_frsize = 4096;
  result.f_blocks = capacity.capacity_bytes / 4096;
  result.f_bfree = result.f_bavail =
      (capacity.capacity_bytes - std::min(capacity.used_bytes, capacity.capacity_bytes)) / 4096;
  result.f_files = capacity.files;
  result.f_namemax = 255;
  result.f_flag = ST_RDONLY;
  fuse_reply_statfs(request, &result);
}

// access(2) and chdir(2), of mounts in which owner, group and others have the same rights (in
// others the kernel answers by itself): may anybody execute it? Writing the kernel has refused.
void FuseMount::Access(fuse_req_t request, fuse_ino_t node, int mask) {
  const absl::StatusOr<vfs::Attributes> attributes = vfs_->tree().GetAttributes(node);
  if (!attributes.ok()) {
    fuse_reply_err(request, ESTALE);
    return;
  }
  const uint32_t mode = attributes->is_directory ? options_.directory_mode : options_.file_mode;
  fuse_reply_err(request, (mask & X_OK) != 0 && (mode & 0111) == 0 ? EACCES : 0);
}

// The kernel asks for the size first (size 0), then for the bytes.
void ReplyXattr(fuse_req_t request, absl::string_view value, size_t size) {
  if (size == 0) {
    fuse_reply_xattr(request, value.size());
  } else if (size < value.size()) {
    fuse_reply_err(request, ERANGE);
  } else {
    fuse_reply_buf(request, value.data(), value.size());
  }
}

void FuseMount::Getxattr(fuse_req_t request, fuse_ino_t node, const char* name, size_t size) {
  const absl::StatusOr<std::string> value = vfs_->GetXattr(node, name);
  if (!value.ok()) {
    fuse_reply_err(request, ErrnoFor(value.status()));
    return;
  }
  ReplyXattr(request, *value, size);
}

void FuseMount::Listxattr(fuse_req_t request, fuse_ino_t node, size_t size) {
  std::string names;
  for (const std::string& name : vfs_->ListXattrs(node)) {
    names += name;
    names.push_back('\0');
  }
  ReplyXattr(request, names, size);
}

// ---- Notifications ----

void FuseMount::TellEntry(vfs::NodeId parent, absl::string_view name, NotifyEntry notify) {
  const bool posted = notifier_.Post([this, parent, name = std::string(name), notify] {
    notify(session_, parent, name.data(), name.size());
  });
  // Too many to tell one by one: let the kernel ask again about every name.
  if (!posted) fuse_lowlevel_notify_increment_epoch(session_);
}

void FuseMount::EntryChanged(vfs::NodeId parent, absl::string_view name) {
  TellEntry(parent, name, fuse_lowlevel_notify_inval_entry);
}

void FuseMount::EntryExpired(vfs::NodeId parent, absl::string_view name) {
  TellEntry(parent, name, fuse_lowlevel_notify_expire_entry);
}

void FuseMount::DirectoryChanged(vfs::NodeId directory) {
  notifier_.Post(
      [this, directory] { fuse_lowlevel_notify_inval_inode(session_, directory, 0, 0); });
}

// ---- The session's life ----

absl::Status FuseMount::MakeSession() {
  std::vector<std::string> words = {"millrace"};
  if (options_.uring) words.insert(words.end(), {"-o", "io_uring"});
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  fuse_args arguments = FUSE_ARGS_INIT(static_cast<int>(argv.size()), argv.data());
  const fuse_lowlevel_ops operations = Operations();
  session_ = fuse_session_new(&arguments, &operations, sizeof(operations), this);
  fuse_opt_free_args(&arguments);
  if (session_ == nullptr) return absl::InternalError("libfuse refused to make a session");
  // A device that somebody else mounted. libfuse owns it from here on.
  const std::string device = absl::StrCat("/dev/fd/", from_.device.get());
  if (fuse_session_mount(session_, device.c_str()) != 0) {
    return base::ErrnoStatus(errno, "libfuse refused the device");
  }
  from_.device.Release();
  return absl::OkStatus();
}

absl::Status FuseMount::Start() {
  RETURN_IF_ERROR(MakeSession());
  RETURN_IF_ERROR(from_.saved_init.empty() ? BeginSession() : TakeOver());
  if (vfs_ == nullptr || fuse_session_exited(session_)) {
    return absl::FailedPreconditionError("the kernel's INIT request was refused");
  }
  struct sigaction wake = {};
  wake.sa_handler = [](int) {};  // Without SA_RESTART: the read ends.
  sigaction(kWakeSignal, &wake, nullptr);
  {
    base::MutexLock lock(&mutex_);
    serving_ = options_.threads;
  }
  for (size_t i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { Serve(); });
  return absl::OkStatus();
}

// The first request is INIT, and no other comes before it is answered.
absl::Status FuseMount::BeginSession() {
  pollfd device = {.fd = fuse_session_fd(session_), .events = POLLIN};
  if (poll(&device, 1, kInitTimeoutMs) != 1) {
    return absl::DeadlineExceededError(
        "the kernel sent no INIT request: the device is not mounted");
  }
  fuse_buf buffer = {};
  const int received = fuse_session_receive_buf(session_, &buffer);
  absl::Status status;
  if (received <= 0) {
    status = base::ErrnoStatus(received == 0 ? ENODEV : -received, "read of the INIT request");
  } else if (from_.save_init) {
    // Before the kernel knows that it was read: a successor could not go on without.
    status = from_.save_init(absl::string_view(static_cast<char*>(buffer.mem), buffer.size));
  }
  if (status.ok()) Process(buffer);
  std::free(buffer.mem);
  return status;
}

// The kernel takes the answer to INIT once; libfuse does not mind that this one is not wanted. What
// the predecessor had not answered comes again, ahead of everything else.
absl::Status FuseMount::TakeOver() {
  fuse_buf buffer = {};
  buffer.mem = from_.saved_init.data();
  buffer.size = from_.saved_init.size();
  if (buffer.size < sizeof(fuse_in_header)) {
    return absl::DataLossError("the saved INIT request is damaged");
  }
  Process(buffer);
  const fuse_out_header resend = {
      .len = sizeof(fuse_out_header), .error = kNotifyResend, .unique = 0};
  if (write(fuse_session_fd(session_), &resend, sizeof(resend)) == sizeof(resend)) {
    return absl::OkStatus();
  }
  const absl::Status failed = base::ErrnoStatus(errno, "FUSE_NOTIFY_RESEND");
  if (errno != EINVAL) return failed;
  // Before Linux 6.9 there is no such word, and the next successor could not say it either.
  base::Log(base::Severity::kError,
            "this kernel cannot send requests again: what was under way waits for ever",
            {{"cause", failed.ToString()}});
  return absl::OkStatus();
}

void FuseMount::Process(const fuse_buf& buffer) {
  current_unique = static_cast<const fuse_in_header*>(buffer.mem)->unique;
  fuse_session_process_buf(session_, &buffer);
}

void FuseMount::Serve() {
  fuse_buf buffer = {};
  SplicedReads spliced_reads(fuse_session_fd(session_));
  while (!fuse_session_exited(session_) && !detaching_) {
    const int received = fuse_session_receive_buf(session_, &buffer);
    if (received == -EINTR) continue;
    if (received <= 0) break;  // Unmounted.
    if (spliced_reads.Answer(vfs_.get(), buffer)) {
      Count(kRead);
      continue;
    }
    Process(buffer);
  }
  std::free(buffer.mem);
  base::MutexLock lock(&mutex_);
  if (--serving_ == 0) ended_.NotifyAll();
}

void FuseMount::Wait() {
  base::MutexLock lock(&mutex_);
  while (serving_ > 0) ended_.Wait(&mutex_);
}

void FuseMount::Stop() {
  fuse_session_exit(session_);
  EndServing();
}

bool FuseMount::Detach(absl::Duration timeout) {
  // Not by the session's own flag: with it libfuse drops a request that it has just read.
  detaching_ = true;
  EndServing();
  const bool answered = in_flight_.AwaitNone(timeout);
  // In the device's place, so that late answers and notifications go nowhere. One that is being
  // written right now reaches the kernel before or after it sends the request again; the second
  // of two answers is not wanted there.
  const base::UniqueFd nowhere(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!nowhere.valid() || dup3(nowhere.get(), fuse_session_fd(session_), O_CLOEXEC) < 0) {
    base::Log(base::Severity::kError, "the device could not be let go of",
              {{"cause", base::ErrnoStatus(errno, "dup3").ToString()}});
  }
  vfs_->Detach();
  return answered;
}

// The threads wait in reads of the device, which have to be interrupted. Repeated, because a signal
// that comes before the read is lost.
void FuseMount::EndServing() {
  base::MutexLock lock(&mutex_);
  while (serving_ > 0) {
    for (std::thread& thread : threads_) pthread_kill(thread.native_handle(), kWakeSignal);
    ended_.WaitFor(&mutex_, kWakeInterval);
  }
}

FuseMount::~FuseMount() {
  if (session_ == nullptr) return;
  Stop();
  for (std::thread& thread : threads_) thread.join();
  vfs_.reset();
  fuse_session_destroy(session_);
}

}  // namespace

bool HasUring() {
#ifdef MILLRACE_FUSE_URING
  return true;
#else
  return false;
#endif
}

absl::StatusOr<std::unique_ptr<Mount>> Mount::Create(const MountOptions& options, Session session,
                                                     MakeVfs make_vfs,
                                                     absl::AnyInvocable<Capacity()> capacity) {
  auto mount = std::make_unique<FuseMount>(options, std::move(session), std::move(make_vfs),
                                           std::move(capacity));
  if (absl::Status status = mount->Start(); !status.ok()) return status;
  return mount;
}

}  // namespace millrace::adapter
