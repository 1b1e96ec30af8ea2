#include "rules.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace scores {

const std::array<const char*, 30> measure_names = {
    "c4_kept_lines",
    "c4_sentences",
    "c4_lorem_ipsum",
    "c4_curly_brackets",
    "gopher_words",
    "gopher_mean_word_length",
    "gopher_hashes_per_word",
    "gopher_ellipses_per_word",
    "gopher_bullet_lines",
    "gopher_ellipsis_lines",
    "gopher_alphabetic_words",
    "gopher_stop_words",
    "repetition_lines",
    "repetition_line_characters",
    "repetition_paragraphs",
    "repetition_paragraph_characters",
    "repetition_top_2_gram",
    "repetition_top_3_gram",
    "repetition_top_4_gram",
    "repetition_5_grams",
    "repetition_6_grams",
    "repetition_7_grams",
    "repetition_8_grams",
    "repetition_9_grams",
    "repetition_10_grams",
    "fineweb_ended_lines",
    "fineweb_repeated_characters",
    "fineweb_short_lines",
    "characters",
    "lines",
};

namespace {

constexpr std::size_t c4_first = 0, gopher_first = 4, repetition_first = 12, fineweb_first = 25, sizes_first = 28;

// Raffel et al. 2020, section 2.2, and the released code for the two limits that the paper leaves out.
constexpr std::size_t c4_line_words = 5, c4_longest_word = 1000;
constexpr std::string_view javascript = "javascript", lorem_ipsum = "lorem ipsum";
constexpr std::array<std::string_view, 6> policy_phrases = {"terms of use", "privacy policy", "cookie policy",
                                                            "uses cookies", "use of cookies", "use cookies"};
// Rae et al. 2021, appendix A.1.1.
constexpr std::array<std::string_view, 8> stop_words = {"the", "be", "to", "of", "and", "that", "have", "with"};
constexpr std::uint32_t ellipsis = 0x2026, line_feed = '\n';
// As the code that made FineWeb counts "short".
constexpr std::size_t fineweb_short = 30;

// The marks of English, and their like in Chinese, Japanese, Arabic, Urdu and Hindi.
constexpr std::u32string_view sentence_ends = U".!?\u3002\uFF01\uFF1F\uFF0E\u061F\u06D4\u0964";
constexpr std::u32string_view quotation_ends = U"\"'\u201D\u2019\u00BB\u300D\u300F";
constexpr std::u32string_view bullets_of_lists = U"-*\u2022\u2023\u2013\u25AA\u25A0\u25E6";

bool is_one_of(std::u32string_view set, std::uint32_t point) {
  return set.find(static_cast<char32_t>(point)) != std::u32string_view::npos;
}
bool ends_sentence(std::uint32_t point) { return is_one_of(sentence_ends, point); }
bool closes_quotation(std::uint32_t point) { return is_one_of(quotation_ends, point); }

}  // namespace

RuleMeasures::RuleMeasures(std::string classes) : classes_(std::move(classes)) {
  if (classes_.size() != code_points) throw std::invalid_argument("a class for each code point is needed");
}

void RuleMeasures::measure(std::string_view text, double* into) {
  decode(text);
  split();
  measure_c4(text, into + c4_first);
  measure_gopher(into + gopher_first);
  measure_repetition(into + repetition_first);
  measure_fineweb(into + fineweb_first);
  into[sizes_first] = number(points_.size());
  into[sizes_first + 1] = number(lines_.size());
}

void RuleMeasures::decode(std::string_view text) {
  points_.clear();
  kinds_.clear();
  line_ends_.clear();
  line_end_bytes_.clear();
  for (std::size_t at = 0; at < text.size();) {
    const auto byte = [&](std::size_t index) { return static_cast<std::uint8_t>(text[at + index]); };
    const std::uint8_t first = byte(0);
    const std::size_t size = first < 0x80   ? 1
                             : first < 0xC0 ? 0
                             : first < 0xE0 ? 2
                             : first < 0xF0 ? 3
                             : first < 0xF8 ? 4
                                            : 0;
    std::uint32_t point = size == 1 ? first : first & (0x7FU >> size);
    bool valid = size > 0 && at + size <= text.size();
    for (std::size_t index = 1; valid && index < size; ++index) {
      valid = (byte(index) & 0xC0U) == 0x80U;
      point = point << 6U | (byte(index) & 0x3FU);
    }
    valid = valid && point < code_points;
    if (!valid) point = 0xFFFD;
    if (point == line_feed) {
      line_ends_.push_back(points_.size());
      line_end_bytes_.push_back(at);
    }
    points_.push_back(point);
    kinds_.push_back(static_cast<std::uint8_t>(classes_[point]));
    at += valid ? size : 1;
  }
  line_ends_.push_back(points_.size());
  line_end_bytes_.push_back(text.size());
}

// Fills lines_ and tokens_.
void RuleMeasures::split() {
  lines_.clear();
  tokens_.clear();
  bool after_blank = true;
  std::size_t start = 0, byte_start = 0;
  for (std::size_t index = 0; index < line_ends_.size(); ++index) {
    const std::size_t stop = line_ends_[index], first_token = tokens_.size();
    std::uint64_t line_hash = 0;
    for (std::size_t at = start; at < stop;) {
      while (at < stop && is(at, space)) ++at;
      if (at == stop) break;
      Token token{at, at, 0};
      for (; at < stop && !is(at, space); ++at) token.hash = mixed(token.hash, points_[at]);
      token.end = at;
      tokens_.push_back(token);
    }
    if (tokens_.size() == first_token) {
      after_blank = true;
    } else {
      const std::size_t begin = tokens_[first_token].begin, end = tokens_.back().end;
      for (std::size_t at = begin; at < end; ++at) line_hash = mixed(line_hash, points_[at]);
      lines_.push_back(
          {begin, end, byte_start, line_end_bytes_[index], first_token, tokens_.size(), line_hash, after_blank});
      after_blank = false;
    }
    start = stop + 1;
    byte_start = line_end_bytes_[index] + 1;
  }
}

void RuleMeasures::measure_c4(std::string_view text, double* into) {
  lowered_.assign(text);
  for (char& byte : lowered_) {
    if ('A' <= byte && byte <= 'Z') byte = static_cast<char>(byte + ('a' - 'A'));
  }
  const auto contains = [&](std::string_view phrase) { return lowered_.find(phrase) != std::string::npos; };
  const bool has_phrases = contains(javascript) || std::any_of(policy_phrases.begin(), policy_phrases.end(), contains);
  std::size_t kept = 0, sentence_count = 0;
  for (const Line& line : lines_) {
    if (!is_kept_by_c4(line, has_phrases)) continue;
    ++kept;
    sentence_count += sentences(line);
  }
  into[0] = share(number(kept), number(lines_.size()));
  into[1] = number(sentence_count);
  into[2] = contains(lorem_ipsum) ? 1.0 : 0.0;
  into[3] = number(static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char byte) { return byte == '{' || byte == '}'; })));
}

bool RuleMeasures::is_kept_by_c4(const Line& line, bool has_phrases) const {
  if (line.last_token - line.first_token < c4_line_words) return false;
  const std::uint32_t last = points_[line.end - 1];
  if (!(ends_sentence(last) || closes_quotation(last)) || ends_with_ellipsis(line)) return false;
  for (std::size_t token = line.first_token; token < line.last_token; ++token) {
    if (tokens_[token].end - tokens_[token].begin > c4_longest_word) return false;
  }
  if (!has_phrases) return true;
  const auto here = std::string_view(lowered_).substr(line.byte_begin, line.byte_end - line.byte_begin);
  const auto is_here = [&](std::string_view phrase) { return here.find(phrase) != std::string_view::npos; };
  return !is_here(javascript) && std::none_of(policy_phrases.begin(), policy_phrases.end(), is_here);
}

// Marks that end one, with the quotation marks after them, before white space or the end (CJK's: anywhere); at least 1.
std::size_t RuleMeasures::sentences(const Line& line) const {
  std::size_t count = 0;
  for (std::size_t at = line.begin; at < line.end; ++at) {
    if (!ends_sentence(points_[at])) continue;
    const bool is_wide = points_[at] >= 0x3000;
    while (at + 1 < line.end && (ends_sentence(points_[at + 1]) || closes_quotation(points_[at + 1]))) ++at;
    if (is_wide || at + 1 == line.end || is(at + 1, space)) ++count;
  }
  return std::max<std::size_t>(count, 1);
}

bool RuleMeasures::ends_with_ellipsis(const Line& line) const {
  const auto is_dot = [&](std::size_t back) { return points_[line.end - back] == '.'; };
  return points_[line.end - 1] == ellipsis || (line.end - line.begin >= 3 && is_dot(1) && is_dot(2) && is_dot(3));
}

void RuleMeasures::measure_gopher(double* into) const {
  std::size_t words = 0, word_characters = 0, alphabetic = 0, stop_seen = 0;
  for (const Token& token : tokens_) {
    std::size_t begin = token.begin, end = token.end;
    while (begin < end && is(begin, punctuation)) ++begin;
    while (begin < end && is(end - 1, punctuation)) --end;
    if (begin == end) continue;
    ++words;
    word_characters += end - begin;
    bool has_letter = false;
    for (std::size_t at = begin; at < end && !has_letter; ++at) has_letter = is(at, letter);
    if (has_letter) ++alphabetic;
    for (std::size_t index = 0; index < stop_words.size(); ++index) {
      const std::string_view wanted = stop_words[index];
      if (end - begin != wanted.size()) continue;
      bool equal = true;
      for (std::size_t at = 0; equal && at < wanted.size(); ++at) {
        equal = points_[begin + at] < 0x80 && (points_[begin + at] | 0x20U) == static_cast<std::uint32_t>(wanted[at]);
      }
      if (equal) stop_seen |= std::size_t{1} << index;
    }
  }
  std::size_t hashes = 0, ellipses = 0, dots = 0;
  for (const std::uint32_t point : points_) {
    dots = point == '.' ? dots + 1 : 0;
    if (point == '#') ++hashes;
    if (point == ellipsis || dots == 3) ++ellipses;
    if (dots == 3) dots = 0;
  }
  std::size_t bullets = 0, ellipsis_lines = 0;
  for (const Line& line : lines_) {
    if (is_one_of(bullets_of_lists, points_[line.begin])) ++bullets;
    if (ends_with_ellipsis(line)) ++ellipsis_lines;
  }
  const double line_count = number(lines_.size());
  into[0] = number(words);
  into[1] = share(number(word_characters), number(words));
  into[2] = share(number(hashes), number(words));
  into[3] = share(number(ellipses), number(words));
  into[4] = share(number(bullets), line_count);
  into[5] = share(number(ellipsis_lines), line_count);
  into[6] = share(number(alphabetic), number(words));
  into[7] = number(static_cast<std::size_t>(__builtin_popcountll(stop_seen)));
}

void RuleMeasures::measure_fineweb(double* into) {
  std::size_t ended = 0, short_lines = 0;
  for (const Line& line : lines_) {
    const std::uint32_t last = points_[line.end - 1];
    if (ends_sentence(last) || closes_quotation(last) || last == ellipsis) ++ended;
    if (line.end - line.begin <= fineweb_short) ++short_lines;
  }
  const std::size_t feeds = line_ends_.size() - 1;
  into[0] = share(number(ended), number(lines_.size()));
  into[1] = share(number(repeated_lines_.characters), number(points_.size() - feeds));
  into[2] = share(number(short_lines), number(lines_.size()));
}

}  // namespace scores
