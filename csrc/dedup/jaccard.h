// The exact Jaccard index of shingle sets.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dedup {

// similarity[i] of the sets pairs[2 i] and pairs[2 i + 1]; set s is hashes[offsets[s] .. offsets[s + 1]), ascending and
// distinct. Two empty sets have 0. Throws std::invalid_argument for a set that does not exist.
void jaccard(const std::int64_t* pairs, std::size_t count, const std::int64_t* offsets, std::size_t sets,
             const std::uint64_t* hashes, std::size_t total, double* similarity);

}  // namespace dedup
