// Tokens of one sequence, from any type that Megatron writes.
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../common/index_format.h"
#include "reader.h"

namespace reader {

namespace {

#if defined(__GNUC__)
#define ALWAYS_INLINE __attribute__((always_inline)) inline
#else
#define ALWAYS_INLINE inline
#endif

// Copy and widen; true when each id is below the vocabulary's size. A negative id is a huge one.
template <typename Token>
ALWAYS_INLINE bool widen(const unsigned char* from, std::size_t count, std::uint64_t vocab_size, std::int64_t* to) {
  using Unsigned = std::make_unsigned_t<Token>;
  constexpr std::uint64_t largest = std::numeric_limits<Token>::max();
  const auto limit = static_cast<Unsigned>(vocab_size - 1 < largest ? vocab_size - 1 : largest);
  // A maximum, not a flag: compilers make vector instructions of it.
  Unsigned worst = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Token token;
    std::memcpy(&token, from + i * sizeof(Token), sizeof(Token));
    worst = std::max(worst, static_cast<Unsigned>(token));
    to[i] = token;
  }
  return worst <= limit && (vocab_size > 0 || count == 0);
}

ALWAYS_INLINE bool widen_any(unsigned code, const unsigned char* from, std::size_t count, std::uint64_t vocab_size, std::int64_t* to) {
  switch (code) {
    case 1: return widen<std::uint8_t>(from, count, vocab_size, to);
    case 2: return widen<std::int8_t>(from, count, vocab_size, to);
    case 3: return widen<std::int16_t>(from, count, vocab_size, to);
    case 4: return widen<std::int32_t>(from, count, vocab_size, to);
    case 5: return widen<std::int64_t>(from, count, vocab_size, to);
    default: return widen<std::uint16_t>(from, count, vocab_size, to);
  }
}

bool widen_here(unsigned code, const unsigned char* from, std::size_t count, std::uint64_t vocab_size,
                std::int64_t* to) {
  return widen_any(code, from, count, vocab_size, to);
}

#if defined(__GNUC__) && defined(__x86_64__)
// Wheels are built for the oldest x86-64; nearly every machine has more.
__attribute__((target("avx2"))) bool widen_avx2(unsigned code, const unsigned char* from, std::size_t count,
                                                std::uint64_t vocab_size, std::int64_t* to) {
  return widen_any(code, from, count, vocab_size, to);
}
const auto widen_tokens = __builtin_cpu_supports("avx2") ? widen_avx2 : widen_here;
#else
const auto widen_tokens = widen_here;
#endif

}  // namespace

Corpus::Corpus(const unsigned char* index, std::uint64_t index_size, const unsigned char* tokens,
               std::uint64_t tokens_size, std::uint64_t sequences, unsigned code)
    : tokens_(tokens), tokens_size_(tokens_size), sequences_(sequences), code_(code) {
  const auto at = corpus_index::layout({static_cast<std::uint8_t>(code), sequences, 0});
  if (code > 255 || index_size < at.documents) throw std::invalid_argument("index too small for its sequences");
  item_size_ = corpus_index::item_size(static_cast<std::uint8_t>(code));
  lengths_ = index + at.lengths;
  pointers_ = index + at.pointers;
}

std::int32_t Corpus::length(std::uint64_t sequence) const {
  std::int32_t value;
  std::memcpy(&value, lengths_ + 4 * sequence, 4);
  return value;
}

std::int64_t Corpus::pointer(std::uint64_t sequence) const {
  std::int64_t value;
  std::memcpy(&value, pointers_ + 8 * sequence, 8);
  return value;
}

void Corpus::copy(std::uint64_t sequence, std::uint64_t first, std::size_t count, std::uint64_t vocab_size,
                  std::int64_t* to, std::int64_t dataset) const {
  const std::int64_t start = pointer(sequence);
  const std::int32_t all = length(sequence);
  const auto size = static_cast<std::uint64_t>(all) * item_size_;
  const std::string name = "sequence " + std::to_string(sequence);
  if (all < 0 || start < 0 || static_cast<std::uint64_t>(start) % item_size_ != 0)
    throw Damage(".idx", dataset,
                 name + " has length " + std::to_string(all) + " and pointer " + std::to_string(start) +
                     ", which is impossible");
  if (size > tokens_size_ || static_cast<std::uint64_t>(start) > tokens_size_ - size)
    throw Damage(".bin", dataset,
                 "truncated or of another corpus: has " + std::to_string(tokens_size_) + " bytes, but " + name +
                     " of its .idx holds " + std::to_string(size) + " bytes from " + std::to_string(start));
  if (first > static_cast<std::uint64_t>(all) || count > static_cast<std::uint64_t>(all) - first)
    throw Damage(".idx", dataset,
                 name + " has " + std::to_string(all) + " tokens, but token " + std::to_string(first + count - 1) +
                     " of it is in the order");
  const unsigned char* from = tokens_ + start + first * item_size_;
  if (widen_tokens(code_, from, count, vocab_size, to)) return;
  std::size_t i = 0;
  while (static_cast<std::uint64_t>(to[i]) < vocab_size) ++i;
  throw Damage("", dataset, name + " holds token id " + std::to_string(to[i]));
}

}  // namespace reader
