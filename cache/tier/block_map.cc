#include "cache/tier/block_map.h"

#include <algorithm>
#include <bit>

namespace millrace::tier {

BlockMap::Chunk::Chunk(uint64_t blocks)
    : words_per_kind((blocks + kWordBlocks - 1) / kWordBlocks),
      words(new Word[kKinds * words_per_kind]()),
      crcs(new std::atomic<uint32_t>[blocks]()) {}

BlockMap::BlockMap(uint64_t blocks) : blocks_(static_cast<uint32_t>(blocks)) {
  if (!small()) chunks_ = std::make_unique<std::atomic<Chunk*>[]>(chunks());
}

BlockMap::~BlockMap() {
  if (small()) return;
  for (uint64_t i = 0; i < chunks(); ++i) delete chunks_[i].load(std::memory_order_relaxed);
}

const BlockMap::Chunk* BlockMap::Find(uint64_t index) const {
  return chunks_[index / kChunkBlocks].load(std::memory_order_acquire);
}

BlockMap::Chunk* BlockMap::FindOrMake(uint64_t index) {
  const uint64_t number = index / kChunkBlocks;
  std::atomic<Chunk*>& slot = chunks_[number];
  Chunk* chunk = slot.load(std::memory_order_acquire);
  if (chunk != nullptr) return chunk;
  const uint64_t blocks = std::min<uint64_t>(kChunkBlocks, blocks_ - number * kChunkBlocks);
  auto made = std::make_unique<Chunk>(blocks);
  if (slot.compare_exchange_strong(chunk, made.get(), std::memory_order_acq_rel)) {
    return made.release();
  }
  return chunk;  // Another thread was faster.
}

const BlockMap::Word* BlockMap::FindWord(Kind kind, uint64_t index) const {
  if (small()) return &small_words_[kind];
  const Chunk* chunk = Find(index);
  if (chunk == nullptr) return nullptr;
  return &chunk->words[kind * chunk->words_per_kind + index % kChunkBlocks / kWordBlocks];
}

BlockMap::Word& BlockMap::MakeWord(Kind kind, uint64_t index) {
  if (small()) return small_words_[kind];
  Chunk* chunk = FindOrMake(index);
  return chunk->words[kind * chunk->words_per_kind + index % kChunkBlocks / kWordBlocks];
}

std::atomic<uint32_t>& BlockMap::MakeCrc(uint64_t index) {
  return small() ? small_crc_ : FindOrMake(index)->crcs[index % kChunkBlocks];
}

bool BlockMap::Test(Kind kind, uint64_t index) const {
  if (index >= blocks_) return false;
  const Word* word = FindWord(kind, index);
  return word != nullptr && (word->load(std::memory_order_acquire) & Bit(index)) != 0;
}

bool BlockMap::Has(uint64_t index) const { return Test(kPresent, index); }

bool BlockMap::Unverified(uint64_t index) const {
  return any_unverified() && Test(kUnverified, index);
}

bool BlockMap::HasAll(uint64_t first, uint64_t count) const {
  if (first >= blocks_ || count > blocks_ - first) return false;
  const uint64_t end = first + count;
  for (uint64_t index = first; index < end;) {
    const uint64_t word_end = std::min(end, (index / kWordBlocks + 1) * kWordBlocks);
    const uint64_t width = word_end - index;
    const uint64_t ones = width == kWordBlocks ? ~uint64_t{0} : (uint64_t{1} << width) - 1;
    const uint64_t mask = ones << (index % kWordBlocks);
    const Word* word = FindWord(kPresent, index);
    if (word == nullptr || (word->load(std::memory_order_acquire) & mask) != mask) return false;
    index = word_end;
  }
  return true;
}

uint64_t BlockMap::Next(Kind kind, uint64_t from) const {
  for (uint64_t index = from; index < blocks_;) {
    if (!small() && Find(index) == nullptr) {
      index = (index / kChunkBlocks + 1) * kChunkBlocks;
      continue;
    }
    const uint64_t word = FindWord(kind, index)->load(std::memory_order_acquire);
    const uint64_t rest = word >> (index % kWordBlocks);
    if (rest != 0) return index + static_cast<uint64_t>(std::countr_zero(rest));
    index = (index / kWordBlocks + 1) * kWordBlocks;
  }
  return blocks_;
}

uint32_t BlockMap::crc(uint64_t index) const {
  if (small()) return small_crc_.load(std::memory_order_relaxed);
  return Find(index)->crcs[index % kChunkBlocks].load(std::memory_order_relaxed);
}

bool BlockMap::Claim(uint64_t index) {
  Word& claimed = MakeWord(kClaimed, index);
  if ((claimed.fetch_or(Bit(index), std::memory_order_acq_rel) & Bit(index)) != 0) return false;
  if (!Has(index)) return true;
  Unclaim(index);
  return false;
}

void BlockMap::Unclaim(uint64_t index) {
  MakeWord(kClaimed, index).fetch_and(~Bit(index), std::memory_order_acq_rel);
}

void BlockMap::Set(uint64_t index, uint32_t crc) {
  MakeCrc(index).store(crc, std::memory_order_relaxed);
  const uint64_t before = MakeWord(kPresent, index).fetch_or(Bit(index), std::memory_order_acq_rel);
  if ((before & Bit(index)) == 0) present_.fetch_add(1, std::memory_order_acq_rel);
  Unclaim(index);
}

void BlockMap::SetUnverified(uint64_t index, uint32_t crc) {
  const uint64_t before =
      MakeWord(kUnverified, index).fetch_or(Bit(index), std::memory_order_acq_rel);
  if ((before & Bit(index)) == 0) unverified_.fetch_add(1, std::memory_order_acq_rel);
  Set(index, crc);
}

bool BlockMap::MarkVerified(uint64_t index) {
  if (!Test(kUnverified, index)) return false;
  const uint64_t before =
      MakeWord(kUnverified, index).fetch_and(~Bit(index), std::memory_order_acq_rel);
  if ((before & Bit(index)) == 0) return false;
  unverified_.fetch_sub(1, std::memory_order_acq_rel);
  return true;
}

bool BlockMap::Clear(uint64_t index) {
  if (!Has(index)) return false;
  const uint64_t before =
      MakeWord(kPresent, index).fetch_and(~Bit(index), std::memory_order_acq_rel);
  if ((before & Bit(index)) == 0) return false;
  present_.fetch_sub(1, std::memory_order_acq_rel);
  // Present first: nobody may meet the block present and verified in between.
  MarkVerified(index);
  return true;
}

}  // namespace millrace::tier
