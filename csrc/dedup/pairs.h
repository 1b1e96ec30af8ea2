// Candidate pairs: documents that share the key of a band.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "run_merge.h"

namespace dedup {

// Ordinals of two documents, the smaller first. A file of pairs is an array of these.
struct Pair {
  std::uint64_t a, b;
};

struct Groups {
  std::uint64_t pairs = 0, groups = 0, largest = 0;  // groups: of two members or more
};

// Members of groups of up to 64 are paired all with all; in a larger group each is paired with the first 32 and with the
// 32 before it, so that a group of any size is one connected component at 64 pairs a member.
Groups group_pairs(const std::vector<Run>& runs, const std::string& output, std::uint64_t memory);

// The pairs of all files, ascending, each once; returns how many. What `memory` bytes do not hold waits in a file at
// `scratch`, whose name is gone at once.
std::uint64_t unique_pairs(const std::vector<std::string>& inputs, const std::string& output, const std::string& scratch,
                           std::uint64_t memory);

}  // namespace dedup
