// Which vector instructions a loop is compiled for, and which of these run here. The results are the same bits.
//
// A loop is written once, as an inline template over the number of lanes, with the compiler's vectors; functions that are
// compiled for one instruction set each call it. On other processors than x86-64 there is the baseline alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#define KAIYUAN_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__)
#define KAIYUAN_X86 1
#define KAIYUAN_AVX2 __attribute__((target("avx2")))
#define KAIYUAN_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#endif

namespace dedup {

enum class Vectors { baseline, avx2, avx512 };

// The widest that this processor has, unless `use_vectors` has set another.
Vectors vectors();
// Their names, narrowest first: those that this processor has.
std::vector<std::string> vector_names();
// Throws std::invalid_argument for a name that is not among them. For tests.
void use_vectors(const std::string& name);

// `Lanes` numbers of one kind side by side.
template <typename Number, int Lanes>
struct Side {
  typedef Number type __attribute__((vector_size(sizeof(Number) * Lanes)));
};

}  // namespace dedup
