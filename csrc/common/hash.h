// Every random choice of the curriculum: a pure function of the dataset's seed, what the draw is for, and the row.
//
// No generator runs from row to row, so a draw does not depend on the number of threads, on the order of
// the work, or on which other rows or datasets exist.
#pragma once

#include <cstdint>

namespace curriculum {

// The step of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection of 64 bits that mixes well.
inline std::uint64_t mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// What a draw is for; two purposes give independent draws for the same row.
enum class Purpose : std::uint64_t { row = 0, perturbation = 1, order_tie = 2, selection = 3, repetition = 4 };

class Draws {
 public:
  Draws(std::uint64_t seed, Purpose purpose) : state_(mix(mix(seed) ^ static_cast<std::uint64_t>(purpose))) {}

  // 64 uniform bits for one copy of one document (copy << 48 | sequence); different rows have different draws.
  std::uint64_t operator()(std::uint64_t row) const { return mix(state_ ^ row); }

 private:
  std::uint64_t state_;
};

// A second draw from a row's first.
inline std::uint64_t again(std::uint64_t draw, Purpose purpose) {
  return mix(draw ^ static_cast<std::uint64_t>(purpose));
}

// The top 53 bits as a double in [0, 1): every value is exact.
inline double uniform(std::uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1.0p-53; }

}  // namespace curriculum
