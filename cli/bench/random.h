// xoshiro256** 1.0 (Blackman and Vigna, public domain): the same stream on every machine for the
// same seed, and several GiB/s of incompressible bytes. Not for secrets. Not thread-safe.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace millrace::bench {

class Random {
 public:
  // Streams of the same seed are independent of each other: one per file.
  explicit Random(uint64_t seed, uint64_t stream = 0) {
    uint64_t mixed = seed ^ (stream * 0xd1342543de82ef95);
    for (uint64_t& word : state_) word = SplitMix(&mixed);
  }

  uint64_t Next() {
    const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  // A number in [0, bound). REQUIRES: bound > 0.
  uint64_t Below(uint64_t bound) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(Next()) * bound) >> 64);
  }

  void Fill(char* data, size_t size) {
    for (; size >= sizeof(uint64_t); data += sizeof(uint64_t), size -= sizeof(uint64_t)) {
      const uint64_t word = Next();
      std::memcpy(data, &word, sizeof(word));
    }
    const uint64_t word = Next();
    std::memcpy(data, &word, size);
  }

  template <typename T>
  void Shuffle(std::vector<T>* items) {
    for (size_t i = items->size(); i > 1; --i) std::swap((*items)[i - 1], (*items)[Below(i)]);
  }

 private:
  static uint64_t SplitMix(uint64_t* state) {
    uint64_t mixed = (*state += 0x9e3779b97f4a7c15);
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
    return mixed ^ (mixed >> 31);
  }

  uint64_t state_[4];
};

}  // namespace millrace::bench
