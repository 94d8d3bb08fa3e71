#include "test/support/cache_fixture.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/base/hash.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"

namespace millrace::testing {
namespace {

namespace fs = std::filesystem;

uint64_t WordAt(uint64_t seed, uint64_t place) {
  uint64_t z = seed + (place + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

}  // namespace

TemporaryDirectory::TemporaryDirectory(const std::string& parent) {
  const char* environment = std::getenv("TMPDIR");
  const std::string base = !parent.empty() ? parent : environment != nullptr ? environment : "/tmp";
  path_ = base + "/millrace-test-XXXXXX";
  if (mkdtemp(path_.data()) == nullptr) std::abort();
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::string ContentOf(absl::string_view path, absl::string_view version, uint64_t offset,
                      uint64_t length) {
  const uint64_t seed = base::StableHash64({path, version});
  std::string content(length, '\0');
  // Each 8 bytes depend on their place (splitmix64), so that no block looks like another.
  for (uint64_t i = 0; i < length;) {
    const uint64_t within = (offset + i) % 8;
    const uint64_t count = std::min(8 - within, length - i);
    const uint64_t word = WordAt(seed, (offset + i) / 8);
    std::memcpy(&content[i], reinterpret_cast<const char*>(&word) + within, count);
    i += count;
  }
  return content;
}

tier::FileKey KeyOf(const std::string& path, uint64_t size, const std::string& version,
                    const std::string& source) {
  return {source, path, version, size};
}

absl::Status PutBlocks(tier::CachedFile& file, uint64_t first, uint64_t count) {
  const tier::FileKey& key = file.key();
  const uint64_t offset = first * tier::kBlockSize;
  const uint64_t length = std::min(count * tier::kBlockSize, key.size - offset);
  const std::string content = ContentOf(key.path, key.version, offset, length);
  return file.Put(offset, absl::MakeConstSpan(content.data(), content.size()));
}

absl::Status PutAll(tier::CachedFile& file) {
  const uint64_t blocks = (file.key().size + tier::kBlockSize - 1) / tier::kBlockSize;
  for (uint64_t first = 0; first < blocks; first += 8) {
    RETURN_IF_ERROR(PutBlocks(file, first, std::min<uint64_t>(8, blocks - first)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadAll(tier::CachedFile& file, uint64_t offset, uint64_t length) {
  std::string content(length, '\0');
  base::Mutex mutex;
  base::CondVar done;
  absl::optional<absl::StatusOr<size_t>> result;
  file.Read(offset, absl::MakeSpan(content.data(), content.size()),
            [&](absl::StatusOr<size_t> got) {
              base::MutexLock lock(&mutex);
              result = std::move(got);
              done.NotifyOne();
            });
  base::MutexLock lock(&mutex);
  while (!result.has_value()) done.Wait(&mutex);
  if (!result->ok()) return result->status();
  content.resize(**result);
  return content;
}

std::string Compare(tier::CachedFile& file) {
  const tier::FileKey& key = file.key();
  const uint64_t blocks = (key.size + tier::kBlockSize - 1) / tier::kBlockSize;
  for (uint64_t index = 0; index < blocks; ++index) {
    if (!file.HasBlock(index)) continue;
    const uint64_t offset = index * tier::kBlockSize;
    const uint64_t length = std::min(tier::kBlockSize, key.size - offset);
    const absl::StatusOr<std::string> got = ReadAll(file, offset, length);
    if (!got.ok()) continue;  // A miss.
    if (*got != ContentOf(key.path, key.version, offset, length)) {
      return absl::StrCat("block ", index, " of ", key.path, " is wrong");
    }
  }
  return "";
}

std::vector<std::string> ListFiles(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator(directory, error)) {
    if (entry.is_regular_file()) names.push_back(entry.path().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  content << file.rdbuf();
  return content.str();
}

void WriteFile(const std::string& path, absl::string_view content) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
}

}  // namespace millrace::testing
