// MinHash: for each permutation the least of a document's permuted shingle hashes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dedup {

// x -> a x + b of each permutation, padded so that no loop has a rest. `Number`: 32 bits, modulo 2^32; or 64 bits, modulo
// 2^64 and then modulo 2^61 - 1, as NumPy computes it in the released pipeline.
template <typename Number>
class Permutations {
 public:
  Permutations(const std::vector<Number>& multipliers, const std::vector<Number>& increments);

  std::size_t size() const { return size_; }
  // Writes one minimum for each permutation; without hashes each is the largest number.
  void operator()(const std::vector<Number>& hashes, Number* minima) const;

 private:
  std::size_t size_;
  std::vector<Number> multipliers_, increments_;
};

extern template class Permutations<std::uint32_t>;
extern template class Permutations<std::uint64_t>;

}  // namespace dedup
