#include "fuse/adapter/mount.h"

#define FUSE_USE_VERSION 318
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"
#include "common/base/mutex.h"
#include "fuse/adapter/errno_map.h"
#include "fuse/adapter/notifier.h"

namespace millrace::adapter {
namespace {

// Nodes keep their attributes and names until the tree says otherwise (Invalidator).
constexpr double kForever = 365.0 * 24 * 3600;

// include/uapi/linux/fuse.h of Linux 6.9, which Debian 12's headers do not have yet.
struct BackingMap {
  int32_t fd;
  uint32_t flags;
  uint64_t padding;
};
constexpr unsigned long kBackingOpen = _IOW(229, 1, BackingMap);
constexpr unsigned long kBackingClose = _IOW(229, 2, uint32_t);

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
};

// A read that may be answered by its completion or by the kernel's wish to interrupt it, whichever
// comes first. An application that is killed while the store hangs goes away at once.
class PendingRead : public std::enable_shared_from_this<PendingRead> {
 public:
  explicit PendingRead(fuse_req_t request) : request_(request) {}

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

 private:
  const fuse_req_t request_;
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

class FuseMount : public Mount, public vfs::Invalidator, public vfs::BackingFiles {
 public:
  FuseMount(const MountOptions& options,
            absl::AnyInvocable<std::unique_ptr<vfs::Vfs>(vfs::BackingFiles*)> make_vfs,
            absl::AnyInvocable<Capacity()> capacity)
      : options_(options), make_vfs_(std::move(make_vfs)), capacity_(std::move(capacity)) {}
  ~FuseMount() override;

  absl::Status Start();

  vfs::Vfs& vfs() override { return *vfs_; }
  Features features() const override { return features_; }
  const OperationCounts& operations() const override { return operations_; }
  void Wait() override;
  void Stop() override;

  // Invalidator.
  void EntryChanged(vfs::NodeId parent, absl::string_view name) override;
  void DirectoryChanged(vfs::NodeId directory) override;
  void EntryExpired(vfs::NodeId parent, absl::string_view name) override;

  // BackingFiles.
  absl::StatusOr<int> Open(int fd) override;
  void Close(int backing_id) override;

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
  void Releasedir(fuse_req_t request, const fuse_file_info& info);
  void Statfs(fuse_req_t request);
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
  void Serve();
  void EndServing();
  void RaiseReadAhead();
  absl::Status AwaitAnswer();

  const MountOptions options_;
  absl::AnyInvocable<std::unique_ptr<vfs::Vfs>(vfs::BackingFiles*)> make_vfs_;
  absl::AnyInvocable<Capacity()> capacity_;

  fuse_session* session_ = nullptr;
  Features features_;
  OperationCounts operations_ = {};
  std::unique_ptr<vfs::Vfs> vfs_;
  std::vector<std::thread> threads_;
  SlowReads slow_reads_;
  Notifier notifier_;

  base::Mutex mutex_;
  base::CondVar ended_;
  size_t serving_ ABSL_GUARDED_BY(mutex_) = 0;
  bool mounted_ ABSL_GUARDED_BY(mutex_) = false;
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
  // The kernel offers passthrough to anybody; registering a backing file takes CAP_SYS_ADMIN.
  features_.passthrough = options_.passthrough && geteuid() == 0 &&
                          fuse_set_feature_flag(connection, FUSE_CAP_PASSTHROUGH);
  if (features_.passthrough) connection->max_backing_stack_depth = options_.backing_stack_depth;
  vfs_ = make_vfs_(features_.passthrough ? this : nullptr);
  vfs_->tree().SetInvalidator(this);
}

void FuseMount::Lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  vfs_->tree().Lookup(
      parent, name,
      [this, request, parent, name = std::string(name)](absl::StatusOr<vfs::Attributes> found) {
        if (found.ok()) {
          const fuse_entry_param entry = EntryOf(*found);
          // An interrupted lookup's reply is dropped by the kernel, and its count with it.
          if (fuse_reply_entry(request, &entry) == -ENOENT) vfs_->Forget(found->id, 1);
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
uint64_t PackHandle(uint64_t handle, vfs::OpenMode mode) {
  return handle << 1 | (mode == vfs::OpenMode::kPassthrough ? 1 : 0);
}
vfs::OpenMode ModeOf(uint64_t packed) {
  return packed & 1 ? vfs::OpenMode::kPassthrough : vfs::OpenMode::kCached;
}

void FuseMount::OpenFile(fuse_req_t request, fuse_ino_t node, const fuse_file_info& info) {
  if ((info.flags & O_ACCMODE) != O_RDONLY) {
    fuse_reply_err(request, EROFS);
    return;
  }
  vfs_->Open(
      node, [this, request, node, info = info](absl::StatusOr<vfs::Vfs::OpenReply> opened) mutable {
        if (!opened.ok()) {
          fuse_reply_err(request, ErrnoFor(opened.status()));
          return;
        }
        if (opened->without_open) {
          fuse_reply_err(request, ENOSYS);
          return;
        }
        info.fh = PackHandle(opened->handle, opened->mode);
        info.noflush = 1;
        if (opened->mode == vfs::OpenMode::kPassthrough) {
          info.backing_id = opened->backing_id;
          info.keep_cache = 0;  // The kernel refuses it beside passthrough.
        } else {
          info.keep_cache = 1;
        }
        // The opener was interrupted and there will be no RELEASE.
        if (fuse_reply_open(request, &info) == -ENOENT) {
          vfs_->Release(node, opened->handle, opened->mode);
        }
      });
}

void FuseMount::Read(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset,
                     uint64_t handle) {
  const auto pending = std::make_shared<PendingRead>(request);
  vfs_->Read(node, handle >> 1, static_cast<uint64_t>(offset), size,
             [this, pending](absl::StatusOr<fetch::ReadResult> result) {
               if (!pending->Claim()) return;
               slow_reads_.Remove(pending->request());
               if (!result.ok()) {
                 fuse_reply_err(pending->request(), ErrnoFor(result.status()));
                 return;
               }
               absl::InlinedVector<iovec, 10> pieces;
               for (const absl::Span<const char> piece : result->pieces) {
                 pieces.push_back({const_cast<char*>(piece.data()), piece.size()});
               }
               fuse_reply_iov(pending->request(), pieces.data(), static_cast<int>(pieces.size()));
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
  });
}

void FuseMount::Release(fuse_req_t request, fuse_ino_t node, const fuse_file_info& info) {
  vfs_->Release(node, info.fh >> 1, ModeOf(info.fh));
  fuse_reply_err(request, 0);
}

using DirectoryRef = std::shared_ptr<vfs::DirectoryHandle>;

void FuseMount::Opendir(fuse_req_t request, fuse_ino_t node, const fuse_file_info& info) {
  absl::StatusOr<DirectoryRef> directory = vfs_->tree().OpenDirectory(node);
  if (!directory.ok()) {
    fuse_reply_err(request, ErrnoFor(directory.status()));
    return;
  }
  auto held = std::make_unique<DirectoryRef>(*std::move(directory));
  fuse_file_info reply = info;
  // RELEASEDIR owns the handle, once the kernel has it.
  reply.fh = reinterpret_cast<uint64_t>(held.get());
  reply.cache_readdir = 1;
  reply.keep_cache = 1;
  DirectoryRef* const given = held.release();
  if (fuse_reply_open(request, &reply) != 0) delete given;
}

void FuseMount::Releasedir(fuse_req_t request, const fuse_file_info& info) {
  delete reinterpret_cast<DirectoryRef*>(info.fh);
  fuse_reply_err(request, 0);
}

// Fills one reply of READDIR or READDIRPLUS.
class DirectoryReply {
 public:
  DirectoryReply(fuse_req_t request, size_t size, bool plus)
      : request_(request), plus_(plus), buffer_(size) {}

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
  std::vector<char> buffer_;
  size_t used_ = 0;
};

void FuseMount::Readdir(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset,
                        const fuse_file_info& info, bool plus) {
  const auto reply = std::make_shared<DirectoryReply>(request, size, plus);
  // Positions 0 and 1 are "." and ".."; the tree's start after them.
  constexpr off_t kDots = 2;
  fuse_entry_param dot = {};
  dot.attr.st_mode = S_IFDIR;
  dot.attr.st_ino = node;
  if (offset < 1 && !reply->Add(".", dot, 1)) return reply->Send(absl::OkStatus());
  dot.attr.st_ino = vfs_->tree().Parent(node);
  if (offset < 2 && !reply->Add("..", dot, 2)) return reply->Send(absl::OkStatus());
  const DirectoryRef directory = *reinterpret_cast<DirectoryRef*>(info.fh);
  vfs_->tree().ReadDirectory(
      directory, static_cast<uint64_t>(offset < kDots ? 0 : offset - kDots), plus,
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

// ---- Backing files ----

absl::StatusOr<int> FuseMount::Open(int fd) {
  BackingMap map = {fd, 0, 0};
  const int id = ioctl(fuse_session_fd(session_), kBackingOpen, &map);
  if (id <= 0) return base::ErrnoStatus(errno, "FUSE_DEV_IOC_BACKING_OPEN");
  return id;
}

void FuseMount::Close(int backing_id) {
  uint32_t id = static_cast<uint32_t>(backing_id);
  ioctl(fuse_session_fd(session_), kBackingClose, &id);
}

// ---- The session's life ----

absl::Status FuseMount::Start() {
  std::vector<std::string> words = {
      "millrace", "-o",
      absl::StrCat("ro,nosuid,nodev,default_permissions,subtype=millrace,fsname=",
                   options_.source_text, options_.allow_other ? ",allow_other" : "")};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  fuse_args arguments = FUSE_ARGS_INIT(static_cast<int>(argv.size()), argv.data());
  const fuse_lowlevel_ops operations = Operations();
  session_ = fuse_session_new(&arguments, &operations, sizeof(operations), this);
  fuse_opt_free_args(&arguments);
  if (session_ == nullptr) return absl::InternalError("libfuse refused to make a session");
  if (fuse_session_mount(session_, options_.mountpoint.c_str()) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("mount on ", options_.mountpoint));
  }
  {
    base::MutexLock lock(&mutex_);
    mounted_ = true;
    serving_ = options_.threads;
  }
  struct sigaction wake = {};
  wake.sa_handler = [](int) {};  // Without SA_RESTART: the read ends.
  sigaction(kWakeSignal, &wake, nullptr);
  for (size_t i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { Serve(); });
  return AwaitAnswer();
}

absl::Status FuseMount::AwaitAnswer() {
  // The first request through the kernel waits for INIT, so an answer means that all is up.
  struct stat root;
  if (stat(options_.mountpoint.c_str(), &root) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("stat of ", options_.mountpoint));
  }
  RaiseReadAhead();
  return absl::OkStatus();
}

void FuseMount::RaiseReadAhead() {
  struct stat root;
  if (stat(options_.mountpoint.c_str(), &root) != 0) return;
  const std::string path = absl::StrCat("/sys/class/bdi/", major(root.st_dev), ":",
                                        minor(root.st_dev), "/read_ahead_kb");
  std::ofstream file(path);
  file << options_.read_ahead_kib << std::flush;
  features_.read_ahead_raised = file.good();
}

void FuseMount::Serve() {
  fuse_buf buffer = {};
  while (!fuse_session_exited(session_)) {
    const int received = fuse_session_receive_buf(session_, &buffer);
    if (received == -EINTR) continue;
    if (received <= 0) break;  // Unmounted.
    fuse_session_process_buf(session_, &buffer);
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
  bool unmount;
  {
    base::MutexLock lock(&mutex_);
    unmount = std::exchange(mounted_, false);
  }
  if (unmount) fuse_session_unmount(session_);
  EndServing();
}

// The unmount of a mount in use only detaches it, and the kernel goes on with the session: the
// threads' reads have to be interrupted. Repeated, because a signal that comes before the read is
// lost.
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
  // Files close their backing ids through the session.
  vfs_.reset();
  fuse_session_destroy(session_);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Mount>> Mount::Create(
    const MountOptions& options,
    absl::AnyInvocable<std::unique_ptr<vfs::Vfs>(vfs::BackingFiles*)> make_vfs,
    absl::AnyInvocable<Capacity()> capacity) {
  auto mount = std::make_unique<FuseMount>(options, std::move(make_vfs), std::move(capacity));
  if (absl::Status status = mount->Start(); !status.ok()) return status;
  return mount;
}

}  // namespace millrace::adapter
