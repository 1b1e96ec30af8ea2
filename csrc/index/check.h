// Is an `.idx` what the format asks for, and does it fit its `.bin`?
#pragma once

#include <cstdint>
#include <string>

#include "../common/index_format.h"

namespace corpus_index {

struct Summary {
  Header header;
  std::uint64_t tokens;   // the lengths' sum
  bool contiguous;        // sequences lie one after another from byte 0 to the end of the `.bin`, as a writer puts them
};

// Header and size of the file, nothing more. Throws FormatError or FileError.
Header check_header(const std::string& path);

// Every length, pointer and document index: in range, on a token's boundary, rising from 0 to S. An index may repeat
// and permute pointers; `contiguous` says which. Memory is a few megabytes a thread. Throws FormatError naming the first
// sequence or document that is wrong, whatever the number of threads.
Summary check_index(const std::string& path, std::uint64_t bin_size, unsigned threads);

}  // namespace corpus_index
