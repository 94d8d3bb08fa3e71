// The file system of one mount, without FUSE: what each request means. The adapter translates.
//
// Names come from the tree (tree.h), bytes from the objects (cache/fetch); this class joins the
// two: how a file is opened, what is fetched ahead, what is counted.
//
// Thread-safe. Methods with a callback answer inline when they can, else from another thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "cache/fetch/object.h"
#include "common/base/mutex.h"
#include "fuse/vfs/directory_handles.h"
#include "fuse/vfs/file.h"
#include "fuse/vfs/ledger.h"
#include "fuse/vfs/look_ahead.h"
#include "fuse/vfs/profile.h"
#include "fuse/vfs/tree.h"

namespace millrace::vfs {

// Told of every read that reached this process. Called on the hot path: be quick.
class ReadObserver {
 public:
  virtual ~ReadObserver() = default;
  virtual void OnRead(size_t source, fetch::Origin origin, uint64_t bytes,
                      absl::Duration duration) = 0;
  // `origin`: whose file it is that the kernel reads.
  virtual void OnPassthroughOpen(size_t source, fetch::Origin origin, uint64_t file_size) = 0;
};

struct VfsOptions {
  Profile profile = Profile::kAuto;
  bool look_ahead = true;
  size_t idle_files_max = 65'536;   // FileTable.
  BackingFiles* backing = nullptr;  // Null: no passthrough.
  bool direct = false;              // The kernel maps files of OpenMode::kDirect too.
  ReadObserver* observer = nullptr;
  // Keeps the open handles for a successor. The tree's; null: handles end with the process.
  Ledger* ledger = nullptr;
};

class Vfs {
 public:
  // `tree`, `shared` and what the options point to must outlive the Vfs. `sources` are the tree's.
  Vfs(VfsOptions options, Tree* tree, std::vector<store::OpenedSource> sources,
      fetch::Shared* shared);
  ~Vfs();

  Tree& tree() { return *tree_; }

  // Ends the wait of the opens that came before the profile was known. Once, and only when
  // profile() is kAuto: one that a predecessor chose holds for the life of the mount.
  void SetProfile(Profile profile);
  Profile profile() const { return profile_.load(std::memory_order_acquire); }

  struct OpenReply {
    bool without_open = false;  // Answer ENOSYS: this mount answers no OPEN.
    uint64_t handle = 0;
    OpenMode mode = OpenMode::kCached;
    int backing_id = 0;
  };
  // Which request this is. One that was sent again, because its answer died with a predecessor,
  // gets the handle that the predecessor had made for it, if any.
  struct OpenRequest {
    uint64_t unique = 0;
    bool resent = false;
  };
  using OpenDone = absl::AnyInvocable<void(absl::StatusOr<OpenReply>) &&>;
  void Open(NodeId node, OpenRequest request, OpenDone done);
  // A handle that is not open, or not of this node, does no harm.
  void Release(NodeId node, uint64_t handle);

  // `handle` is what Open gave, 0 in a mount without OPEN, or one of a predecessor.
  void Read(NodeId node, uint64_t handle, uint64_t offset, uint64_t size, fetch::ReadCallback done);

  // A read of a complete file that the cache's data file alone can answer: `size` bytes of `data`,
  // from the read's offset on. Whoever answers it so says CountHit. nullopt: use Read.
  struct Hit {
    std::shared_ptr<const tier::OpenData> data;
    uint64_t size = 0;
    size_t source = 0;
    fetch::Origin origin = fetch::Origin::kLocal;
  };
  absl::optional<Hit> FindHit(NodeId node, uint64_t offset, uint64_t size);
  void CountHit(const Hit& hit, absl::Duration duration);

  void Forget(NodeId node, uint64_t count);

  // Directory streams by number: see Tree::ReadDirectory. A number that nobody knows, as those of a
  // predecessor, is a stream of its own from the first read on.
  absl::StatusOr<uint64_t> OpenDirectory(NodeId node);
  void ReadDirectory(NodeId node, uint64_t handle, uint64_t offset, bool plus, Tree::EntrySink sink,
                     Tree::ReadDone done);
  void ReleaseDirectory(uint64_t handle);

  // What this process still does is no longer seen by a successor (Ledger::Detach).
  void Detach();

  // user.millrace.version, .source, .cached. NotFound (ENODATA) for any other.
  absl::StatusOr<std::string> GetXattr(NodeId node, absl::string_view name);
  std::vector<std::string> ListXattrs(NodeId node);

  // Loads everything at or below the paths into the cache, bulk priority, and reports.
  struct WarmProgress {
    uint64_t files_done = 0, files_total = 0;
    uint64_t bytes_done = 0, bytes_total = 0;
    uint64_t files_failed = 0;
    uint64_t bytes_refused = 0;  // Read, but not kept: the cache is full.
    std::string last_error;      // Names the file.
  };
  // `report` runs on the calling thread, at once and then about every 200 ms; false stops the load
  // (Cancelled).
  absl::StatusOr<WarmProgress> Warm(const std::vector<std::string>& paths,
                                    absl::FunctionRef<bool(const WarmProgress&)> report);

  // Drops what is cached at or below `path` (a path inside the mount). Returns the bytes freed.
  absl::StatusOr<uint64_t> Evict(absl::string_view path);

  // Lets go of files that the cache has dropped and nobody has open: as long as they are held here
  // or registered with the kernel, their space on the disk is not free. Called once a second.
  void DropEvicted();

  struct Stats {
    uint64_t opens_passthrough = 0;
    uint64_t opens_cached = 0;
  };
  Stats stats() const;

 private:
  // The files that a predecessor had open or registered.
  void Restore();
  std::shared_ptr<File> FileOf(const FileRef& ref, const File::Restored& restored = {});
  absl::StatusOr<std::shared_ptr<File>> FileOf(NodeId node);
  std::shared_ptr<fetch::Object> ObjectOf(const FileRef& ref);
  void AnswerOpen(NodeId node, OpenRequest request, OpenDone done);
  // The handle of an OPEN that a predecessor had worked on; nullopt if it had not.
  std::optional<OpenReply> OpenedBefore(File& file, OpenRequest request);
  File::PageCache PageCacheFor(const File& file) const;
  // What a read of a file that is not complete tells about the reads to come.
  File::Outlook OnRead(File& file, uint64_t handle, uint64_t offset, uint64_t size);
  bool FetchSibling(const FileRef& ref, std::function<void()> done);

  const VfsOptions options_;
  Tree* const tree_;
  const std::vector<store::OpenedSource> sources_;
  fetch::Shared* const shared_;

  std::atomic<Profile> profile_;
  base::Mutex profile_mutex_;
  struct WaitingOpen {
    NodeId node;
    OpenRequest request;
    OpenDone done;
  };
  std::vector<WaitingOpen> waiting_opens_ ABSL_GUARDED_BY(profile_mutex_);

  FileTable files_;
  DirectoryHandles directory_handles_;
  LookAhead look_ahead_;
  std::atomic<uint64_t> next_handle_{1};
  std::atomic<uint64_t> opens_passthrough_{0};
  std::atomic<uint64_t> opens_cached_{0};
};

}  // namespace millrace::vfs
