#include "selection.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <tuple>

#include "algorithm1.h"
#include "hash.h"

namespace curriculum {

std::vector<std::uint64_t> select(const std::string& dataset, const double* scores, std::size_t size,
                                  std::size_t count, std::uint64_t seed) {
  if (count > size)
    throw std::invalid_argument("dataset " + dataset + ": " + std::to_string(count) + " documents asked of " +
                                std::to_string(size));
  if (scores) refuse_nan(dataset, scores, size);
  struct Candidate {
    std::uint64_t key, draw, sequence;
  };
  const Draws draw(seed, Purpose::selection);
  std::vector<Candidate> candidates(size);
  for (std::size_t i = 0; i < size; ++i) candidates[i] = {scores ? ascending_bits(scores[i]) : 0, draw(i), i};

  const auto better = [](const Candidate& a, const Candidate& b) {
    return std::tie(a.key, a.draw) > std::tie(b.key, b.draw);  // draws of different sequences differ: mix is a bijection
  };
  const auto end = candidates.begin() + static_cast<std::ptrdiff_t>(count);
  std::nth_element(candidates.begin(), end, candidates.end(), better);

  std::vector<std::uint64_t> selected(count);
  std::transform(candidates.begin(), end, selected.begin(), [](const Candidate& row) { return row.sequence; });
  std::sort(selected.begin(), selected.end());
  return selected;
}

std::vector<std::uint32_t> draw_copies(const std::uint64_t* sequences, std::size_t size, double repeat,
                                       std::uint64_t seed) {
  if (!(repeat >= 0 && repeat <= 0x1.0p31))
    throw std::invalid_argument("repeat is " + std::to_string(repeat) + "; it must be between 0 and 2^31");
  const Draws draw(seed, Purpose::repetition);
  const double whole = std::floor(repeat);
  std::vector<std::uint32_t> copies(size);
  for (std::size_t i = 0; i < size; ++i)
    copies[i] = static_cast<std::uint32_t>(whole) + (uniform(draw(sequences[i])) < repeat - whole ? 1 : 0);
  return copies;
}

}  // namespace curriculum
