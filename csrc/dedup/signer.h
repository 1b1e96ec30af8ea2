// Documents as shingles, signatures and digests, by either recipe. Signer<uint32_t>: the default; Signer<uint64_t>: the
// released pipeline's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kaiyuan.h"
#include "minima.h"
#include "words.h"

namespace dedup {

// Texts in Arrow's layout: text i is data[offsets[i] .. offsets[i + 1]). Throws std::invalid_argument where offsets fall
// or leave the data.
class Texts {
 public:
  Texts(const std::int64_t* offsets, std::size_t count, const std::uint8_t* data, std::size_t bytes);

  std::size_t count() const { return count_; }
  const std::uint8_t* text(std::size_t i) const { return data_ + offsets_[i]; }
  std::size_t size(std::size_t i) const { return static_cast<std::size_t>(offsets_[i + 1] - offsets_[i]); }

 private:
  const std::int64_t* offsets_;
  std::size_t count_;
  const std::uint8_t* data_;
};

// One document; its memory is kept for the next one.
struct Document {
  std::vector<std::uint64_t> shingles;  // hashes of all n-grams, with repeats, in any order
  std::array<std::uint64_t, 2> digest;
  std::vector<std::uint64_t> words;
  KaiyuanReader kaiyuan;
};

// What makes shingles of a text.
class Shingler {
 public:
  enum class Normalisation { own, kaiyuan };
  Shingler(Normalisation normalisation, const WordRules& rules, unsigned ngram);
  void operator()(const std::uint8_t* text, std::size_t size, Document& document) const;

 private:
  Normalisation normalisation_;
  WordReader reader_;
  unsigned ngram_;
};

// For each text its minima [permutations], the number of its n-grams (2^32 - 1 at most) and its digest [2].
void sign(const Texts& texts, const Shingler& shingler, const Permutations<std::uint32_t>& permutations,
          std::uint32_t* minima, std::uint32_t* shingles, std::uint64_t* digests);
void sign(const Texts& texts, const Shingler& shingler, const Permutations<std::uint64_t>& permutations,
          std::uint64_t* minima, std::uint32_t* shingles, std::uint64_t* digests);

struct Sets {
  std::vector<std::int64_t> offsets;  // of each document's hashes, and their end
  std::vector<std::uint64_t> hashes;  // ascending and distinct for each document
};
Sets shingle_sets(const Texts& texts, const Shingler& shingler);

}  // namespace dedup
