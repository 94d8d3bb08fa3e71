// The tree against a reference: random changes of a store, refreshes, lookups, forgets and
// directory streams, with names no file system would have, and deaths at random moments after which
// another tree goes on from the ledger. MILLRACE_MODEL_SEED repeats one run.
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "test/support/ledger_file.h"
#include "test/support/tree_fixture.h"

namespace millrace::vfs {
namespace {

constexpr size_t kDirectories = 3;  // "", "d" and "d/e".
constexpr int kSteps = 3000;

struct ModelFile {
  uint64_t size = 0;
  std::string version;
  bool operator==(const ModelFile&) const = default;
};

// What a directory should show: files by name, and directories.
struct ModelDirectory {
  std::map<std::string, ModelFile> files;
  std::set<std::string> directories;

  std::set<std::string> Names() const {
    std::set<std::string> names = directories;
    for (const auto& [name, file] : files) names.insert(name);
    return names;
  }
  bool operator==(const ModelDirectory&) const = default;
};

class TreeModel : protected test::TreeFixture {
 public:
  explicit TreeModel(uint64_t seed) : TreeFixture(7), random_(seed) {
    options.refresh = absl::Hours(1);  // By the clock that nobody moves.
    options.threads = seed % 2 == 0 ? 1 : 8;
    StartKept();
    store->PutDirectory("", "d");
    store->PutDirectory("d", "e");
    now_[0].directories.insert("d");
    now_[1].directories.insert("e");
    // The kernel holds the directories all the time.
    for (size_t i = 1; i < kDirectories; ++i)
      held_directories_.push_back(IdOf(Directory(i - 1), NameIn(i)));
    List_(kDirectories - 2);
  }

  void Run() {
    for (int step = 0; step < kSteps && !::testing::Test::HasFailure(); ++step) Step();
    for (size_t i = 0; i < kDirectories; ++i) CheckListing(i);
    CheckHeld();
    ForgetAll();
    tree.reset();
  }

 private:
  struct Held {
    uint64_t count = 0;
    std::string path;
    ModelFile file;
  };

  void StartKept() {
    ledger_ = file_.Open();
    options.ledger = ledger_.get();
    Start();
  }

  uint64_t Below(uint64_t end) { return random_() % end; }

  std::string Path(size_t i) const { return i == 0 ? "" : i == 1 ? "d" : "d/e"; }

  static std::string NameIn(size_t i) { return i == 1 ? "d" : "e"; }

  std::string RandomName() {
    static const std::vector<std::string> kHostile = {
        "",  ".",   "..",       "a/", "a/b", std::string("x\0y", 3), std::string(256, 'l'),
        "/", "a//", "../../etc"};
    if (Below(10) == 0) return kHostile[Below(kHostile.size())];
    static const std::vector<std::string> kOdd = {"\xff\xfe", "a\nb", "...", " ",
                                                  std::string(255, 'l')};
    if (Below(10) == 0) return kOdd[Below(kOdd.size())];
    return absl::StrCat("f", Below(30));
  }

  void Step() {
    if (Below(100) == 0) return TakeOver();
    const size_t i = Below(kDirectories);
    switch (Below(8)) {
      case 0:
      case 1:
        return Change(i);
      case 2:
        return RefreshOne(i);
      case 3:
      case 4:
        return LookUp(i);
      case 5:
        return ForgetOne();
      case 6:
        return CheckListing(i);
      default:
        return CheckHeld();
    }
  }

  void Change(size_t i) {
    const std::string name = RandomName();
    if (name == "d" || name == "e") return;
    const bool shown = HiddenByName(name) == Hidden::kNo;
    if (Below(3) == 0) {
      store->Remove(Path(i), name);
      now_[i].files.erase(name);
      return;
    }
    const bool too_large = Below(20) == 0;
    const ModelFile file{.size = too_large ? UINT64_MAX : Below(5),
                         .version = absl::StrCat("v", Below(5))};
    store->PutFile(Path(i), name, file.size, file.version);
    if (shown && !too_large) now_[i].files[name] = file;
    if (too_large) now_[i].files.erase(name);
  }

  // The node of a directory, found anew each time; its lookups are given back.
  NodeId Directory(size_t i) {
    if (i == 0) return kRootNode;
    const NodeId parent = Directory(i - 1);
    const auto found = Lookup(parent, NameIn(i));
    List_(i - 1);
    EXPECT_TRUE(found.ok() && found->is_directory);
    if (!found.ok()) return kRootNode;
    tree->Forget(found->id, 1);
    return found->id;
  }

  // A directory is listed at its first use and shows that until it is refreshed.
  void List_(size_t i) {
    if (listed_.insert(i).second) shown_[i] = now_[i];
  }

  void RefreshOne(size_t i) {
    const NodeId directory = Directory(i);
    invalidator.Take();
    ASSERT_TRUE(tree->Refresh(directory).ok());
    if (listed_.count(i) == 0) return;
    std::set<std::string> told;
    const std::string prefix = absl::StrCat(directory, "/");
    for (const std::string& event : invalidator.Take()) told.insert(event);
    std::set<std::string> expected;
    for (const std::string& name : now_[i].Names()) {
      if (!Same(shown_[i], now_[i], name)) expected.insert(prefix + name);
    }
    for (const std::string& name : shown_[i].Names()) {
      if (!Same(shown_[i], now_[i], name)) expected.insert(prefix + name);
    }
    if (!expected.empty()) expected.insert(prefix);
    EXPECT_EQ(told, expected);
    shown_[i] = now_[i];
  }

  static bool Same(const ModelDirectory& a, const ModelDirectory& b, const std::string& name) {
    const auto in_a = a.files.find(name);
    const auto in_b = b.files.find(name);
    if ((in_a == a.files.end()) != (in_b == b.files.end())) return false;
    if (in_a != a.files.end() && !(in_a->second == in_b->second)) return false;
    return a.directories.count(name) == b.directories.count(name);
  }

  void LookUp(size_t i) {
    const std::string name = RandomName();
    const NodeId directory = Directory(i);
    const auto found = Lookup(directory, name);
    if (HiddenByName(name) == Hidden::kNo) List_(i);
    const auto file = shown_[i].files.find(name);
    if (listed_.count(i) == 0 || file == shown_[i].files.end()) {
      EXPECT_TRUE(absl::IsNotFound(found.status())) << name;
      return;
    }
    ASSERT_TRUE(found.ok()) << name << " " << found.status();
    EXPECT_EQ(found->size, file->second.size);
    const std::string path = i == 0 ? name : absl::StrCat(Path(i), "/", name);
    Held& held = held_[found->id];
    if (held.count++ > 0) {
      EXPECT_EQ(held.path, path);
    }
    held.path = path;
    held.file = file->second;
    told_[{i, name}] = found->id;
  }

  // The process dies. The kernel keeps its nodes and what each name was told to be.
  void TakeOver() {
    test::LedgerFile left = file_.Copy();
    tree.reset();
    file_ = std::move(left);
    invalidator.Take();
    StartKept();
    const size_t lists = store->list_calls();
    CheckHeld();
    std::set<std::string> unsure;  // Names of several nodes: which one is shown is not known.
    std::map<std::string, size_t> nodes;
    for (const auto& [id, held] : held_) {
      if (++nodes[held.path] > 1) unsure.insert(held.path);
    }
    // First what is known without a listing, then with it.
    for (const auto& [where, id] : told_) {
      const auto& [i, name] = where;
      const std::string path = i == 0 ? name : absl::StrCat(Path(i), "/", name);
      if (held_.count(id) == 0 || unsure.count(path) > 0) continue;
      const auto known = Lookup(Directory(i), name);
      ASSERT_TRUE(known.ok()) << path << " " << known.status();
      EXPECT_EQ(known->id, id) << path;
      tree->Forget(id, 1);
    }
    EXPECT_EQ(store->list_calls(), lists);
    tree->RefreshDue();
    listed_.clear();
    for (size_t i = 0; i < kDirectories; ++i) CheckListing(i);
    std::set<std::string> events;
    for (const std::string& event : invalidator.Take()) events.insert(event);
    for (auto told = told_.begin(); told != told_.end();) {
      const auto& [i, name] = told->first;
      const auto held = held_.find(told->second);
      if (held == held_.end()) {
        told = told_.erase(told);
        continue;
      }
      const std::string event = absl::StrCat(Directory(i), "/", name);
      const auto now = now_[i].files.find(name);
      const bool same = now != now_[i].files.end() && now->second == held->second.file;
      if (!same) {
        EXPECT_TRUE(events.count(event) > 0) << held->second.path;
      } else if (unsure.count(held->second.path) == 0) {
        // An id that was the next free one may be another now.
        const auto found = Lookup(Directory(i), name);
        ASSERT_TRUE(found.ok());
        EXPECT_EQ(events.count(event), found->id == told->second ? 0u : 1u) << held->second.path;
        tree->Forget(found->id, 1);
      }
      ++told;
    }
  }

  void ForgetOne() {
    if (held_.empty()) return;
    auto held = held_.begin();
    std::advance(held, Below(held_.size()));
    const uint64_t count = 1 + Below(held->second.count);
    tree->Forget(held->first, count);
    held->second.count -= count;
    if (held->second.count == 0) held_.erase(held);
  }

  void ForgetAll() {
    for (const auto& [id, held] : held_) tree->Forget(id, held.count);
    held_.clear();
    for (const NodeId id : held_directories_) tree->Forget(id, 1);
    // With more threads one may still be on its way out of a call, and hold an old listing.
    if (options.threads > 1) return;
    size_t listed = 1;
    for (size_t i = 0; i < kDirectories; ++i) listed += shown_[i].Names().size();
    EXPECT_EQ(tree->nodes(), listed);
  }

  void CheckListing(size_t i) {
    const std::vector<std::string> names = List(Directory(i), 1 + Below(20));
    List_(i);
    EXPECT_THAT(names, ::testing::UnorderedElementsAreArray(shown_[i].Names())) << Path(i);
  }

  // Nodes the kernel holds are what they were when it got them.
  void CheckHeld() {
    for (const auto& [id, held] : held_) {
      const auto ref = tree->File(id);
      ASSERT_TRUE(ref.ok()) << held.path;
      EXPECT_EQ(ref->path, held.path);
      EXPECT_EQ((ModelFile{ref->size, ref->version}), held.file);
    }
  }

  std::mt19937_64 random_;
  ModelDirectory now_[kDirectories];    // As in the store.
  ModelDirectory shown_[kDirectories];  // As last listed.
  std::set<size_t> listed_;
  std::map<NodeId, Held> held_;
  std::vector<NodeId> held_directories_;
  std::map<std::pair<size_t, std::string>, NodeId> told_;  // What the kernel has of each name.
  test::LedgerFile file_;
  std::unique_ptr<Ledger> ledger_;
};

TEST(TreeModelTest, RandomChangesShowAsTheReferenceSays) {
  uint64_t seed = std::random_device()();
  int rounds = 20;
  if (const char* const given = std::getenv("MILLRACE_MODEL_SEED")) {
    ASSERT_TRUE(absl::SimpleAtoi(given, &seed));
    rounds = 1;
  }
  for (int round = 0; round < rounds && !HasFailure(); ++round, ++seed) {
    SCOPED_TRACE(absl::StrCat("MILLRACE_MODEL_SEED=", seed));
    TreeModel(seed).Run();
  }
  if (HasFailure()) absl::PrintF("failed with MILLRACE_MODEL_SEED=%d\n", seed - 1);
}

}  // namespace
}  // namespace millrace::vfs
