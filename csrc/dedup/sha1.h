// SHA-1 (FIPS 180-4) of many short strings side by side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dedup {

struct Span {
  std::size_t first, last;  // bytes of a text
};

constexpr std::size_t sha1_slack = 64;  // bytes after a text that may be read

// Of each span the first eight bytes of its digest, as a little-endian number. `text` has `sha1_slack` bytes after its
// last span. `hashes` is filled in an order of its own.
void sha1_prefixes(const std::uint8_t* text, const std::vector<Span>& spans, std::vector<std::uint64_t>& hashes);

}  // namespace dedup
