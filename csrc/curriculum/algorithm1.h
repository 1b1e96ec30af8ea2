// Algorithm 1 of the PCMind-2.1-Kaiyuan-2B report (arXiv 2512.07612): the multi-dataset curriculum.
//
//   1. Each row belongs to a dataset i, with that dataset's own score; an unscored dataset gets a random key.
//   2. Inside dataset i, after filtering and duplication, sort ascending; rank r = 1..N_i.           (dataset.h)
//   3. Rescaled key R = r / N_i * N_total, plus a perturbation drawn from U(0, perturb).             (interleave.h)
//   4. Sort all rows by R, ties at random; write in that order.
//
// So when R has reached p * N_total, every dataset has given floor(p * N_i) of its rows: the datasets are interleaved in
// proportion, and quality rises in all of them together. Ranked by tokens, r is the tokens of dataset i up to and with
// the row, and N_i its tokens, where an empty document counts one.
//
// How far a prefix of k rows may stray. Let R_k be the R of its last row and p = R_k / N_total. Each dataset has given
// all rows with R < R_k and some of those with R = R_k, of which it has one at most: between ceil(p N_i) - 1 and
// floor(p N_i) rows. Write the count as p N_i - d_i with 0 <= d_i <= 1 (d_i < 1, or = 1 for a tie at R_k not yet
// given). Then k = p N_total - sum d, so count_i - k N_i / N_total = (N_i / N_total) sum d - d_i, with D datasets
//
//     -1 <= -(1 - N_i / N_total) <= count_i - k * N_i / N_total <= (D - 1) * N_i / N_total,
//
// which grows with the number of datasets and not with the rows. Both ends are reached: with equal sizes the last tied
// row lacks just this. Ranked by tokens the same holds for tokens, with d_j between 0 and the longest document L_j of
// dataset j: -(1 - T_i / T) L_i <= tokens_i - t * T_i / T <= (T_i / T) * sum of L_j over j != i.
//
// Where the report leaves a choice to chance, a hash of (seed of the dataset, sequence, copy) decides (hash.h): the order
// is a function of the rows and the seeds alone, whatever the threads and the memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "dataset.h"
#include "interleave.h"

namespace curriculum {

// Builds one phase. Datasets come one after the other (begin, add..., keep or keep_random), then each gets its copies
// (repeat or repeat_to), then they are interleaved.
class Builder {
 public:
  // `folder` gets scratch files, without names, when `memory` bytes do not hold the rows.
  Builder(const std::string& folder, std::uint64_t memory, bool shuffle, unsigned threads);

  // Throws std::invalid_argument beyond 65,535 datasets.
  void begin(bool scored, std::uint64_t choice_seed, std::uint64_t order_seed, std::uint64_t expected);
  void add(std::uint64_t first, const std::int32_t* lengths, const double* scores, std::size_t size,
           bool drop_missing);

  Dataset& last() const;
  const Dataset& dataset(std::size_t number) const { return *datasets_.at(number); }
  Dataset& complete(std::size_t number);  // for its copies: all datasets are closed
  Profile interleave(const std::string& folder, bool by_tokens, double perturb, std::uint64_t buckets,
                     std::size_t window_rows, const std::function<void(std::uint64_t)>& progress);

 private:
  Workshop workshop_;
  bool shuffle_;
  std::vector<std::unique_ptr<Dataset>> datasets_;
};

}  // namespace curriculum
