// What a directory of 200,000 files costs: memory per entry, time per call, and time per node at a
// take-over. Prints its figures;
// MILLRACE_SCALE_ENTRIES asks for more entries.
#include <malloc.h>

#include <chrono>
#include <cstdlib>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "test/support/ledger_file.h"
#include "test/support/tree_fixture.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MILLRACE_SANITIZED 1
#else
#define MILLRACE_SANITIZED 0
#endif

namespace millrace::vfs {
namespace {

// Makes its entries page by page, so that the store itself takes no memory.
class EndlessStore final : public store::Store {
 public:
  explicit EndlessStore(size_t files) : files_(files) {}
  absl::string_view kind() const override { return "endless"; }
  absl::StatusOr<store::ListPage> List(const std::string& path, const std::string& token,
                                       size_t max_entries, const store::CallOptions&) override {
    size_t next = 0;
    if (!token.empty() && !absl::SimpleAtoi(token, &next)) return absl::InvalidArgumentError("");
    store::ListPage page;
    for (; path.empty() && page.entries.size() < max_entries && next < files_; ++next) {
      page.entries.push_back({.name = absl::StrFormat("file-%08d.jpg", next),
                              .size = next,
                              .version = absl::StrFormat("%032x", next * 7919)});
    }
    if (next < files_) page.next_token = absl::StrCat(next);
    return page;
  }
  absl::StatusOr<store::Entry> Stat(const std::string&, const store::CallOptions&) override {
    return absl::NotFoundError("");
  }
  absl::Status Get(const store::GetRequest&, store::BodySink, const store::CallOptions&) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<std::vector<store::Entry>> Sample(size_t, const store::CallOptions&) override {
    return std::vector<store::Entry>();
  }

 private:
  const size_t files_;
};

class TreeScaleTest : public ::testing::Test, protected test::TreeFixture {
 protected:
  TreeScaleTest() {
    if (const char* const entries = std::getenv("MILLRACE_SCALE_ENTRIES")) {
      EXPECT_TRUE(absl::SimpleAtoi(entries, &entries_));
    }
    options.sources[0].store = std::make_shared<EndlessStore>(entries_);
    Start();
  }
  size_t CountNames() {
    const auto handle = *tree->OpenDirectory(kRootNode);
    size_t names = 0;
    uint64_t offset = 0;
    while (true) {
      const Read read = ReadLater(handle, offset, 1000).Get();
      if (read.names.empty()) return names;
      names += read.names.size();
      offset = read.offset;
    }
  }
  size_t entries_ = 200'000;
};

size_t HeapBytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

template <typename Call>
double NanosecondsEach(size_t times, const Call& call) {
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < times; ++i) call(i);
  const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
  return took.count() / static_cast<double>(times);
}

TEST_F(TreeScaleTest, AnEntryTakesAtMost150Bytes) {
  const size_t before = HeapBytes();
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(CountNames(), entries_);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  const double each = static_cast<double>(HeapBytes() - before) / static_cast<double>(entries_);
  absl::PrintF("%d entries listed and read in %.2f s, %.1f bytes each (name of 17 bytes, ETag)\n",
               entries_, took.count(), each);
  if (!MILLRACE_SANITIZED) {
    EXPECT_LE(each, 150);
  }
  ASSERT_TRUE(tree->Refresh(kRootNode).ok());
  const double after = static_cast<double>(HeapBytes() - before) / static_cast<double>(entries_);
  absl::PrintF("%.1f bytes each after a refresh\n", after);
  if (!MILLRACE_SANITIZED) {
    EXPECT_LE(after, 150);
  }
}

TEST_F(TreeScaleTest, CallsOnWhatIsKnownAreCheap) {
  ASSERT_EQ(CountNames(), entries_);
  std::vector<std::string> names;
  std::vector<NodeId> ids;
  // Spread, so that the caches are no better than in use.
  for (size_t i = 0; i < 20'000; ++i) {
    names.push_back(absl::StrFormat("file-%08d.jpg", i * 7919 % entries_));
    ids.push_back(IdOf(kRootNode, names.back()));
  }
  size_t ok = 0;
  const double lookup = NanosecondsEach(names.size(), [&](size_t i) {
    tree->Lookup(kRootNode, names[i], [&ok](const absl::StatusOr<Attributes>& found) {
      if (found.ok()) ++ok;
    });
  });
  const double negative = NanosecondsEach(names.size(), [&](size_t) {
    tree->Lookup(kRootNode, "nothing", [&ok](const absl::StatusOr<Attributes>& found) {
      if (!found.ok()) ++ok;
    });
  });
  const double attributes =
      NanosecondsEach(ids.size(), [&](size_t i) { ok += tree->GetAttributes(ids[i]).ok(); });
  const double file = NanosecondsEach(ids.size(), [&](size_t i) { ok += tree->File(ids[i]).ok(); });
  EXPECT_EQ(ok, 4 * names.size());
  absl::PrintF("Lookup %.0f ns, of no name %.0f ns, GetAttributes %.0f ns, File %.0f ns\n", lookup,
               negative, attributes, file);
  // Far above what an idle machine shows: this runs on busy ones.
  if (!MILLRACE_SANITIZED) {
    EXPECT_LE(lookup, 10'000);
    EXPECT_LE(attributes, 10'000);
  }
}

// All of them held by the kernel: what a reader waits at most for a successor to know its nodes.
TEST_F(TreeScaleTest, ATakeOverIsQuick) {
  const test::LedgerFile file;
  const auto start = [&] {
    auto ledger = file.Open(Ledger::Size());
    EXPECT_NE(ledger, nullptr);
    options.ledger = ledger.get();
    const auto begin = std::chrono::steady_clock::now();
    Start();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    absl::PrintF("%d nodes taken over in %.0f ms\n", ledger->stats().nodes, took.count());
    return ledger;
  };
  std::unique_ptr<Ledger> ledger = start();
  const auto handle = *tree->OpenDirectory(kRootNode);
  uint64_t offset = 0;
  const double each = NanosecondsEach(entries_ / 1000, [&](size_t) {
    offset = ReadLater(handle, offset, 1000, /*plus=*/true).Get().offset;
  });
  EXPECT_EQ(ledger->stats().nodes, entries_);
  absl::PrintF("%.0f ns and %.1f bytes of the ledger an entry of READDIRPLUS\n", each / 1000,
               static_cast<double>(ledger->stats().bytes) / static_cast<double>(entries_));
  EXPECT_LE(ledger->stats().bytes, entries_ * 100);
  const size_t before = HeapBytes();
  std::unique_ptr<StoreTree> old = std::move(tree);
  const auto next = start();
  absl::PrintF("%.1f bytes each until the directory is listed again\n",
               static_cast<double>(HeapBytes() - before) / static_cast<double>(entries_));
  EXPECT_EQ(tree->nodes(), entries_ + 1);
  ledger->Detach();
}

}  // namespace
}  // namespace millrace::vfs
