// Joining the `.idx` of corpora whose `.bin` files are joined one after another.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../common/index_format.h"

namespace corpus_index {

struct Part {
  std::string path;        // an `.idx` that check_index has passed
  std::uint64_t bin_size;  // bytes of its `.bin`
};

// The header of the joined index, from those of its parts. Throws FormatError when there is no part, when dtype codes
// differ, a part has no document index, or the counts or the tokens pass 2^63 - 1 bytes.
Header joined(const std::vector<Header>& parts, const std::vector<std::uint64_t>& bin_sizes);

// Write the joined index: lengths as they are, pointers moved by the `.bin` bytes and document indices by the sequences
// of the parts before, the parts' leading 0 but the first left out. Where the parts are contiguous these are the bytes
// that one writer would give for all documents. Reads and writes pieces; memory is a few megabytes a thread.
Header merge_indexes(const std::string& output, const std::vector<Part>& parts, unsigned threads);

}  // namespace corpus_index
