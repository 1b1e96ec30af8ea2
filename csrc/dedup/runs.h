// Bands of signatures as keys, and sorted runs of keys.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dedup {

// keys[band * count + i]: a hash of the `rows` numbers of band `band` of signature i, of `permutations` numbers. Throws
// std::invalid_argument where a signature has fewer numbers than the bands need.
template <typename Number>
void band_keys(const Number* signatures, std::size_t count, std::size_t permutations, std::size_t bands,
               std::size_t rows, std::uint64_t* keys);

// Sorts both by (key, row), in one thread, in place. It holds 16 bytes an entry beside them.
void sort_run(std::uint64_t* keys, std::uint32_t* rows, std::size_t count);

extern template void band_keys(const std::uint32_t*, std::size_t, std::size_t, std::size_t, std::size_t, std::uint64_t*);
extern template void band_keys(const std::uint64_t*, std::size_t, std::size_t, std::size_t, std::size_t, std::uint64_t*);

}  // namespace dedup
