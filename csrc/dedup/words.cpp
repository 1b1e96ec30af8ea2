#include "words.h"

namespace dedup {

// Where a text is being read, and the word that is open.
struct WordReader::Reading {
  const std::uint8_t* at;
  const std::uint8_t* last;
  std::vector<std::uint64_t>& words;
  Digest& digest;
  StringHash hash = {};
  Kind open = Kind::separator;  // what the open word is made of: letters, one spaceless letter, digits

  void close() {
    if (open == Kind::separator) return;
    const std::uint64_t word = hash.take();
    digest.add(word);
    if (open != Kind::digit) words.push_back(word);
    open = Kind::separator;
  }
  void begin(Kind kind) {
    if (open == kind) return;
    close();
    open = kind;
  }
};

WordReader::WordReader(const WordRules& rules)
    : kinds_{Kind::separator, Kind::letter, Kind::spaceless, Kind::continuing,
             Kind::digit,     Kind::digit,  Kind::mark,      Kind::ignorable},
      has_fast_letters_(!rules.parts_letters),
      attributes_(attributes().data()),
      mapping_(Mapping::folding()) {
  const auto count_as = [&](Kind kind, Kind as) { kinds_[static_cast<std::size_t>(kind)] = as; };
  if (rules.joins_spaceless) count_as(Kind::spaceless, Kind::letter), count_as(Kind::continuing, Kind::letter);
  if (rules.keeps_numbers) count_as(Kind::number, Kind::letter), count_as(Kind::digit, Kind::letter);
  if (rules.parts_letters)
    for (Kind& kind : kinds_)
      if (kind == Kind::letter) kind = Kind::spaceless;
  for (std::uint8_t byte = 0; byte < 128; ++byte)
    if (attributes_[byte].kind() != Kind::separator) letters_[byte] = static_cast<std::uint8_t>(mapping_.single(byte));
}

void WordReader::read(const std::uint8_t* text, std::size_t size, std::vector<std::uint64_t>& words,
                      Digest& digest) const {
  Reading reading{text, text + size, words, digest};
  while (reading.at < reading.last)
    if (*reading.at < 0x80 && has_fast_letters_)
      read_ascii(reading);
    else
      read_other(reading, decode(reading.at, reading.last));
  reading.close();
}

// As `read_other` does, for as long as bytes are ASCII.
void WordReader::read_ascii(Reading& reading) const {
  const bool keeps_numbers = kinds_[static_cast<std::size_t>(Kind::digit)] == Kind::letter;
  const std::uint8_t* at = reading.at;
  StringHash hash = reading.hash;
  Kind open = reading.open;
  for (; at < reading.last && *at < 0x80; ++at) {
    const std::uint8_t letter = letters_[*at];
    const Kind kind = letter == 0 ? Kind::separator : letter >= 'a' || keeps_numbers ? Kind::letter : Kind::digit;
    if (kind != open) {
      if (open != Kind::separator) {
        const std::uint64_t word = hash.take();
        reading.digest.add(word);
        if (open != Kind::digit) reading.words.push_back(word);
      }
      open = kind;
    }
    if (letter != 0) hash.put(letter);
  }
  reading.at = at;
  reading.hash = hash;
  reading.open = open;
}

void WordReader::read_other(Reading& reading, std::uint32_t point) const {
  if (is_syllable(point)) return decompose_syllable(point, [&](std::uint32_t letter) { add(reading, letter); });
  // What is dropped maps to nothing: it does not end a word.
  mapping_(point, [&](std::uint32_t mapped) { add(reading, mapped); });
}

void WordReader::add(Reading& reading, std::uint32_t point) const {
  const Kind kind = kinds_[static_cast<std::size_t>(attributes_[point].kind())];
  switch (kind) {
    case Kind::letter:
    case Kind::digit:
      reading.begin(kind);
      break;
    case Kind::spaceless:
      reading.close();
      reading.open = kind;
      break;
    case Kind::continuing:
      reading.begin(Kind::spaceless);
      break;
    default:
      return reading.close();
  }
  encode(point, [&](std::uint8_t byte) { reading.hash.put(byte); });
}

}  // namespace dedup
