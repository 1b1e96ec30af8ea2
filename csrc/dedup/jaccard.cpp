#include "jaccard.h"

#include <stdexcept>
#include <string>

namespace dedup {
namespace {

// Elements that both have; without branches, which hashes would make half of the time wrong.
std::size_t common(const std::uint64_t* a, const std::uint64_t* a_last, const std::uint64_t* b,
                   const std::uint64_t* b_last) {
  std::size_t both = 0;
  while (a < a_last && b < b_last) {
    const std::uint64_t x = *a, y = *b;
    both += x == y;
    a += x <= y;
    b += y <= x;
  }
  return both;
}

}  // namespace

void jaccard(const std::int64_t* pairs, std::size_t count, const std::int64_t* offsets, std::size_t sets,
             const std::uint64_t* hashes, std::size_t total, double* similarity) {
  for (std::size_t s = 0; s < sets; ++s)
    if (offsets[s] < 0 || offsets[s + 1] < offsets[s] || static_cast<std::uint64_t>(offsets[s + 1]) > total)
      throw std::invalid_argument("the offsets of set " + std::to_string(s) + " are not of these hashes");
  for (std::size_t i = 0; i < count; ++i) {
    const auto a = static_cast<std::uint64_t>(pairs[2 * i]), b = static_cast<std::uint64_t>(pairs[2 * i + 1]);
    if (a >= sets || b >= sets)
      throw std::invalid_argument("pair " + std::to_string(i) + " has a set that does not exist");
    const std::size_t both =
        common(hashes + offsets[a], hashes + offsets[a + 1], hashes + offsets[b], hashes + offsets[b + 1]);
    const auto either = static_cast<std::size_t>(offsets[a + 1] - offsets[a] + offsets[b + 1] - offsets[b]) - both;
    similarity[i] = either == 0 ? 0.0 : static_cast<double>(both) / static_cast<double>(either);
  }
}

}  // namespace dedup
