// All files of a cache by source and path, in any tier: one file per path, whatever its version.
//
// Shards with a lock each: a lookup holds one for a hash probe and a reference. A file that leaves
// the index gets its name marked as dying in the same step (Tier::AddDying), and a file whose name
// is dying does not enter: the new file would lose its data to the old one's unlink.
// Thread-safe.
#pragma once

#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/hash/hash.h"
#include "absl/strings/string_view.h"
#include "cache/tier/data_file.h"
#include "common/base/mutex.h"

namespace millrace::tier {

class FileIndex {
 public:
  using FilePtr = std::shared_ptr<DataFile>;

  // Null if there is none.
  FilePtr Find(absl::string_view source, absl::string_view path) const;
  // Returns `file`, or the file that has its path already; null while its name is dying.
  FilePtr Insert(const FilePtr& file);
  // These are false if the index does not have this very file.
  bool Remove(DataFile& file);
  // The new file's name, until now marked as dying to keep others off, becomes its own.
  bool Replace(DataFile& old_file, const FilePtr& new_file);
  // Calls `each` with every file, without a lock: files may come and go meanwhile.
  void ForEach(absl::FunctionRef<void(DataFile&)> each) const;

 private:
  struct PathRef {
    absl::string_view source;
    absl::string_view path;
  };
  static PathRef RefOf(const PathRef& ref) { return ref; }
  static PathRef RefOf(const FilePtr& file) { return {file->key().source, file->key().path}; }
  struct Hash {
    using is_transparent = void;
    template <typename T>
    size_t operator()(const T& value) const {
      const PathRef ref = RefOf(value);
      return absl::Hash<std::pair<absl::string_view, absl::string_view>>()({ref.source, ref.path});
    }
  };
  struct Equal {
    using is_transparent = void;
    template <typename A, typename B>
    bool operator()(const A& a, const B& b) const {
      const PathRef x = RefOf(a);
      const PathRef y = RefOf(b);
      return x.path == y.path && x.source == y.source;
    }
  };

  struct Shard {
    mutable base::Mutex mutex;
    absl::flat_hash_set<FilePtr, Hash, Equal> files ABSL_GUARDED_BY(mutex);
  };
  // By the path alone: cheap, and independent of the bits that the set uses.
  Shard& ShardOf(absl::string_view path) const;

  mutable std::array<Shard, 64> shards_;
};

}  // namespace millrace::tier
