// UTF-8, read and written a code point at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dedup {

constexpr std::uint32_t code_points = 0x110000;
constexpr std::uint32_t not_a_character = 0xFFFF;  // what a byte that is not UTF-8 is read as: a separator

// The code point at `at`, which is before `last`, and moves past it; never reads at or past `last`.
inline std::uint32_t decode(const std::uint8_t*& at, const std::uint8_t* last) {
  const std::uint32_t lead = *at++;
  if (lead < 0x80) return lead;
  const unsigned more = lead < 0xC2 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : lead < 0xF5 ? 3 : 0;
  if (more == 0 || last - at < static_cast<std::ptrdiff_t>(more)) return not_a_character;
  std::uint32_t point = lead & (0x3Fu >> more);
  for (unsigned i = 0; i < more; ++i) {
    if ((at[i] & 0xC0) != 0x80) return not_a_character;
    point = point << 6 | (at[i] & 0x3Fu);
  }
  at += more;
  return point < code_points ? point : not_a_character;
}

// Calls put(byte) for each byte of a code point.
template <typename Put>
inline void encode(std::uint32_t point, const Put& put) {
  if (point < 0x80) return put(static_cast<std::uint8_t>(point));
  if (point < 0x800) {
    put(static_cast<std::uint8_t>(0xC0 | point >> 6));
  } else {
    if (point < 0x10000) {
      put(static_cast<std::uint8_t>(0xE0 | point >> 12));
    } else {
      put(static_cast<std::uint8_t>(0xF0 | point >> 18));
      put(static_cast<std::uint8_t>(0x80 | (point >> 12 & 0x3F)));
    }
    put(static_cast<std::uint8_t>(0x80 | (point >> 6 & 0x3F)));
  }
  put(static_cast<std::uint8_t>(0x80 | (point & 0x3F)));
}

}  // namespace dedup
