#include "vectors.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

namespace dedup {
namespace {

const char* const names[] = {"baseline", "avx2", "avx512"};

Vectors widest() {
#ifdef KAIYUAN_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Vectors::avx512;
  if (__builtin_cpu_supports("avx2")) return Vectors::avx2;
#endif
  return Vectors::baseline;
}

std::atomic<Vectors>& chosen() {
  static std::atomic<Vectors> own{widest()};
  return own;
}

}  // namespace

Vectors vectors() { return chosen(); }

std::vector<std::string> vector_names() { return {names, names + static_cast<int>(widest()) + 1}; }

void use_vectors(const std::string& name) {
  const std::vector<std::string> known = vector_names();
  const auto found = std::find(known.begin(), known.end(), name);
  if (found == known.end()) throw std::invalid_argument("this processor has no " + name);
  chosen() = static_cast<Vectors>(found - known.begin());
}

}  // namespace dedup
