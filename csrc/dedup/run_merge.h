// Sorted runs of one band, from many files, as one stream.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/index_file.h"

namespace dedup {

// At `offset` of the file: `count` keys of 8 bytes, ascending, then as many rows of 4 bytes. A row's document is
// `first_ordinal` + row.
struct Run {
  std::string path;
  std::uint64_t offset, count, first_ordinal;
};

// Reads runs a piece at a time, in the order of (key, ordinal). The file is open only while a piece is read: there may be
// more runs than files that a process may have open.
class RunMerge {
 public:
  // `memory`: bytes for the pieces of all runs together, though each holds one entry at least.
  RunMerge(const std::vector<Run>& runs, std::uint64_t memory);

  // Calls visit(key, ordinal) for every entry. Throws std::invalid_argument where a run is not sorted.
  template <typename Visit>
  void operator()(const Visit& visit) {
    std::priority_queue<Head, std::vector<Head>, std::greater<>> heads;
    for (std::size_t i = 0; i < readers_.size(); ++i)
      if (readers_[i].fill()) heads.push(readers_[i].head(i));
    while (!heads.empty()) {
      const Head head = heads.top();
      heads.pop();
      Reader& reader = readers_[head.reader];
      // Entries that come before those of all other runs need no queue.
      for (Head next = head;;) {
        visit(next.key, next.ordinal);
        if (!reader.advance()) break;
        next = reader.head(head.reader);
        if (heads.empty() || !(next > heads.top())) continue;
        heads.push(next);
        break;
      }
    }
  }

 private:
  struct Head {
    std::uint64_t key, ordinal;
    std::size_t reader;
    bool operator>(const Head& other) const {
      return key != other.key ? key > other.key : ordinal > other.ordinal;
    }
  };
  class Reader {
   public:
    Reader(const Run& run, std::size_t piece) : run_(run), piece_(piece) {}
    bool fill();     // the next piece; false at the end
    bool advance();  // to the next entry
    Head head(std::size_t number) const { return {keys_[at_], run_.first_ordinal + rows_[at_], number}; }

   private:
    Run run_;
    std::size_t piece_, at_ = 0;
    std::uint64_t read_ = 0;
    std::vector<std::uint64_t> keys_;
    std::vector<std::uint32_t> rows_;
  };

  std::vector<Reader> readers_;
};

}  // namespace dedup
