#include "cache/tier/eviction.h"

#include <algorithm>
#include <list>
#include <memory>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::tier {
namespace {

constexpr size_t kAll = 1'000'000;

struct Item : EvictionEntry {
  explicit Item(int id) : id(id) {}
  const int id;
  bool used = false;  // What a plain model of SIEVE thinks.
};

bool Any(EvictionEntry&) { return true; }

class SieveListTest : public ::testing::Test {
 protected:
  Item* Add() {
    items_.push_back(std::make_unique<Item>(static_cast<int>(items_.size())));
    list_.Insert(items_.back().get());
    return items_.back().get();
  }
  int Evict() {
    auto* victim = static_cast<Item*>(list_.NextVictim(Any, kAll));
    if (victim == nullptr) return -1;
    list_.Remove(victim);
    return victim->id;
  }

  std::vector<std::unique_ptr<Item>> items_;
  SieveList list_;
};

TEST_F(SieveListTest, EvictsInOrderWithoutUses) {
  for (int i = 0; i < 3; ++i) Add();
  EXPECT_EQ(Evict(), 0);
  EXPECT_EQ(Evict(), 1);
  Add();
  EXPECT_EQ(Evict(), 2);
  EXPECT_EQ(Evict(), 3);
  EXPECT_EQ(Evict(), -1);
}

TEST_F(SieveListTest, SparesAUsedEntryOnce) {
  for (int i = 0; i < 3; ++i) Add();
  items_[0]->MarkUsed();
  EXPECT_EQ(Evict(), 1);
  EXPECT_EQ(Evict(), 2);
  EXPECT_EQ(Evict(), 0);
}

TEST_F(SieveListTest, AllUsedStillGivesAVictim) {
  for (int i = 0; i < 5; ++i) Add()->MarkUsed();
  EXPECT_EQ(Evict(), 0);
}

TEST_F(SieveListTest, PassesOverIneligible) {
  for (int i = 0; i < 5; ++i) Add();
  const auto odd = [](EvictionEntry& entry) { return static_cast<Item&>(entry).id % 2 == 1; };
  EXPECT_EQ(static_cast<Item*>(list_.NextVictim(odd, kAll))->id, 1);
  const auto none = [](EvictionEntry&) { return false; };
  EXPECT_EQ(list_.NextVictim(none, kAll), nullptr);
  EXPECT_EQ(list_.NextVictim(none, 2), nullptr);
  EXPECT_EQ(list_.size(), 5u);
}

TEST_F(SieveListTest, RemovingTwiceIsHarmless) {
  Item* item = Add();
  list_.Remove(item);
  list_.Remove(item);
  EXPECT_EQ(list_.size(), 0u);
}

// The paper's algorithm on a std::list, front is new.
TEST_F(SieveListTest, AgreesWithThePlainAlgorithm) {
  std::mt19937 random(7);
  std::list<Item*> model;
  auto hand = model.end();
  for (int step = 0; step < 20'000; ++step) {
    const unsigned action = random() % 10;
    if (action < 4 || model.empty()) {
      model.push_front(Add());
    } else if (action < 8) {
      auto at = model.begin();
      std::advance(at, random() % model.size());
      (*at)->MarkUsed();
      (*at)->used = true;
    } else {
      auto at = hand == model.end() ? std::prev(model.end()) : hand;
      while ((*at)->used) {
        (*at)->used = false;
        at = at == model.begin() ? std::prev(model.end()) : std::prev(at);
      }
      const int expected = (*at)->id;
      hand = at == model.begin() ? model.end() : std::prev(at);
      model.erase(at);
      ASSERT_EQ(Evict(), expected) << "step " << step;
    }
    if (model.size() > 200) {
      list_.Remove(model.front());
      if (hand == model.begin()) hand = model.end();
      model.pop_front();
    }
  }
}

TEST(EvictionQueueTest, EpochKeepsSourcesInUse) {
  EvictionQueue queue(EvictionPolicy::kEpoch);
  Item used(1);
  Item idle(2);
  queue.Insert(&used, true);
  EXPECT_EQ(queue.candidates(), 0u);
  EXPECT_EQ(queue.NextVictim(Any), nullptr);
  queue.Insert(&idle, false);
  EXPECT_EQ(queue.NextVictim(Any), &idle);
  EXPECT_EQ(queue.NextForced(Any), &idle);
  queue.Remove(&idle, false);
  EXPECT_EQ(queue.NextForced(Any), &used);
}

TEST(EvictionQueueTest, SieveGivesUpAll) {
  EvictionQueue queue(EvictionPolicy::kSieve);
  Item used(1);
  queue.Insert(&used, true);
  EXPECT_EQ(queue.NextVictim(Any), &used);
}

}  // namespace
}  // namespace millrace::tier
