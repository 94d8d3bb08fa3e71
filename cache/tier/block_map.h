// Which blocks of one file are present, with a checksum each.
//
// Readers take no lock: a block's bit is set with release order after its checksum, and read with
// acquire. A file of one block (most files of a training set) needs no memory beyond the object;
// larger ones get it in chunks of 128 MiB of data as they fill, so that a huge sparse file costs
// little.
//
// A block is absent, claimed (somebody writes it), or present. A present block may be unverified:
// recorded in another boot, so that its bytes may never have reached the disk.
// Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

namespace millrace::tier {

class BlockMap {
 public:
  // REQUIRES: blocks < 2^32.
  explicit BlockMap(uint64_t blocks);
  ~BlockMap();
  BlockMap(const BlockMap&) = delete;
  BlockMap& operator=(const BlockMap&) = delete;

  uint64_t blocks() const { return blocks_; }
  uint64_t present() const { return present_.load(std::memory_order_acquire); }
  bool full() const { return present() == blocks_; }
  bool any_unverified() const { return unverified_.load(std::memory_order_acquire) != 0; }

  // False for an index beyond the end.
  bool Has(uint64_t index) const;
  // REQUIRES: count > 0.
  bool HasAll(uint64_t first, uint64_t count) const;
  bool Unverified(uint64_t index) const;
  // The first present (unverified) block at or behind `from`; blocks() if there is none.
  uint64_t NextPresent(uint64_t from) const { return Next(kPresent, from); }
  uint64_t NextUnverified(uint64_t from) const { return Next(kUnverified, from); }
  // REQUIRES: Has(index).
  uint32_t crc(uint64_t index) const;

  // True: the block is neither present nor claimed by another, and the caller's to write; it ends
  // the claim with Set or Unclaim.
  bool Claim(uint64_t index);
  void Unclaim(uint64_t index);
  // REQUIRES: the caller's claim, or no other user of the map.
  void Set(uint64_t index, uint32_t crc);
  // The same, unverified. REQUIRES: no other user of the map.
  void SetUnverified(uint64_t index, uint32_t crc);
  // True if the block was unverified.
  bool MarkVerified(uint64_t index);
  // Makes a present block absent. True if it was present.
  bool Clear(uint64_t index);

 private:
  enum Kind { kPresent, kClaimed, kUnverified, kKinds };
  static constexpr uint64_t kChunkBlocks = 1024;
  static constexpr uint64_t kWordBlocks = 64;
  using Word = std::atomic<uint64_t>;

  struct Chunk {
    explicit Chunk(uint64_t blocks);
    const uint64_t words_per_kind;
    const std::unique_ptr<Word[]> words;  // All words of a kind, then those of the next.
    const std::unique_ptr<std::atomic<uint32_t>[]> crcs;
  };

  bool small() const { return blocks_ <= 1; }
  uint64_t chunks() const { return (blocks_ + kChunkBlocks - 1) / kChunkBlocks; }
  // Null if the chunk of `index` has no memory yet.
  const Chunk* Find(uint64_t index) const;
  Chunk* FindOrMake(uint64_t index);
  // Null if absent. REQUIRES: index < blocks_.
  const Word* FindWord(Kind kind, uint64_t index) const;
  Word& MakeWord(Kind kind, uint64_t index);
  std::atomic<uint32_t>& MakeCrc(uint64_t index);
  bool Test(Kind kind, uint64_t index) const;
  uint64_t Next(Kind kind, uint64_t from) const;
  static uint64_t Bit(uint64_t index) { return uint64_t{1} << (index % kWordBlocks); }

  const uint32_t blocks_;
  std::atomic<uint32_t> present_{0};
  std::atomic<uint32_t> unverified_{0};
  std::atomic<uint32_t> small_crc_{0};  // Files of one block: these two…
  std::array<Word, kKinds> small_words_{};
  std::unique_ptr<std::atomic<Chunk*>[]> chunks_;  // …larger ones: this.
};

}  // namespace millrace::tier
