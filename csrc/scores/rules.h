// What the rules of C4, Gopher and FineWeb measure of a document. Thresholds: data_tools/scores/kinds/rules.py.
//
// A line is what lies between line feeds, without the white space at its ends; blank ones do not count. A paragraph is
// a run of lines without a blank one between. A token is a run without white space; a word is a token without the
// punctuation at its ends, where something is left. Lengths are in code points. A share of nothing is 0.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace scores {

// Bits of a code point's class, as the caller's Unicode database has them.
enum CharacterClass : std::uint8_t { letter = 1, punctuation = 2, space = 4 };
constexpr std::size_t code_points = 0x110000;

inline std::uint64_t mixed(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15ULL;
  return hash ^ (hash >> 32U);
}
inline double share(double part, double whole) { return whole > 0 ? part / whole : 0.0; }
inline double number(std::size_t value) { return static_cast<double>(value); }

// Names of what `RuleMeasures::measure` writes, in its order.
extern const std::array<const char*, 30> measure_names;

class RuleMeasures {
 public:
  // `classes`: a byte for each code point.
  explicit RuleMeasures(std::string classes);

  // Writes measure_names.size() numbers. Bytes that are not UTF-8 count as U+FFFD each. Not for two threads at a time.
  void measure(std::string_view text, double* into);

 private:
  struct Token {
    std::size_t begin, end;  // code points
    std::uint64_t hash;
  };
  struct Line {
    std::size_t begin, end;            // code points, without white space at the ends
    std::size_t byte_begin, byte_end;  // with it
    std::size_t first_token, last_token;
    std::uint64_t hash;
    bool after_blank;  // begins a paragraph
  };
  struct Repeats {
    std::size_t count = 0, characters = 0;
  };
  struct Cell {
    std::uint64_t key;  // 0: free
    std::size_t count, first;
  };

  bool is(std::size_t at, CharacterClass wanted) const { return (kinds_[at] & wanted) != 0; }
  void decode(std::string_view text);
  void split();
  void measure_c4(std::string_view text, double* into);
  bool is_kept_by_c4(const Line& line, bool has_phrases) const;
  std::size_t sentences(const Line& line) const;
  void measure_gopher(double* into) const;
  void measure_repetition(double* into);
  void measure_fineweb(double* into);
  bool ends_with_ellipsis(const Line& line) const;
  Repeats repeated_lines();
  Repeats repeated_paragraphs();
  void clear_cells(std::size_t entries);
  Cell& cell_of(std::uint64_t key);
  double top_ngram(std::size_t length);
  double repeated_ngrams(std::size_t length);

  std::string classes_;
  std::vector<std::uint32_t> points_;  // of the document at hand, as all that follows
  std::vector<std::uint8_t> kinds_;
  std::vector<std::size_t> line_ends_, line_end_bytes_;  // positions of line feeds, and of the end
  std::string lowered_;
  std::vector<Line> lines_;
  std::vector<Token> tokens_;
  std::vector<std::uint64_t> ngrams_;
  std::vector<Cell> cells_;
  Repeats repeated_lines_;
};

}  // namespace scores
