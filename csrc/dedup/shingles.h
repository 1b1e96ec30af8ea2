// N-grams of words, as hashes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../common/hash.h"

namespace dedup {

// Calls visit(hash) for each n-gram in turn; fewer words than `ngram` are one n-gram, no words none. The hash is that of
// the polynomial of the words' hashes modulo 2^64, which is moved on by one word with two multiplications.
template <typename Visit>
void each_shingle(const std::vector<std::uint64_t>& words, unsigned ngram, const Visit& visit) {
  constexpr std::uint64_t base = 0xD1342543DE82EF95u;  // odd; a multiplier of Steele and Vigna (2022)
  if (words.empty()) return;
  std::uint64_t sum = 0, power = 1;
  const std::size_t first = words.size() < ngram ? words.size() : ngram;
  for (std::size_t i = 0; i < first; ++i) {
    sum = sum * base + words[i];
    power *= base;
  }
  visit(curriculum::mix(sum));
  for (std::size_t i = first; i < words.size(); ++i) {
    sum = sum * base + words[i] - words[i - first] * power;
    visit(curriculum::mix(sum));
  }
}

}  // namespace dedup
