#include "common/base/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace millrace::base {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // Castagnoli, bit-reversed.

using Table = std::array<uint32_t, 256>;

constexpr Table MakeByteTable() {
  Table table{};
  for (uint32_t n = 0; n < 256; ++n) {
    uint32_t crc = n;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) ? (crc >> 1) ^ kPolynomial : crc >> 1;
    table[n] = crc;
  }
  return table;
}
constexpr Table kByteTable = MakeByteTable();

#if defined(__x86_64__) || defined(__aarch64__)

// The instruction has a latency of three cycles and a throughput of one a cycle: three independent
// streams keep it busy (M. Adler, "crc32c.c", 2013, describes the method). Each stream covers
// kStride bytes; kSkip advances a CRC over kStride zero bytes so that the streams can be joined.
constexpr size_t kStride = 4096;

struct SkipTable {
  std::array<Table, 4> by_byte;
};

// Advancing over zeros is linear over GF(2): the effect on each of the 32 bits decides the rest.
constexpr SkipTable MakeSkipTable() {
  std::array<uint32_t, 32> bits{};
  for (int bit = 0; bit < 32; ++bit) bits[bit] = uint32_t{1} << bit;
  // One zero byte, then square the operator until it covers kStride (a power of two).
  for (uint32_t& value : bits) value = (value >> 8) ^ kByteTable[value & 0xff];
  for (size_t covered = 1; covered < kStride; covered *= 2) {
    std::array<uint32_t, 32> squared{};
    for (int bit = 0; bit < 32; ++bit) {
      uint32_t value = 0;
      for (int i = 0; i < 32; ++i) {
        if (bits[bit] >> i & 1) value ^= bits[i];
      }
      squared[bit] = value;
    }
    bits = squared;
  }
  SkipTable skip{};
  for (int byte = 0; byte < 4; ++byte) {
    for (uint32_t n = 0; n < 256; ++n) {
      uint32_t value = 0;
      for (int i = 0; i < 8; ++i) {
        if (n >> i & 1) value ^= bits[byte * 8 + i];
      }
      skip.by_byte[byte][n] = value;
    }
  }
  return skip;
}
constexpr SkipTable kSkip = MakeSkipTable();

uint32_t Skip(uint32_t crc) {
  return kSkip.by_byte[0][crc & 0xff] ^ kSkip.by_byte[1][crc >> 8 & 0xff] ^
         kSkip.by_byte[2][crc >> 16 & 0xff] ^ kSkip.by_byte[3][crc >> 24];
}

uint64_t Load64(const char* data) {
  uint64_t value;
  std::memcpy(&value, data, sizeof(value));
  return value;
}

#if defined(__x86_64__)
#define MILLRACE_CRC_TARGET __attribute__((target("sse4.2")))
MILLRACE_CRC_TARGET inline uint32_t Step64(uint32_t crc, uint64_t value) {
  return static_cast<uint32_t>(_mm_crc32_u64(crc, value));
}
MILLRACE_CRC_TARGET inline uint32_t Step8(uint32_t crc, uint8_t value) {
  return _mm_crc32_u8(crc, value);
}
bool HasInstruction() { return __builtin_cpu_supports("sse4.2"); }
#else
#define MILLRACE_CRC_TARGET __attribute__((target("+crc")))
MILLRACE_CRC_TARGET inline uint32_t Step64(uint32_t crc, uint64_t value) {
  return __crc32cd(crc, value);
}
MILLRACE_CRC_TARGET inline uint32_t Step8(uint32_t crc, uint8_t value) {
  return __crc32cb(crc, value);
}
bool HasInstruction() { return getauxval(AT_HWCAP) & HWCAP_CRC32; }
#endif

MILLRACE_CRC_TARGET uint32_t Crc32cInstruction(uint32_t crc, absl::string_view data) {
  const char* at = data.data();
  size_t left = data.size();
  crc = ~crc;
  while (left >= 3 * kStride) {
    uint32_t first = crc;
    uint32_t second = 0;
    uint32_t third = 0;
    for (size_t i = 0; i < kStride; i += 8) {
      first = Step64(first, Load64(at + i));
      second = Step64(second, Load64(at + kStride + i));
      third = Step64(third, Load64(at + 2 * kStride + i));
    }
    crc = Skip(Skip(first) ^ second) ^ third;
    at += 3 * kStride;
    left -= 3 * kStride;
  }
  for (; left >= 8; at += 8, left -= 8) crc = Step64(crc, Load64(at));
  for (; left > 0; ++at, --left) crc = Step8(crc, static_cast<uint8_t>(*at));
  return ~crc;
}

#endif  // x86_64 or aarch64

}  // namespace

uint32_t Crc32cPortable(uint32_t crc, absl::string_view data) {
  crc = ~crc;
  for (const char c : data) {
    crc = (crc >> 8) ^ kByteTable[(crc ^ static_cast<uint8_t>(c)) & 0xff];
  }
  return ~crc;
}

uint32_t Crc32c(uint32_t crc, absl::string_view data) {
#if defined(__x86_64__) || defined(__aarch64__)
  static const bool has_instruction = HasInstruction();
  if (has_instruction) return Crc32cInstruction(crc, data);
#endif
  return Crc32cPortable(crc, data);
}

}  // namespace millrace::base
