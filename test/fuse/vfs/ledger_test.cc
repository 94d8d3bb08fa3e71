// What a successor finds of its predecessor: after a clean hand-over, after a SIGKILL at any
// moment, and in a file that somebody damaged.
#include "fuse/vfs/ledger.h"

#include <signal.h>
#include <sys/wait.h>

#include <cstring>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/ledger_file.h"

namespace millrace::vfs {
namespace {

using test::LedgerFile;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

std::vector<Ledger::Restored> Nodes(const Ledger& ledger) {
  std::vector<Ledger::Restored> nodes;
  ledger.ForEachNode([&](const Ledger::Restored& node) { nodes.push_back(node); });
  return nodes;
}

std::vector<uint64_t> Ids(const Ledger& ledger) {
  std::vector<uint64_t> ids;
  for (const Ledger::Restored& node : Nodes(ledger)) ids.push_back(node.node.id);
  return ids;
}

TEST(LedgerTest, AnEmptyFileBeginsASessionAndGenerationsAreCounted) {
  const LedgerFile file;
  EXPECT_FALSE(file.Open()->restored());
  EXPECT_EQ(file.Open()->generation(), 2u);
  const auto third = file.Open();
  EXPECT_TRUE(third->restored());
  EXPECT_EQ(third->generation(), 3u);
  EXPECT_THAT(Nodes(*third), IsEmpty());
}

TEST(LedgerTest, NodesComeBackAsTheyWere) {
  const LedgerFile file;
  const std::string version(65'535, 'v');
  {
    const auto ledger = file.Open();
    const NodeRecord long_one{.id = 7,
                              .parent = 1,
                              .size = UINT64_MAX,
                              .mtime_ns = -5,
                              .flags = 9,
                              .name = std::string(255, 'n'),
                              .version = version};
    const std::string name(255, 'n');
    NodeRecord node = long_one;
    node.name = name;
    const Ledger::Index first = ledger->Add(node);
    const Ledger::Index second = ledger->Add({.id = 8, .parent = 7, .name = "a"});
    ledger->AddLookups(first, 3);
    ledger->TakeLookups(first, 1);
    ledger->SetMtime(second, 77);
    ledger->MarkListed(second);
  }
  const auto ledger = file.Open();
  const auto nodes = Nodes(*ledger);
  ASSERT_EQ(nodes.size(), 2u);
  EXPECT_EQ(nodes[0].node.id, 7u);
  EXPECT_EQ(nodes[0].node.size, UINT64_MAX);
  EXPECT_EQ(nodes[0].node.mtime_ns, -5);
  EXPECT_EQ(nodes[0].node.flags, 9);
  EXPECT_EQ(nodes[0].node.name, std::string(255, 'n'));
  EXPECT_EQ(nodes[0].node.version, version);
  EXPECT_EQ(nodes[0].lookups, 2u);
  EXPECT_FALSE(nodes[0].listed);
  EXPECT_EQ(nodes[1].node.parent, 7u);
  EXPECT_EQ(nodes[1].node.mtime_ns, 77);
  EXPECT_EQ(nodes[1].lookups, 0u);
  EXPECT_TRUE(nodes[1].listed);
}

TEST(LedgerTest, PlacesAreUsedAgainAlsoByASuccessor) {
  const LedgerFile file;
  uint64_t bytes = 0;
  for (int round = 0; round < 50; ++round) {
    const auto ledger = file.Open();
    std::vector<Ledger::Index> records;
    for (uint64_t i = 0; i < 200; ++i) {
      const std::string name(1 + i % 100, 'x');
      records.push_back(ledger->Add({.id = i + 2, .parent = 1, .name = name}));
    }
    const Ledger::Slot handle = ledger->AddHandle({.node = 2, .unique = 4});
    if (round == 0) bytes = ledger->stats().bytes;
    EXPECT_EQ(ledger->stats().bytes, bytes);
    for (const Ledger::Index record : records) ledger->Remove(record);
    EXPECT_TRUE(ledger->RemoveHandle(handle, 2, 4));
    EXPECT_EQ(ledger->stats().nodes, 0u);
    EXPECT_EQ(ledger->stats().slots, 0u);
  }
}

TEST(LedgerTest, AFullFileIsCountedAndGoesOn) {
  const LedgerFile file;
  const auto ledger = file.Open({.bytes = 16 << 10, .slots = 4});
  Ledger::Index last = 0;
  size_t added = 0;
  while (const Ledger::Index index = ledger->Add({.id = added + 2, .parent = 1, .name = "n"})) {
    last = index;
    ++added;
  }
  EXPECT_GT(added, 100u);
  EXPECT_EQ(ledger->stats().lost, 1u);
  ledger->Remove(last);
  EXPECT_NE(ledger->Add({.id = 5000, .parent = 1, .name = "n"}), 0u);

  std::set<Ledger::Slot> handles;
  for (uint64_t i = 0; i < 10; ++i) handles.insert(ledger->AddHandle({.node = 2, .unique = i}));
  EXPECT_EQ(handles.size(), 10u);
  EXPECT_EQ(ledger->stats().lost, 7u);
  EXPECT_EQ(ledger->AddBacking(2, 1), 0u);
  // One without a place is released like any other.
  for (const Ledger::Slot handle : handles) {
    EXPECT_TRUE(ledger->RemoveHandle(handle, 2, handle <= 4 ? handle - 1 : 9));
  }
  EXPECT_NE(ledger->AddBacking(2, 1), 0u);
}

TEST(LedgerTest, HandlesAndBackingIdsComeBack) {
  const LedgerFile file;
  {
    const auto ledger = file.Open();
    ledger->AddHandle({.node = 5, .passthrough = true, .unique = 100});
    ledger->AddHandle({.node = 6, .unique = 102});
    ledger->RemoveHandle(ledger->AddHandle({.node = 7, .unique = 104}), 7, 104);
    ledger->AddBacking(5, 42);
    ledger->RemoveBacking(ledger->AddBacking(9, 43));
  }
  const auto ledger = file.Open();
  std::vector<std::pair<uint64_t, bool>> handles;
  ledger->ForEachHandle([&](Ledger::Slot, const Ledger::Handle& handle) {
    handles.emplace_back(handle.node, handle.passthrough);
  });
  EXPECT_THAT(handles, ElementsAre(Pair(5, true), Pair(6, false)));
  EXPECT_THAT(ledger->BackingIds(), ElementsAre(Pair(5, 42)));
}

TEST(LedgerTest, AnOpenThatComesAgainFindsItsHandle) {
  const LedgerFile file;
  const Ledger::Slot given = file.Open()->AddHandle({.node = 5, .passthrough = true, .unique = 8});
  const auto ledger = file.Open();
  const auto [slot, handle] = ledger->FindHandle(5, 8);
  EXPECT_EQ(slot, given);
  EXPECT_TRUE(handle.passthrough);
  EXPECT_EQ(ledger->FindHandle(5, 10).first, 0u);
  EXPECT_EQ(ledger->FindHandle(6, 8).first, 0u);
}

// Its predecessor had freed the slot, and another open of the file has it by now.
TEST(LedgerTest, AReleaseThatComesAgainFreesNoOther) {
  const LedgerFile file;
  const auto ledger = file.Open();
  const Ledger::Slot first = ledger->AddHandle({.node = 5, .unique = 8});
  EXPECT_TRUE(ledger->RemoveHandle(first, 5, 8));
  EXPECT_EQ(ledger->AddHandle({.node = 5, .unique = 10}), first);
  EXPECT_FALSE(ledger->RemoveHandle(first, 5, 8));
  EXPECT_FALSE(ledger->RemoveHandle(first, 6, 10));
  EXPECT_FALSE(ledger->RemoveHandle(0, 5, 8));
  EXPECT_FALSE(ledger->RemoveHandle(first + 1, 5, 8));
  EXPECT_TRUE(ledger->RemoveHandle(first, 5, 10));
}

TEST(LedgerTest, TheProfileIsChosenOnce) {
  const LedgerFile file;
  EXPECT_EQ(file.Open()->profile(), Profile::kAuto);
  file.Open()->SetProfile(Profile::kSmallFiles);
  EXPECT_EQ(file.Open()->profile(), Profile::kSmallFiles);
  file.Open()->SetProfile(Profile::kLargeFiles);
  EXPECT_EQ(file.Open()->profile(), Profile::kLargeFiles);
}

TEST(LedgerTest, WhatIsWrittenAfterDetachStaysOnesOwn) {
  const LedgerFile file;
  const auto old = file.Open();
  const Ledger::Index record = old->Add({.id = 5, .parent = 1, .name = "a"});
  old->AddLookups(record, 1);
  old->Detach();
  const auto successor = file.Open();
  EXPECT_EQ(Nodes(*successor)[0].lookups, 1u);
  successor->AddLookups(record, 1);
  old->AddLookups(record, 10);
  old->Add({.id = 6, .parent = 1, .name = "b"});
  old->Remove(record);
  EXPECT_THAT(Ids(*successor), ElementsAre(5));
  EXPECT_EQ(Nodes(*successor)[0].lookups, 2u);
}

TEST(LedgerTest, AnotherLayoutIsRefusedAndLeftAsItIs) {
  const LedgerFile file;
  file.Open()->Add({.id = 5, .parent = 1, .name = "a"});
  std::string bytes = file.Bytes();
  bytes[8] = 2;
  const LedgerFile other(bytes);
  const auto opened = other.TryOpen();
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(opened.status().message()), ::testing::HasSubstr("layout 2"));
  EXPECT_EQ(Ledger::CheckLayout(other.fd()).message(), opened.status().message());
  EXPECT_EQ(other.Bytes(), bytes);
}

TEST(LedgerTest, DamageIsAnError) {
  const LedgerFile file;
  {
    const auto ledger = file.Open();
    ledger->Add({.id = 5, .parent = 1, .name = "a"});
    ledger->AddHandle({.node = 5, .unique = 8});
  }
  const std::string bytes = file.Bytes();
  const size_t record = 4096 + LedgerFile::kSize.slots * 32;
  const auto damaged = [&](size_t at, const std::string& with) {
    std::string copy = bytes;
    copy.replace(at, with.size(), with);
    return LedgerFile(copy).TryOpen().status();
  };
  EXPECT_TRUE(damaged(0, std::string(1, bytes[0])).ok());
  EXPECT_TRUE(absl::IsDataLoss(damaged(0, "x")));                        // No magic.
  EXPECT_TRUE(absl::IsDataLoss(damaged(12, "\xff\xff\xff\x7f")));        // More slots than fit.
  EXPECT_TRUE(absl::IsDataLoss(damaged(16, "\x01")));                    // Another size.
  EXPECT_TRUE(absl::IsDataLoss(damaged(24, std::string(1, '\0'))));      // Nobody wrote it.
  EXPECT_TRUE(absl::IsDataLoss(damaged(24, "\xff\xff\xff\xff")));        // Everybody did.
  EXPECT_TRUE(absl::IsDataLoss(damaged(28, "\x09")));                    // No such profile.
  EXPECT_TRUE(absl::IsDataLoss(damaged(32, "\xff\xff")));                // Slots end.
  EXPECT_TRUE(absl::IsDataLoss(damaged(40, "\xff\xff\xff\xff")));        // Records end.
  EXPECT_TRUE(absl::IsDataLoss(damaged(40, std::string("\x01\0", 2))));  // In a record's middle.
  EXPECT_TRUE(absl::IsDataLoss(damaged(4096, "\x07")));                  // A handle's state.
  EXPECT_TRUE(absl::IsDataLoss(damaged(4096, "\x03")));                  // No backing id.
  EXPECT_TRUE(absl::IsDataLoss(damaged(record, std::string(1, '\0'))));
  EXPECT_TRUE(absl::IsDataLoss(damaged(record, "\xff\xff")));       // A record's length.
  EXPECT_TRUE(absl::IsDataLoss(damaged(record + 4, "\x08")));       // Its state.
  EXPECT_TRUE(absl::IsDataLoss(damaged(record + 44, "\xff\xff")));  // Its names.
  EXPECT_TRUE(absl::IsDataLoss(LedgerFile("short").TryOpen().status()));
  EXPECT_TRUE(absl::IsDataLoss(LedgerFile(bytes.substr(0, bytes.size() / 2)).TryOpen().status()));
}

// A process that died before it had written the header had told the kernel nothing.
TEST(LedgerTest, ASessionThatHadNotBegunBegins) {
  const LedgerFile file;
  ASSERT_EQ(ftruncate(file.fd(), LedgerFile::kSize.bytes), 0);
  const auto ledger = file.Open();
  ASSERT_NE(ledger, nullptr);
  EXPECT_FALSE(ledger->restored());
}

// ---- SIGKILL ----

// One thing that the child did, told after it was done.
struct Done {
  enum Kind : uint32_t { kAdd, kLookup, kForget, kRemove, kOpen, kRelease } kind;
  uint32_t value = 0;
  uint64_t id = 0;
};

// Random work on a ledger, without end.
[[noreturn]] void Work(const LedgerFile& file, uint64_t seed, int to) {
  const auto ledger = file.Open();
  if (ledger == nullptr) _exit(1);
  std::mt19937_64 random(seed);
  std::map<uint64_t, Ledger::Index> live;
  ledger->ForEachNode([&](const Ledger::Restored& node) { live[node.node.id] = node.record; });
  std::map<Ledger::Slot, Ledger::Handle> handles;
  ledger->ForEachHandle(
      [&](Ledger::Slot slot, const Ledger::Handle& handle) { handles[slot] = handle; });
  uint64_t unique = seed << 20;
  const auto tell = [to](Done done) {
    if (write(to, &done, sizeof(done)) != sizeof(done)) _exit(1);
  };
  while (true) {
    const uint64_t id = 2 + random() % 300;
    const auto found = live.find(id);
    switch (random() % 6) {
      case 0:
      case 1:
        if (found == live.end()) {
          const std::string name(1 + random() % 200, static_cast<char>('a' + id % 26));
          const Ledger::Index index =
              ledger->Add({.id = id, .parent = 1, .size = id, .name = name});
          if (index == 0) _exit(2);
          live[id] = index;
          tell({Done::kAdd, 0, id});
        } else {
          ledger->AddLookups(found->second, 1);
          tell({Done::kLookup, 0, id});
        }
        break;
      case 2:
        if (found == live.end()) break;
        if (ledger->At(found->second).lookups > 0) {
          ledger->TakeLookups(found->second, 1);
          tell({Done::kForget, 0, id});
        } else {
          ledger->Remove(found->second);
          live.erase(found);
          tell({Done::kRemove, 0, id});
        }
        break;
      case 3: {
        if (handles.size() > 200) break;
        const Ledger::Handle handle{
            .node = id, .passthrough = random() % 2 == 0, .unique = unique += 2};
        const Ledger::Slot slot = ledger->AddHandle(handle);
        handles[slot] = handle;
        tell({Done::kOpen, slot, handle.unique});
        break;
      }
      case 4: {
        if (handles.empty()) break;
        const auto [slot, handle] = *handles.begin();
        if (!ledger->RemoveHandle(slot, handle.node, static_cast<uint32_t>(handle.unique))) {
          _exit(3);
        }
        handles.erase(slot);
        tell({Done::kRelease, slot, handle.unique});
        break;
      }
      default:
        if (random() % 50 == 0) ledger->SetProfile(Profile::kLargeFiles);
    }
  }
}

TEST(LedgerTest, KillsAtRandomMomentsLeaveWhatWasTold) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  const LedgerFile file;
  std::map<uint64_t, uint64_t> lookups;      // By node.
  std::map<Ledger::Slot, uint64_t> handles;  // Their unique numbers.
  const auto apply = [&](const Done& done) {
    switch (done.kind) {
      case Done::kAdd:
        lookups[done.id] = 0;
        break;
      case Done::kLookup:
        ++lookups[done.id];
        break;
      case Done::kForget:
        --lookups[done.id];
        break;
      case Done::kRemove:
        lookups.erase(done.id);
        break;
      case Done::kOpen:
        handles[done.value] = done.id;
        break;
      case Done::kRelease:
        handles.erase(done.value);
        break;
    }
  };
  for (int round = 0; round < 100 && !::testing::Test::HasFailure(); ++round) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
      close(ends[0]);
      Work(file, seed + static_cast<uint64_t>(round), ends[1]);
    }
    close(ends[1]);
    // The child runs ahead by what the pipe holds: a kill comes at any of its instructions.
    Done done;
    for (uint64_t left = random() % 2000; left > 0; --left) {
      ASSERT_EQ(read(ends[0], &done, sizeof(done)), static_cast<ssize_t>(sizeof(done)));
      apply(done);
    }
    kill(child, SIGKILL);
    while (read(ends[0], &done, sizeof(done)) == static_cast<ssize_t>(sizeof(done))) apply(done);
    close(ends[0]);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child gave up with " << WEXITSTATUS(status);

    const auto ledger = file.TryOpen();
    ASSERT_TRUE(ledger.ok()) << ledger.status();
    // At most one more thing was done than was told.
    int untold = 0;
    std::map<uint64_t, uint64_t> found;
    for (const Ledger::Restored& node : Nodes(**ledger)) {
      EXPECT_TRUE(found.emplace(node.node.id, node.lookups).second) << "twice: " << node.node.id;
      EXPECT_EQ(node.node.size, node.node.id);
      EXPECT_EQ(node.node.name.find_first_not_of(static_cast<char>('a' + node.node.id % 26)),
                std::string::npos);
    }
    std::map<Ledger::Slot, uint64_t> found_handles;
    (*ledger)->ForEachHandle([&](Ledger::Slot slot, const Ledger::Handle& handle) {
      found_handles[slot] = handle.unique;
    });
    for (const auto& [id, count] : found) {
      const auto told = lookups.find(id);
      if (told == lookups.end() || told->second != count) ++untold;
    }
    for (const auto& [id, count] : lookups) untold += found.count(id) == 0 ? 1 : 0;
    for (const auto& [slot, unique] : found_handles) {
      const auto told = handles.find(slot);
      if (told == handles.end() || told->second != unique) ++untold;
    }
    for (const auto& [slot, unique] : handles) untold += found_handles.count(slot) == 0 ? 1 : 0;
    EXPECT_LE(untold, 1);
    lookups = std::move(found);
    handles = std::move(found_handles);
  }
}

TEST(LedgerTest, ManyThreadsAtOnce) {
  const LedgerFile file;
  const auto ledger = file.Open();
  const Ledger::Index shared = ledger->Add({.id = 2, .parent = 1, .name = "shared"});
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 2'000; ++i) {
        const Ledger::Index own = ledger->Add({.id = 100 + t, .parent = 1, .name = "own"});
        ledger->AddLookups(shared, 1);
        ledger->MarkListed(shared);
        const Ledger::Slot slot = ledger->AddHandle({.node = t, .unique = i});
        EXPECT_EQ(ledger->FindHandle(t, i).first, slot);
        ledger->BackingIds();
        EXPECT_TRUE(ledger->RemoveHandle(slot, t, static_cast<uint32_t>(i)));
        if (i + 1 < 2'000) ledger->Remove(own);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(Ids(*ledger), UnorderedElementsAre(2, 100, 101, 102, 103));
  EXPECT_EQ(ledger->At(shared).lookups, 8'000u);
  EXPECT_LT(ledger->stats().bytes, 4096u + 32 * 50);
}

}  // namespace
}  // namespace millrace::vfs
