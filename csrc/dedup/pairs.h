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

// Which pairs of a group's members are written.
//   all: groups of up to 64 all with all; in a larger group each with the first 32 and with the 32 before it, so that a
//     group of any size is one connected component at 64 pairs a member.
//   stars: each with the first.
enum class Pairing { all, stars };

// Documents and pairs that are left out.
struct Omitted {
  std::vector<std::uint8_t> documents;  // bit i & 7 of byte i >> 3: document i is a member of no group; empty: none
  std::uint64_t earlier = 0;            // pairs of two documents below this ordinal
};

Groups group_pairs(const std::vector<Run>& runs, const std::string& output, std::uint64_t memory, Pairing pairing,
                   const Omitted& omitted);

// The pairs of all files, ascending, each once; returns how many. What `memory` bytes do not hold waits in a file at
// `scratch`, whose name is gone at once.
std::uint64_t unique_pairs(const std::vector<std::string>& inputs, const std::string& output, const std::string& scratch,
                           std::uint64_t memory);

}  // namespace dedup
