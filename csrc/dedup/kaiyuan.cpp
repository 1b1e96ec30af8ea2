#include "kaiyuan.h"

#include <algorithm>
#include <array>

#include "unicode.h"

namespace dedup {
namespace {

constexpr std::size_t least_words = 5;
constexpr std::uint32_t capital_sigma = 0x3A3, small_sigma = 0x3C3, final_sigma = 0x3C2;

// Beyond ASCII, where every sign is punctuation but the tabulator and the line feed, which are white space anyway.
constexpr char32_t punctuation[] =
    U"—”：％１〈（、━【「」，】；“《„’∶´．–？！：～«〉》）。…►»•";

bool is_number_separator(std::uint32_t point) {
  switch (point) {
    case '.': case ',': case 0x60C: case 0x66B: case 0x2396: case 0x2397: case 0x2398:
      return true;
    default:
      return false;
  }
}

// What the text's own characters are before NFD.
enum class Role : std::uint8_t { other, space, digit, sigma };

std::vector<Role> make_roles() {
  std::vector<Role> roles(code_points, Role::other);
  for (std::uint32_t point = 0; point < code_points; ++point) {
    const Attributes own = attributes()[point];
    const bool is_ascii_sign = point < 0x80 && own.kind() == Kind::separator;
    if (own.is_white_space() || is_ascii_sign || (point >= 0x7F && point < 0xA0)) roles[point] = Role::space;
    if (own.kind() == Kind::digit) roles[point] = Role::digit;
  }
  for (const char32_t* sign = punctuation; *sign != 0; ++sign)
    if (roles[*sign] != Role::digit) roles[*sign] = Role::space;  // numbers are replaced first
  roles[capital_sigma] = Role::sigma;
  return roles;
}

class Normaliser {
 public:
  Normaliser(const std::uint8_t* text, std::size_t size, std::vector<std::uint8_t>& normalised,
             std::vector<std::size_t>& spaces)
      : first_(text), at_(text), last_(text + size), out_(normalised), spaces_(spaces) {}

  void run() {
    out_.clear();
    spaces_.clear();
    out_.reserve(static_cast<std::size_t>(last_ - first_) + sha1_slack);
    while (at_ < last_) {
      if (*at_ < 0x80 && read_ascii_letters()) continue;
      const std::uint8_t* begin = at_;
      read(begin, decode(at_, last_));
    }
    out_.resize(visible_);
    while (!spaces_.empty() && spaces_.back() >= visible_) spaces_.pop_back();
  }

 private:
  bool read_ascii_letters() {
    const std::uint8_t* begin = at_;
    for (; at_ < last_ && static_cast<std::uint8_t>((*at_ | 0x20) - 'a') < 26; ++at_) out_.push_back(*at_ | 0x20);
    if (at_ == begin) return false;
    show();
    return true;
  }

  void read(const std::uint8_t* begin, std::uint32_t point) {
    switch (roles_[point]) {
      case Role::space:
        return space();
      case Role::digit:
        skip_number();
        out_.push_back('0');
        return show();
      case Role::sigma:
        return put(is_final_sigma(begin) ? final_sigma : small_sigma);
      case Role::other:
        break;
    }
    if (is_syllable(point)) return decompose_syllable(point, [&](std::uint32_t letter) { put(letter); });
    after_space_ = false;
    mapping_(point, [&](std::uint32_t mapped) { put(mapped); });
  }

  // White space is collapsed before marks are dropped: two spaces stay where a mark stood alone between them.
  void space() {
    if (!after_space_ && !out_.empty()) put_space();
    after_space_ = true;
  }
  void put_space() {
    spaces_.push_back(out_.size());
    out_.push_back(' ');
  }

  void put(std::uint32_t point) {
    if (attributes_[point].is_word())
      encode(point, [&](std::uint8_t byte) { out_.push_back(byte); });
    else
      put_space();
    show();
  }

  // What was put last is not white space: what follows it may still be stripped.
  void show() {
    visible_ = out_.size();
    after_space_ = false;
  }

  // After a first digit: the others, and a fraction.
  void skip_number() {
    skip_digits();
    const std::uint8_t* next = at_;
    if (next == last_ || !is_number_separator(decode(next, last_)) || next == last_) return;
    const std::uint8_t* after = next;
    if (roles_[decode(after, last_)] != Role::digit) return;
    at_ = next;
    skip_digits();
  }
  void skip_digits() {
    for (const std::uint8_t* next = at_; next < last_; at_ = next)
      if (roles_[decode(next, last_)] != Role::digit) return;
  }

  // Unicode's Final_Sigma: after a cased letter and not before one, whatever is Case_Ignorable between.
  bool is_final_sigma(const std::uint8_t* begin) const {
    for (const std::uint8_t* next = at_; next < last_;) {
      const Attributes own = attributes_[decode(next, last_)];
      if (own.is_ignored_in_casing()) continue;
      if (own.is_cased()) return false;
      break;
    }
    while (begin > first_) {
      do --begin;
      while (begin > first_ && (*begin & 0xC0) == 0x80);
      const std::uint8_t* next = begin;
      const Attributes own = attributes_[decode(next, last_)];
      if (!own.is_ignored_in_casing()) return own.is_cased();
    }
    return false;
  }

  const std::uint8_t *first_, *at_, *last_;
  std::vector<std::uint8_t>& out_;
  std::vector<std::size_t>& spaces_;
  std::size_t visible_ = 0;  // bytes up to the last character that is not white space
  bool after_space_ = false;
  const Attributes* attributes_ = attributes().data();
  const Mapping& mapping_ = Mapping::lowering();
  const Role* roles_ = roles().data();

  static const std::vector<Role>& roles() {
    static const std::vector<Role> all = make_roles();
    return all;
  }
};

}  // namespace

void KaiyuanReader::read(const std::uint8_t* text, std::size_t size, unsigned ngram) {
  Normaliser(text, size, normalised_, spaces_).run();
  const std::size_t words = spaces_.size() + 1, length = std::min<std::size_t>(ngram, words);
  shingles_.clear();
  if (words >= least_words) {
    spaces_.push_back(normalised_.size());
    for (std::size_t word = 0; word + length <= words; ++word)
      shingles_.push_back({word == 0 ? 0 : spaces_[word - 1] + 1, spaces_[word + length - 1]});
  }
  normalised_.resize(normalised_.size() + sha1_slack);
}

}  // namespace dedup
