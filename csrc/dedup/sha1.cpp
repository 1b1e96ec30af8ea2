#include "sha1.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "vectors.h"

namespace dedup {
namespace {

constexpr std::size_t block_bytes = 64;
constexpr std::size_t classes = 16;  // of spans by their blocks; the last one has longer ones too

std::size_t blocks_of(const Span& span) { return (span.last - span.first + 8) / block_bytes + 1; }

// 64 bytes that keep what they are laid over, and 64 that clear it.
struct Masks {
  std::uint8_t bytes[2 * block_bytes];
  constexpr Masks() : bytes() {
    for (std::size_t i = 0; i < block_bytes; ++i) bytes[i] = 0xFF;
  }
};
constexpr Masks masks;

// Block `number` of a padded message: its bytes, a one bit, zeros, and in the last block its length in bits.
KAIYUAN_INLINE void fill_block(const std::uint8_t* text, const Span& span, std::size_t number, std::uint8_t* block) {
  const std::size_t size = span.last - span.first, offset = number * block_bytes;
  const std::size_t here = offset < size ? std::min(size - offset, block_bytes) : 0;
  const std::uint8_t *from = text + span.first + (here ? offset : 0), *mask = masks.bytes + block_bytes - here;
  for (std::size_t i = 0; i < block_bytes; ++i) block[i] = from[i] & mask[i];
  if (size >= offset && size < offset + block_bytes) block[size - offset] = 0x80;
  if (number + 1 < blocks_of(span)) return;
  const std::uint64_t bits = __builtin_bswap64(std::uint64_t{size} * 8);
  std::memcpy(block + 56, &bits, sizeof bits);
}

template <typename Vector>
struct State {
  Vector a, b, c, d, e;
};

// Vectors are never passed by value: how they would be depends on the instruction set.
#define ROTATE(x, bits) ((x) << (bits) | (x) >> (32 - (bits)))

template <int First, typename Vector>
KAIYUAN_INLINE void twenty_rounds(State<Vector>& s, Vector* words, std::uint32_t constant) {
#pragma GCC unroll 20
  for (int t = First; t < First + 20; ++t) {
    Vector& word = words[t & 15];
    if (t >= 16) {
      const Vector mixed = words[(t - 3) & 15] ^ words[(t - 8) & 15] ^ words[(t - 14) & 15] ^ word;
      word = ROTATE(mixed, 1);
    }
    Vector chosen;
    if constexpr (First == 0)
      chosen = s.d ^ (s.b & (s.c ^ s.d));
    else if constexpr (First == 40)
      chosen = (s.b & s.c) | (s.d & (s.b | s.c));
    else
      chosen = s.b ^ s.c ^ s.d;
    const Vector next = ROTATE(s.a, 5) + chosen + s.e + constant + word;
    s.e = s.d;
    s.d = s.c;
    s.c = ROTATE(s.b, 30);
    s.b = s.a;
    s.a = next;
  }
}

template <typename Vector>
KAIYUAN_INLINE void compress(State<Vector>& state, Vector* words) {
  State<Vector> s = state;
  twenty_rounds<0>(s, words, 0x5A827999);
  twenty_rounds<20>(s, words, 0x6ED9EBA1);
  twenty_rounds<40>(s, words, 0x8F1BBCDC);
  twenty_rounds<60>(s, words, 0xCA62C1D6);
  state.a += s.a;
  state.b += s.b;
  state.c += s.c;
  state.d += s.d;
  state.e += s.e;
}

// Up to `Lanes` spans, whose numbers of blocks do not fall.
template <int Lanes>
KAIYUAN_INLINE void hash_lanes(const std::uint8_t* text, const Span* spans, std::size_t count, std::uint64_t* hashes) {
  using Vector = typename Side<std::uint32_t, Lanes>::type;
  State<Vector> state = {Vector{} + 0x67452301u, Vector{} + 0xEFCDAB89u, Vector{} + 0x98BADCFEu, Vector{} + 0x10325476u,
                         Vector{} + 0xC3D2E1F0u};
  std::size_t finished = 0;
  for (std::size_t block = 0; finished < count; ++block) {
    alignas(64) std::uint32_t words[16][Lanes] = {};
    for (std::size_t lane = finished; lane < count; ++lane) {
      std::uint32_t own[16];
      fill_block(text, spans[lane], block, reinterpret_cast<std::uint8_t*>(own));
      for (int w = 0; w < 16; ++w) words[w][lane] = __builtin_bswap32(own[w]);
    }
    Vector transposed[16];
    std::memcpy(transposed, words, sizeof words);
    compress<Vector>(state, transposed);
    for (; finished < count && blocks_of(spans[finished]) == block + 1; ++finished)
      hashes[finished] =
          __builtin_bswap32(state.a[finished]) | std::uint64_t{__builtin_bswap32(state.b[finished])} << 32;
  }
}

template <int Lanes>
KAIYUAN_INLINE void hash_all(const std::uint8_t* text, const std::vector<Span>& spans, std::uint64_t* hashes) {
  for (std::size_t i = 0; i < spans.size(); i += Lanes)
    hash_lanes<Lanes>(text, spans.data() + i, std::min<std::size_t>(Lanes, spans.size() - i), hashes + i);
}

void hash_baseline(const std::uint8_t* text, const std::vector<Span>& spans, std::uint64_t* hashes) {
  hash_all<4>(text, spans, hashes);
}
#ifdef KAIYUAN_X86
KAIYUAN_AVX2 void hash_avx2(const std::uint8_t* text, const std::vector<Span>& spans, std::uint64_t* hashes) {
  hash_all<8>(text, spans, hashes);
}
KAIYUAN_AVX512 void hash_avx512(const std::uint8_t* text, const std::vector<Span>& spans, std::uint64_t* hashes) {
  hash_all<16>(text, spans, hashes);
}
#endif

// Shorter ones first: lanes of as many blocks as possible run together.
std::vector<Span> by_blocks(const std::vector<Span>& spans) {
  std::array<std::size_t, classes + 1> starts{};
  const auto class_of = [](const Span& span) { return std::min(blocks_of(span), classes) - 1; };
  for (const Span& span : spans) ++starts[class_of(span) + 1];
  for (std::size_t i = 0; i < classes; ++i) starts[i + 1] += starts[i];
  const std::size_t first_long = starts[classes - 1];
  std::vector<Span> sorted(spans.size());
  for (const Span& span : spans) sorted[starts[class_of(span)]++] = span;
  std::sort(sorted.begin() + static_cast<std::ptrdiff_t>(first_long), sorted.end(),
            [](const Span& a, const Span& b) { return blocks_of(a) < blocks_of(b); });
  return sorted;
}

}  // namespace

void sha1_prefixes(const std::uint8_t* text, const std::vector<Span>& spans, std::vector<std::uint64_t>& hashes) {
  const std::vector<Span> sorted = by_blocks(spans);
  hashes.resize(spans.size());
#ifdef KAIYUAN_X86
  if (vectors() == Vectors::avx512) return hash_avx512(text, sorted, hashes.data());
  if (vectors() == Vectors::avx2) return hash_avx2(text, sorted, hashes.data());
#endif
  hash_baseline(text, sorted, hashes.data());
}

}  // namespace dedup
