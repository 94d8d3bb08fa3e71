// Cost of the cache's calls, the journal and a start. Data lies below $MILLRACE_BENCH_DIR
// (default $TMPDIR, /tmp): name a directory of the file system to be measured.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "cache/tier/journal.h"
#include "cache/tier/tiered_cache.h"
#include "common/base/units.h"

namespace millrace::tier {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kFileSize = 100'000;

class BenchDirectory {
 public:
  BenchDirectory() {
    const char* given = std::getenv("MILLRACE_BENCH_DIR");
    path_ = absl::StrCat(given != nullptr ? given : fs::temp_directory_path().c_str(),
                         "/millrace-bench-XXXXXX");
    if (mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~BenchDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

FileKey Key(uint64_t number, uint64_t size = kFileSize) {
  return {"s3://bucket/imagenet/train", absl::StrCat("class-", number % 1000, "/image-", number),
          absl::StrCat("\"d41d8cd98f00b204e9800998ecf8427e-", number, "\""), size};
}

struct Cache {
  explicit Cache(const std::string& path) {
    // The cache's default of idle descriptors needs a limit above the usual 1024.
    rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    CacheOptions options;
    options.tiers = {{Medium::kSsd, path, 4 * base::kGiB}};
    options.sources_in_use = {Key(0).source};
    cache = *TieredCache::Open(options, file_io.get());
  }
  std::unique_ptr<io::FileIo> file_io = io::NewPosixFileIo(2);
  std::unique_ptr<TieredCache> cache;
};

void Fill(TieredCache& cache, uint64_t files, uint64_t size) {
  const std::string data(size, 'x');
  for (uint64_t i = 0; i < files; ++i) {
    const auto file = cache.FindOrAdmit(Key(i, size));
    if (file == nullptr || !file->Put(0, data).ok()) std::abort();
  }
}

void BM_Find(benchmark::State& state) {
  BenchDirectory directory;
  Cache cache(directory.path());
  const auto files = static_cast<uint64_t>(state.range(0));
  Fill(*cache.cache, files, 1);
  std::vector<FileKey> keys;
  for (uint64_t i = 0; i < files; ++i) keys.push_back(Key(i, 1));
  size_t index = 0;
  while (state.KeepRunning()) {
    benchmark::DoNotOptimize(cache.cache->Find(keys[index]));
    index = (index + 7919) % keys.size();
  }
}
BENCHMARK(BM_Find)->Arg(1000)->Arg(10'000);

void BM_Has(benchmark::State& state) {
  BenchDirectory directory;
  Cache cache(directory.path());
  Fill(*cache.cache, 1, kFileSize);
  const auto file = cache.cache->Find(Key(0));
  while (state.KeepRunning()) benchmark::DoNotOptimize(file->Has(0, kFileSize));
}
BENCHMARK(BM_Has);

// The system call alone: what ReadNow costs beyond it is the cache's.
void BM_PlainReadNow(benchmark::State& state) {
  BenchDirectory directory;
  Cache cache(directory.path());
  Fill(*cache.cache, 1, kFileSize);
  const auto open = *cache.cache->Find(Key(0))->Open();
  std::string buffer(static_cast<size_t>(state.range(0)), '\0');
  while (state.KeepRunning()) {
    benchmark::DoNotOptimize(
        cache.file_io->ReadNow(open->fd(), 0, absl::MakeSpan(buffer.data(), buffer.size())));
  }
}
BENCHMARK(BM_PlainReadNow)->Arg(1)->Arg(4096)->Arg(100'000);

void BM_ReadNow(benchmark::State& state) {
  BenchDirectory directory;
  Cache cache(directory.path());
  Fill(*cache.cache, 1, kFileSize);
  const auto file = cache.cache->Find(Key(0));
  std::string buffer(static_cast<size_t>(state.range(0)), '\0');
  while (state.KeepRunning()) {
    benchmark::DoNotOptimize(file->ReadNow(0, absl::MakeSpan(buffer.data(), buffer.size())));
  }
}
BENCHMARK(BM_ReadNow)->Arg(1)->Arg(4096)->Arg(100'000);

// A small file as the daemon serves it: Find, Has, ReadNow over 3000 files in page cache.
void BM_ServeSmallFile(benchmark::State& state) {
  BenchDirectory directory;
  Cache cache(directory.path());
  constexpr uint64_t kFiles = 3000;
  Fill(*cache.cache, kFiles, kFileSize);
  std::vector<FileKey> keys;
  for (uint64_t i = 0; i < kFiles; ++i) keys.push_back(Key(i));
  std::string buffer(kFileSize, '\0');
  size_t index = 0;
  while (state.KeepRunning()) {
    const auto file = cache.cache->Find(keys[index]);
    if (file->Has(0, kFileSize)) {
      benchmark::DoNotOptimize(file->ReadNow(0, absl::MakeSpan(buffer.data(), buffer.size())));
    }
    index = (index + 1009) % keys.size();
  }
}
BENCHMARK(BM_ServeSmallFile);

// Admission alone: where a file goes, and its entry. Nothing is written.
void BM_Admit(benchmark::State& state) {
  BenchDirectory directory;
  Cache cache(directory.path());
  uint64_t number = 0;
  while (state.KeepRunning()) {
    benchmark::DoNotOptimize(cache.cache->FindOrAdmit(Key(number++, 1)));
  }
}
BENCHMARK(BM_Admit)->Iterations(100'000);

// A new file of 100 KB: admitted, written, renamed, recorded.
void BM_PutSmallFile(benchmark::State& state) {
  BenchDirectory directory;
  Cache cache(directory.path());
  const std::string data(kFileSize, 'x');
  uint64_t number = 0;
  while (state.KeepRunning()) {
    const auto file = cache.cache->FindOrAdmit(Key(number++));
    if (!file->Put(0, data).ok()) state.SkipWithError("Put failed");
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_PutSmallFile)->Iterations(10'000)->MeasureProcessCPUTime()->UseRealTime();

// The floor under BM_PutSmallFile: the same file written by plain calls.
void BM_PlainSmallFile(benchmark::State& state) {
  BenchDirectory directory;
  const std::string data(kFileSize, 'x');
  const auto file_io = io::NewPosixFileIo(0);
  uint64_t number = 0;
  while (state.KeepRunning()) {
    const std::string path = absl::StrCat(directory.path(), "/", number++);
    const std::string partial = absl::StrCat(path, ".partial");
    const int fd = open(partial.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (!file_io->Write(fd, 0, data).ok()) state.SkipWithError("write failed");
    close(fd);
    rename(partial.c_str(), path.c_str());
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_PlainSmallFile)->Iterations(10'000)->MeasureProcessCPUTime()->UseRealTime();

// Blocks of one large file, 1 MiB a call.
void BM_PutLargeFile(benchmark::State& state) {
  BenchDirectory directory;
  Cache cache(directory.path());
  constexpr uint64_t kPiece = 8 * kBlockSize;
  const auto pieces = static_cast<uint64_t>(state.max_iterations);
  const auto file = cache.cache->FindOrAdmit(Key(0, pieces * kPiece));
  const std::string data(kPiece, 'x');
  uint64_t offset = 0;
  while (state.KeepRunning()) {
    if (!file->Put(offset, data).ok()) state.SkipWithError("Put failed");
    offset += kPiece;
  }
  state.SetBytesProcessed(static_cast<int64_t>(offset));
}
BENCHMARK(BM_PutLargeFile)->Iterations(1024)->MeasureProcessCPUTime()->UseRealTime();

// A start over 100,000 files, in the same boot.
void BM_Load(benchmark::State& state) {
  BenchDirectory directory;
  Fill(*Cache(directory.path()).cache, static_cast<uint64_t>(state.range(0)), 1);
  while (state.KeepRunning()) {
    Cache cache(directory.path());
    state.PauseTiming();
    if (cache.cache->Stats()[0].files != static_cast<uint64_t>(state.range(0))) std::abort();
    cache.cache.reset();
    state.ResumeTiming();
  }
}
BENCHMARK(BM_Load)->Arg(100'000)->Iterations(3)->UseRealTime()->Unit(benchmark::kMillisecond);

void BM_JournalEncode(benchmark::State& state) {
  const FileRef ref{1, FileId::Of("path", "version")};
  const FileKey key = Key(12345);
  const uint32_t crc = 7;
  std::string records;
  while (state.KeepRunning()) {
    records.clear();
    AppendFile(ref, key.size, key.path, key.version, &records);
    AppendBlocks(ref, 0, absl::MakeConstSpan(&crc, 1), false, &records);
    benchmark::DoNotOptimize(records);
  }
  state.counters["bytes_per_file"] = static_cast<double>(records.size());
}
BENCHMARK(BM_JournalEncode);

class Nobody : public JournalVisitor {
  void OnSession(absl::string_view) override {}
  void OnClean() override {}
  void OnSource(uint64_t, absl::string_view) override {}
  void OnFile(const FileRef&, uint64_t, absl::string_view, absl::string_view) override {}
  void OnBlocks(const FileRef&, uint64_t, absl::Span<const uint32_t>, bool) override {}
  void OnDropped(const FileRef&, uint64_t, uint64_t) override {}
  void OnRemoved(const FileRef&) override {}
};

void BM_JournalParse(benchmark::State& state) {
  std::string journal = EncodeJournalHeader();
  const uint32_t crc = 7;
  for (uint64_t i = 0; i < 10'000; ++i) {
    const FileRef ref{1, FileId::Of(absl::StrCat(i), "version")};
    AppendFile(ref, kFileSize, Key(i).path, Key(i).version, &journal);
    AppendBlocks(ref, 0, absl::MakeConstSpan(&crc, 1), false, &journal);
  }
  while (state.KeepRunning()) {
    Nobody nobody;
    JournalParser parser(&nobody);
    parser.Feed(journal);
    benchmark::DoNotOptimize(parser.Finish());
  }
  state.SetItemsProcessed(state.iterations() * 10'000);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(journal.size()));
}
BENCHMARK(BM_JournalParse);

}  // namespace
}  // namespace millrace::tier
