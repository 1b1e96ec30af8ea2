// What a code point is, and what normalisation makes of it.
//
// Both normalisations map code points one by one: what NFD would reorder is dropped or separates words in either.
#pragma once

#include <cstdint>
#include <vector>

#include "unicode_data.h"
#include "utf8.h"

namespace dedup {

enum class Kind : std::uint8_t {
  separator,   // white space, punctuation, symbols, controls, what is not assigned
  letter,      // of a script that puts spaces between words
  spaceless,   // of a script that does not: Han, kana, Hangul, Thai, Lao, Khmer, Myanmar
  continuing,  // a Hangul vowel or final consonant: it belongs to the letter before it
  number,      // that is not a decimal digit
  digit,
  mark,        // non-spacing: dropped by both normalisations
  ignorable,   // enclosing and reordered marks, format characters: dropped by ours
};

// One code point: kind and flags, as make_unicode_data.py writes them.
class Attributes {
 public:
  explicit Attributes(std::uint8_t bits = 0) : bits_(bits) {}
  Kind kind() const { return static_cast<Kind>(bits_ & 7); }
  bool is_dropped() const { return kind() == Kind::mark || kind() == Kind::ignorable; }
  bool is_spacing_mark() const { return bits_ & 8; }
  bool is_white_space() const { return bits_ & 16; }
  bool is_cased() const { return bits_ & 32; }                // Unicode's Cased and not Case_Ignorable
  bool is_ignored_in_casing() const { return bits_ & 64; }    // Case_Ignorable
  // Python's \w but for the underscore.
  bool is_word() const { return kind() != Kind::separator && !is_dropped() && !is_spacing_mark(); }

 private:
  std::uint8_t bits_;
};

// The attributes of all code points, made once.
const std::vector<Attributes>& attributes();

// What one normalisation makes of each code point: none, one or up to three others. Hangul syllables map to themselves.
class Mapping {
 public:
  static const Mapping& folding();   // NFD, marks dropped, case folded, NFD
  static const Mapping& lowering();  // str.lower, NFD, non-spacing marks dropped

  // Calls visit(code point) for each that `point` becomes.
  template <typename Visit>
  void operator()(std::uint32_t point, const Visit& visit) const {
    const std::uint32_t entry = entries_[point];
    const unsigned length = entry >> length_shift;
    if (length == 1) return visit(entry & point_mask);
    for (unsigned i = 0; i < length; ++i) visit(sequences_[(entry & point_mask) + i]);
  }
  // The one code point that it becomes; `not_one` where it becomes none or more.
  std::uint32_t single(std::uint32_t point) const {
    return entries_[point] >> length_shift == 1 ? entries_[point] & point_mask : not_one;
  }
  static constexpr std::uint32_t not_one = ~std::uint32_t{0};

 private:
  explicit Mapping(bool folds);
  void add(const std::int32_t* numbers, std::size_t size);

  static constexpr unsigned length_shift = 30;
  static constexpr std::uint32_t point_mask = (1u << length_shift) - 1;
  std::vector<std::uint32_t> entries_;    // length << 30 | the code point, or where its sequence begins
  std::vector<std::uint32_t> sequences_;
};

// The parts of a Hangul syllable (Unicode, section 3.12).
constexpr std::uint32_t first_syllable = 0xAC00, last_syllable = 0xD7A3;
inline bool is_syllable(std::uint32_t point) { return point >= first_syllable && point <= last_syllable; }

// Calls visit(code point) for its two or three letters.
template <typename Visit>
inline void decompose_syllable(std::uint32_t point, const Visit& visit) {
  const std::uint32_t index = point - first_syllable;
  visit(0x1100 + index / (21 * 28));
  visit(0x1161 + index % (21 * 28) / 28);
  if (index % 28 != 0) visit(0x11A7 + index % 28);
}

}  // namespace dedup
