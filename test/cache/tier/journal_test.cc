#include "cache/tier/journal.h"

#include <fcntl.h>

#include <atomic>
#include <cerrno>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "test/support/cache_fixture.h"
#include "test/support/faulty_file_io.h"

namespace millrace::tier {
namespace {

using ::millrace::testing::FaultyFileIo;
using ::millrace::testing::ReadFile;
using ::millrace::testing::TemporaryDirectory;

// Writes down what it sees.
class Recorder : public JournalVisitor {
 public:
  void OnSession(absl::string_view boot_id) override { Say("session ", boot_id); }
  void OnClean() override { Say("clean"); }
  void OnSource(uint64_t hash, absl::string_view url) override { Say("source ", hash, " ", url); }
  void OnFile(const FileRef& file, uint64_t size, absl::string_view path,
              absl::string_view version) override {
    Say("file ", file.source, " ", size, " ", path, " ", version);
  }
  void OnBlocks(const FileRef& file, uint64_t first, absl::Span<const uint32_t> crcs,
                bool unverified) override {
    Say("blocks ", file.source, " ", first, " [", absl::StrJoin(crcs, ","), "]",
        unverified ? " unverified" : "");
  }
  void OnDropped(const FileRef& file, uint64_t first, uint64_t count) override {
    Say("dropped ", file.source, " ", first, "+", count);
  }
  void OnRemoved(const FileRef& file) override { Say("removed ", file.source); }

  std::vector<std::string> lines;

 private:
  template <typename... Parts>
  void Say(const Parts&... parts) {
    lines.push_back(absl::StrCat(parts...));
  }
};

FileRef Ref(uint64_t source) { return {source, FileId::Of("path", "version")}; }

std::string Sample() {
  std::string journal = EncodeJournalHeader();
  AppendSession("boot", &journal);
  AppendSource(1, "s3://b", &journal);
  AppendFile(Ref(1), 300'000, "a/b", "v", &journal);
  AppendBlocks(Ref(1), 1, {7, 8}, true, &journal);
  AppendDropped(Ref(1), 2, 1, &journal);
  AppendRemoved(Ref(1), &journal);
  AppendClean(&journal);
  return journal;
}

std::vector<std::string> Parse(absl::string_view bytes, JournalReport* report,
                               size_t piece = 1 << 20) {
  Recorder recorder;
  JournalParser parser(&recorder);
  for (size_t at = 0; at < bytes.size(); at += piece) parser.Feed(bytes.substr(at, piece));
  *report = parser.Finish();
  return recorder.lines;
}

TEST(JournalFormatTest, ReadsWhatWasWritten) {
  const std::vector<std::string> expected = {"session boot",
                                             "source 1 s3://b",
                                             "file 1 300000 a/b v",
                                             "blocks 1 1 [7,8] unverified",
                                             "dropped 1 2+1",
                                             "removed 1",
                                             "clean"};
  for (const size_t piece : {1, 7, 64, 1 << 20}) {
    JournalReport report;
    EXPECT_EQ(Parse(Sample(), &report, piece), expected);
    EXPECT_TRUE(report.usable);
    EXPECT_EQ(report.valid_end, Sample().size());
    EXPECT_EQ(report.damaged_regions, 0u);
    EXPECT_EQ(report.torn_bytes, 0u);
  }
}

// These bytes are on people's disks: a change here needs a new kJournalVersion.
TEST(JournalFormatTest, BytesAreStable) {
  std::string journal = EncodeJournalHeader();
  AppendClean(&journal);
  const std::string expected(
      "MILLRACE\x01\0\0\0\0\0\0\0"
      "MRJ1\x02\0\0\0\0\0\0\0",
      28);
  EXPECT_EQ(journal.substr(0, 28), expected);
  EXPECT_EQ(journal.size(), 32u);
}

TEST(JournalFormatTest, ManyBlocksTakeSeveralRecords) {
  std::string journal = EncodeJournalHeader();
  AppendBlocks(Ref(1), 0, std::vector<uint32_t>(40'000, 3), false, &journal);
  JournalReport report;
  EXPECT_EQ(Parse(journal, &report).size(), 3u);
  EXPECT_EQ(report.valid_end, journal.size());
}

TEST(JournalFormatTest, ATornTailIsCut) {
  const std::string whole = Sample();
  for (size_t size = sizeof(JournalHeader); size < whole.size(); ++size) {
    JournalReport report;
    Parse(absl::string_view(whole).substr(0, size), &report);
    EXPECT_TRUE(report.usable);
    EXPECT_EQ(report.damaged_regions, 0u);
    EXPECT_EQ(report.valid_end + report.torn_bytes, size);
    EXPECT_EQ(report.valid_end % kRecordAlignment, 0u);
  }
}

TEST(JournalFormatTest, DamageCostsOneRecord) {
  const std::string whole = Sample();
  JournalReport report;
  const size_t records = Parse(whole, &report).size();
  for (size_t at = sizeof(JournalHeader); at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] ^= 0x10;
    const size_t left = Parse(damaged, &report).size();
    // Padding is not covered.
    EXPECT_GE(left, records - 1) << at;
    if (left < records) {
      EXPECT_TRUE(report.damaged_regions == 1 || report.torn_bytes > 0) << at;
    }
  }
}

TEST(JournalFormatTest, AnotherVersionIsNotGuessedAt) {
  std::string journal = Sample();
  journal[8] = 2;
  JournalReport report;
  EXPECT_TRUE(Parse(journal, &report).empty());
  EXPECT_FALSE(report.usable);
  EXPECT_EQ(report.version, 2u);
}

TEST(JournalFormatTest, NoiseIsHarmless) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::string journal = Sample();
    for (unsigned i = 0, n = 1 + random() % 20; i < n; ++i) {
      journal[random() % journal.size()] = static_cast<char>(random());
    }
    journal.resize(random() % journal.size());
    JournalReport report;
    Parse(journal, &report, 1 + random() % 100);
  }
}

class JournalTest : public ::testing::Test {
 protected:
  JournalTest() : posix_(io::NewPosixFileIo(1)), file_io_(posix_.get()) {
    directory_fd_ =
        base::UniqueFd(open(directory_.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }

  std::unique_ptr<Journal> Make() {
    Journal::Options options;
    options.directory_fd = directory_fd_.get();
    options.file_io = &file_io_;
    options.boot_id = "boot";
    options.snapshot = [this](SnapshotSink sink) {
      ++snapshots_;
      std::string records;
      AppendSource(99, "snapshot", &records);
      sink(records);
    };
    options.on_fault = [this](const absl::Status&) { ++faults_; };
    return std::make_unique<Journal>(std::move(options));
  }
  std::vector<std::string> Lines() {
    JournalReport report;
    std::vector<std::string> lines = Parse(ReadFile(directory_.path() + "/journal"), &report);
    EXPECT_EQ(report.damaged_regions, 0u);
    return lines;
  }

  TemporaryDirectory directory_;
  base::UniqueFd directory_fd_;
  std::unique_ptr<io::FileIo> posix_;
  FaultyFileIo file_io_;
  std::atomic<int> snapshots_{0};
  std::atomic<int> faults_{0};
};

TEST_F(JournalTest, AppendsAndContinues) {
  std::string record;
  AppendRemoved(Ref(5), &record);
  {
    const auto journal = Make();
    ASSERT_TRUE(journal->StartAnew().ok());
    journal->Append(record, 0);
    ASSERT_TRUE(journal->Flush().ok());
    EXPECT_EQ(Lines().back(), "removed 5");
    journal->Append(record, 0);
  }  // Pending records are written at the end.
  const std::string bytes = ReadFile(directory_.path() + "/journal");
  testing::WriteFile(directory_.path() + "/journal", bytes + "torn");
  {
    const auto journal = Make();
    ASSERT_TRUE(journal->Continue(bytes.size(), 0).ok());
    journal->Append(record, 0);
    ASSERT_TRUE(journal->Sync().ok());
  }
  EXPECT_EQ(Lines(), (std::vector<std::string>{"session boot", "source 99 snapshot", "removed 5",
                                               "removed 5", "session boot", "removed 5"}));
}

TEST_F(JournalTest, RewritesWhenMostIsGarbage) {
  const auto journal = Make();
  ASSERT_TRUE(journal->StartAnew().ok());
  std::string records;
  for (int i = 0; i < 10'000; ++i) AppendRemoved(Ref(5), &records);
  for (int i = 0; i < 8; ++i) journal->Append(records, records.size());
  ASSERT_TRUE(journal->Flush().ok());
  std::string last;
  AppendRemoved(Ref(6), &last);
  journal->Append(last, 0);
  // The thread writes, then rewrites; the flush behind it returns after both.
  ASSERT_TRUE(journal->Flush().ok());
  ASSERT_TRUE(journal->Flush().ok());
  EXPECT_GE(snapshots_, 2);
  // Records that came during the rewrite follow the snapshot.
  EXPECT_LT(ReadFile(directory_.path() + "/journal").size(), 7 * records.size());
}

TEST_F(JournalTest, RecordsSurviveAFullDisk) {
  const auto journal = Make();
  ASSERT_TRUE(journal->StartAnew().ok());
  FaultyFileIo::Plan full;
  full.space_bytes = 10;
  file_io_.Set(full);
  std::string record;
  AppendRemoved(Ref(5), &record);
  journal->Append(record, 0);
  EXPECT_FALSE(journal->Flush().ok());
  EXPECT_GE(faults_, 1);
  file_io_.Heal();
  while (!journal->Flush().ok()) {
  }
  EXPECT_EQ(Lines().back(), "removed 5");
}

}  // namespace
}  // namespace millrace::tier
