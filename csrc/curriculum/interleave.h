// Steps 3 and 4 of Algorithm 1 (algorithm1.h): the datasets, each in its own order, become one order of all rows.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dataset.h"

namespace curriculum {

enum class RankBy { documents, tokens, draw };  // draw: a shuffled phase

struct InterleaveSettings {
  RankBy rank_by;
  double perturbation;  // `perturb` of step 3, in rows, or in tokens with RankBy::tokens; not negative
  unsigned threads;
  std::size_t window_rows;  // rows that are sorted at a time, about; 0 chooses
  std::uint64_t buckets;    // of the profile: equal parts of the phase's tokens
};

// What each dataset gives to each bucket. A document gives each bucket the tokens of it that lie there.
struct Profile {
  std::uint64_t buckets;
  std::vector<std::uint64_t> tokens;    // [dataset * buckets + bucket]
  std::vector<std::uint64_t> quality;   // the same: sum of tokens * (2 * percentile + 1); 0 for unscored datasets
};

// Writes order.bin, tokens.bin and checks.bin into `folder`. `progress` is called now and then, by the calling thread,
// with the rows done; what it throws ends the work.
//
// The range of R is cut into windows. In each, the rows of every dataset are gathered, sorted by (R, hash) and
// written; nothing is held of the others. So the cost of a row does not depend on the number of datasets, and threads
// take parts of the range that share nothing.
//
// Throws std::invalid_argument, with the number, when a window with the rows that wait for the next one does not fit the
// memory, or there are 2^50 rows or tokens or more; corpus_index::FileError when a file cannot be written.
Profile interleave(const std::vector<std::unique_ptr<Dataset>>& datasets, const Memory& memory,
                   const InterleaveSettings& settings, const std::string& folder,
                   const std::function<void(std::uint64_t)>& progress);

}  // namespace curriculum
