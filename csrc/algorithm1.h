// Algorithm 1 of the PCMind-2.1-Kaiyuan-2B report (arXiv 2512.07612): the multi-dataset curriculum.
//
//   1. Each row belongs to a dataset i, with that dataset's own score; an unscored dataset gets a random key.
//   2. Inside dataset i, after filtering and duplication, sort ascending; rank r = 1..N_i.
//   3. Rescaled key R = r / N_i * N_total, plus a perturbation drawn from U(0, perturb).
//   4. Sort all rows by R, ties at random; write in that order.
//
// So when R has reached p * N_total, every dataset has given floor(p * N_i) of its rows: the datasets are
// interleaved in proportion, and quality rises in all of them together.
//
// Where the report leaves a choice to chance, a hash of (seed, dataset, sequence, copy) decides (hash.h):
// the order is a function of the rows and the seed alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace curriculum {

constexpr unsigned sequence_bits = 48;          // an entry of the order: dataset << 48 | sequence
constexpr std::size_t most_datasets = 65'535;

// The rows of one dataset; the arrays belong to the caller and have `size` elements.
struct Dataset {
  std::string name;                // for errors
  const std::uint64_t* sequences;  // below 2^48
  const double* scores;            // null: unscored
  const std::uint32_t* copies;     // null: every row once
  std::size_t size;
};

struct Settings {
  bool shuffle;         // true: every row by its hash alone, whatever its dataset and score
  double perturbation;  // `perturb` of step 3, in rows; not negative
  std::uint64_t seed;
  unsigned threads;     // changes the speed, never the result
};

// Every row's (dataset << 48 | sequence) in the order of the phase; each row appears `copies` times.
//
// Needs at most 36 bytes a row. Throws std::invalid_argument, naming the dataset and the number, for NaN scores, a
// sequence of 2^48 or more, too many datasets, or a perturbation that is negative or not finite.
std::vector<std::uint64_t> build_order(const std::vector<Dataset>& datasets, const Settings& settings);

// Throws std::invalid_argument with the count when a score is NaN: it has no place in an order.
void refuse_nan(const std::string& dataset, const double* scores, std::size_t size);

// Unsigned integers in the order of the doubles; -0.0 and 0.0 are one value. Not for NaN.
std::uint64_t ascending_bits(double value);

}  // namespace curriculum
