// The released pipeline's normalisation and n-grams (Kaiyuan-Spark, datafiner/deduplication), rule by rule.
//
// str.lower; a decimal number, one separator inside it included, becomes "0"; listed punctuation becomes a space; white
// space is stripped and collapsed; NFD; non-spacing marks dropped; stripped. Words are what lies between single
// characters that are not \w: two of these in a row have an empty word between them. The Unicode version is that of
// unicode_data.h, where the released code takes those of its Python and of its `regex`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sha1.h"

namespace dedup {

// Reads texts one after another, in memory that is kept for the next one.
class KaiyuanReader {
 public:
  // The normalised text with a space for each character that is not \w, and `sha1_slack` bytes that are not part of it.
  // The n-grams of words are spans of it: none below five words, one of all words below `ngram`.
  void read(const std::uint8_t* text, std::size_t size, unsigned ngram);
  const std::vector<std::uint8_t>& normalised() const { return normalised_; }
  const std::vector<Span>& shingles() const { return shingles_; }

 private:
  std::vector<std::uint8_t> normalised_;
  std::vector<std::size_t> spaces_;  // where they are
  std::vector<Span> shingles_;
};

}  // namespace dedup
