#include "cache/tier/file_index.h"

namespace millrace::tier {

FileIndex::Shard& FileIndex::ShardOf(absl::string_view path) const {
  // FNV-1a over the end of the path, where paths differ.
  uint32_t hash = 2166136261u;
  const size_t from = path.size() > 16 ? path.size() - 16 : 0;
  for (const char c : path.substr(from)) hash = (hash ^ static_cast<uint8_t>(c)) * 16777619u;
  return shards_[(hash ^ hash >> 16) % shards_.size()];
}

FileIndex::FilePtr FileIndex::Find(absl::string_view source, absl::string_view path) const {
  Shard& shard = ShardOf(path);
  base::MutexLock lock(&shard.mutex);
  const auto found = shard.files.find(PathRef{source, path});
  return found == shard.files.end() ? nullptr : *found;
}

FileIndex::FilePtr FileIndex::Insert(const FilePtr& file) {
  Shard& shard = ShardOf(file->key().path);
  base::MutexLock lock(&shard.mutex);
  const auto found = shard.files.find(file);
  if (found != shard.files.end()) return *found;
  if (file->tier().IsDying(file->ref())) return nullptr;
  shard.files.insert(file);
  return file;
}

bool FileIndex::Remove(DataFile& file) {
  Shard& shard = ShardOf(file.key().path);
  FilePtr removed;  // Released after the lock: it may be the last reference.
  base::MutexLock lock(&shard.mutex);
  const auto found = shard.files.find(PathRef{file.key().source, file.key().path});
  if (found == shard.files.end() || found->get() != &file) return false;
  file.tier().AddDying(file.ref());
  removed = *found;
  shard.files.erase(found);
  return true;
}

bool FileIndex::Replace(DataFile& old_file, const FilePtr& new_file) {
  Shard& shard = ShardOf(old_file.key().path);
  FilePtr removed;
  base::MutexLock lock(&shard.mutex);
  const auto found = shard.files.find(new_file);
  if (found == shard.files.end() || found->get() != &old_file) return false;
  old_file.tier().AddDying(old_file.ref());
  removed = *found;
  shard.files.erase(found);
  shard.files.insert(new_file);
  // In the same step: whoever evicts the new file marks its name again.
  new_file->tier().RemoveDying(new_file->ref());
  return true;
}

void FileIndex::ForEach(absl::FunctionRef<void(DataFile&)> each) const {
  for (Shard& shard : shards_) {
    std::vector<FilePtr> files;
    {
      base::MutexLock lock(&shard.mutex);
      files.assign(shard.files.begin(), shard.files.end());
    }
    for (const FilePtr& file : files) each(*file);
  }
}

}  // namespace millrace::tier
