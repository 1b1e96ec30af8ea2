#include "minima.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "vectors.h"

namespace dedup {
namespace {

constexpr std::size_t padding = 64;  // permutations of the widest loop
constexpr std::uint64_t mersenne = (std::uint64_t{1} << 61) - 1;

template <typename Number>
struct Loop {
  const Number* hashes;
  std::size_t count;
  const Number *multipliers, *increments;
  Number* minima;
  std::size_t permutations;
};

// Four vectors of permutations at a time stay in registers while all hashes pass.
template <int Lanes>
KAIYUAN_INLINE void minima32(const Loop<std::uint32_t>& loop) {
  using Vector = typename Side<std::uint32_t, Lanes>::type;
  for (std::size_t p = 0; p < loop.permutations; p += 4 * Lanes) {
    Vector a[4], b[4], least[4];
    std::memcpy(a, loop.multipliers + p, sizeof a);
    std::memcpy(b, loop.increments + p, sizeof b);
    std::memset(least, 0xFF, sizeof least);
    for (std::size_t i = 0; i < loop.count; ++i) {
      const std::uint32_t hash = loop.hashes[i];
      for (int v = 0; v < 4; ++v) {
        const Vector permuted = a[v] * hash + b[v];
        least[v] = permuted < least[v] ? permuted : least[v];
      }
    }
    std::memcpy(loop.minima + p, least, sizeof least);
  }
}

// The least remainder modulo m = 2^61 - 1. x is congruent to s = (x mod 2^61) + (x div 2^61), which is at most m + 7; its
// remainder is s, or s - m where that is not negative. So remainders are in the order of s - m as an unsigned number, and
// so are signed numbers 2^63 away from that, which AVX2 can compare.
template <int Lanes>
KAIYUAN_INLINE void minima64(const Loop<std::uint64_t>& loop) {
  using Vector = typename Side<std::uint64_t, Lanes>::type;
  using Signed = typename Side<std::int64_t, Lanes>::type;
  constexpr std::uint64_t shift = (std::uint64_t{1} << 63) - mersenne;
  for (std::size_t p = 0; p < loop.permutations; p += 4 * Lanes) {
    Vector a[4], b[4];
    Signed least[4];
    std::memcpy(a, loop.multipliers + p, sizeof a);
    std::memcpy(b, loop.increments + p, sizeof b);
    for (Signed& each : least) each = Signed{} + INT64_MAX;
    for (std::size_t i = 0; i < loop.count; ++i) {
      const std::uint64_t hash = loop.hashes[i];
      for (int v = 0; v < 4; ++v) {
        const Vector permuted = a[v] * hash + b[v];
        const Signed shifted = reinterpret_cast<Signed>((permuted & mersenne) + (permuted >> 61) + shift);
        least[v] = shifted < least[v] ? shifted : least[v];
      }
    }
    std::memcpy(loop.minima + p, least, sizeof least);
  }
  for (std::size_t p = 0; p < loop.permutations; ++p) {
    const std::uint64_t sum = loop.minima[p] - shift;
    loop.minima[p] = sum >= mersenne ? sum - mersenne : sum;
  }
}

void run_baseline(const Loop<std::uint32_t>& loop) { minima32<4>(loop); }
void run_baseline(const Loop<std::uint64_t>& loop) { minima64<2>(loop); }
#ifdef KAIYUAN_X86
KAIYUAN_AVX2 void run_avx2(const Loop<std::uint32_t>& loop) { minima32<8>(loop); }
KAIYUAN_AVX2 void run_avx2(const Loop<std::uint64_t>& loop) { minima64<4>(loop); }
KAIYUAN_AVX512 void run_avx512(const Loop<std::uint32_t>& loop) { minima32<16>(loop); }
KAIYUAN_AVX512 void run_avx512(const Loop<std::uint64_t>& loop) { minima64<8>(loop); }
#endif

template <typename Number>
void run(const Loop<Number>& loop) {
#ifdef KAIYUAN_X86
  if (vectors() == Vectors::avx512) return run_avx512(loop);
  if (vectors() == Vectors::avx2) return run_avx2(loop);
#endif
  run_baseline(loop);
}

}  // namespace

template <typename Number>
Permutations<Number>::Permutations(const std::vector<Number>& multipliers, const std::vector<Number>& increments)
    : size_(multipliers.size()), multipliers_(multipliers), increments_(increments) {
  if (increments.size() != size_) throw std::invalid_argument("as many increments as multipliers are needed");
  const std::size_t padded = (size_ + padding - 1) / padding * padding;
  multipliers_.resize(padded);
  increments_.resize(padded);
}

template <typename Number>
void Permutations<Number>::operator()(const std::vector<Number>& hashes, Number* minima) const {
  if (hashes.empty()) return std::fill_n(minima, size_, ~Number{0}), void();
  std::vector<Number> padded(multipliers_.size());
  run<Number>({hashes.data(), hashes.size(), multipliers_.data(), increments_.data(), padded.data(), padded.size()});
  std::copy_n(padded.begin(), size_, minima);
}

template class Permutations<std::uint32_t>;
template class Permutations<std::uint64_t>;

}  // namespace dedup
