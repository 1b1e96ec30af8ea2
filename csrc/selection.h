// Which documents of a dataset enter a phase, and how often.
//
// The report repeats strategically: nested top fractions of the scored datasets (the best documents appear in many
// phases), random fractions, and a `repeat` count for unscored datasets (arXiv 2512.07612; the released pipeline).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace curriculum {

// The `count` sequences of 0..size-1 with the highest scores, ascending; without scores (null), `count` at random.
//
// Exactly `count` rows: between documents that tie at the threshold the higher hash of (seed, sequence) stays. (The
// released pipeline drops all of them, which empties a dataset whose scores are mostly one value.) With one seed a
// smaller count selects a subset of a larger one. Throws std::invalid_argument for NaN scores or count > size.
std::vector<std::uint64_t> select(const std::string& dataset, const double* scores, std::size_t size,
                                  std::size_t count, std::uint64_t seed);

// How often each sequence appears: floor(repeat), and once more with probability repeat - floor(repeat).
//
// Throws std::invalid_argument when repeat is negative or above 2^31.
std::vector<std::uint32_t> draw_copies(const std::uint64_t* sequences, std::size_t size, double repeat,
                                       std::uint64_t seed);

}  // namespace curriculum
