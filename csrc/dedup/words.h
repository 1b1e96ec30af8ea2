// The default normalisation: a text as hashes of its words.
//
// Case is folded, marks are dropped, punctuation and white space separate words. A letter of a script without spaces
// between words is a word of its own, so that n-grams of words are n-grams of characters there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../common/hash.h"
#include "unicode.h"

namespace dedup {

// The hash of a string without zero bytes, eight at a time, earlier ones in higher bits.
class StringHash {
 public:
  void put(std::uint8_t byte) {
    block_ = block_ << 8 | byte;
    if ((++size_ & 7) == 0) {
      state_ = curriculum::mix(state_ ^ block_);
      block_ = 0;
    }
  }
  bool is_empty() const { return size_ == 0; }
  // The hash; empty after this.
  std::uint64_t take() {
    const std::uint64_t hash = curriculum::mix(state_ ^ block_);
    *this = StringHash();
    return hash;
  }

 private:
  std::uint64_t state_ = 0, block_ = 0, size_ = 0;
};

// 128 bits of all words and numbers in their order.
class Digest {
 public:
  void add(std::uint64_t hash) {
    chain_ = curriculum::mix(chain_ ^ hash);
    sum_ = sum_ * multiplier + hash;
  }
  std::array<std::uint64_t, 2> value() const { return {chain_, curriculum::mix(sum_)}; }

 private:
  static constexpr std::uint64_t multiplier = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio
  std::uint64_t chain_ = 0, sum_ = 0;
};

struct WordRules {
  bool joins_spaceless = false;  // their letters make words like those of other scripts
  bool parts_letters = false;    // every letter is a word
  bool keeps_numbers = false;    // digits are letters; else numbers count in the digest alone
};

class WordReader {
 public:
  explicit WordReader(const WordRules& rules);

  // The hash of each word of the text, in order, and the digest of its words and numbers.
  void read(const std::uint8_t* text, std::size_t size, std::vector<std::uint64_t>& words, Digest& digest) const;

 private:
  struct Reading;

  void read_ascii(Reading& reading) const;
  void read_other(Reading& reading, std::uint32_t point) const;
  void add(Reading& reading, std::uint32_t point) const;

  std::array<Kind, 8> kinds_;             // as which each kind counts
  std::array<std::uint8_t, 128> letters_{};  // ASCII: the small letter or the digit, 0 where it separates
  bool has_fast_letters_;
  const Attributes* attributes_;
  const Mapping& mapping_;
};

}  // namespace dedup
