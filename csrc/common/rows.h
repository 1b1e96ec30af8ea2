// What is held of a document: 12 bytes once its place in its dataset is known; while its dataset is sorted by score 20, and
// 40 where the bound has room for a second buffer (sorter.h).
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "phase_format.h"

namespace curriculum {

using phase_format::sequence_bits;
using phase_format::sequence_mask;
constexpr unsigned copy_bits = 9;
constexpr std::uint64_t row_mask = (std::uint64_t{1} << (sequence_bits + copy_bits)) - 1;
constexpr std::uint64_t most_copies = std::uint64_t{1} << copy_bits;
constexpr std::uint32_t most_datasets = phase_format::padding_dataset;
constexpr unsigned percentiles = 100;            // 0 is the lowest hundredth of the corpus by score
constexpr unsigned unscored = 127;               // in the place of a percentile

// One copy of one document.
struct __attribute__((packed, aligned(4))) Entry {
  std::uint64_t word;  // percentile << 57 | copy << 48 | sequence
  std::uint32_t tail;  // tied << 31 | tokens

  std::uint64_t sequence() const { return word & sequence_mask; }
  std::uint64_t row() const { return word & row_mask; }  // what draws are made from
  unsigned percentile() const { return static_cast<unsigned>(word >> (sequence_bits + copy_bits)); }
  std::uint32_t tokens() const { return tail & 0x7FFF'FFFFu; }
  bool tied() const { return tail >> 31; }  // has the score of the entry before it
};
static_assert(sizeof(Entry) == 12);

struct __attribute__((packed, aligned(4))) ScoredRow {
  std::uint64_t key;       // the score, as ascending bits
  std::uint64_t sequence;
  std::uint32_t tokens;
};
static_assert(sizeof(ScoredRow) == 20);

constexpr std::uint64_t lowest_key = 0;  // of a missing score: below -infinity

// Unsigned integers in the order of the doubles; -0.0 and 0.0 are one value. Not for NaN.
inline std::uint64_t ascending_bits(double value) {
  value += 0.0;  // -0.0 becomes 0.0
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint64_t sign = std::uint64_t{1} << 63;
  return bits & sign ? ~bits : bits | sign;
}

// The score of ascending bits; NaN for a missing one.
inline double score_of(std::uint64_t key) {
  if (key == lowest_key) return std::numeric_limits<double>::quiet_NaN();
  const std::uint64_t sign = std::uint64_t{1} << 63;
  const std::uint64_t bits = key & sign ? key & ~sign : ~key;
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace curriculum
