// The files of a phase, written by threads that each have a part of its entries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "../common/index_file.h"
#include "../common/phase_format.h"
#include "interleave.h"

namespace curriculum {

using phase_format::block_entries;

// order.bin, tokens.bin and checks.bin, each written where its part belongs.
class Output {
 public:
  Output(const std::string& folder, std::uint64_t entries, std::uint64_t tokens, std::size_t datasets,
         std::uint64_t buckets);

  // When all entries are written. Returns the profile.
  Profile finish();

 private:
  friend class PartWriter;

  void check_blocks_between_parts();

  std::uint64_t entries_, total_tokens_;
  corpus_index::File order_, tokens_, checks_;
  std::mutex mutex_;
  std::vector<std::uint64_t> split_blocks_;  // blocks that begin in one part and end in another
  Profile profile_;
};

// Writes entries [first, ...) of the order; `tokens_before` come before them.
class PartWriter {
 public:
  PartWriter(Output& output, std::size_t datasets, std::uint64_t first, std::uint64_t tokens_before);

  void add(std::uint32_t dataset, const Entry& entry) {
    if (entry_ % block_entries == 0) block_tokens_.push_back(token_);
    const std::uint64_t doubled = entry.percentile() == unscored ? 0 : 2 * std::uint64_t{entry.percentile()} + 1;
    std::uint64_t left = entry.tokens();
    for (; left > bucket_end_ - token_; next_bucket()) {
      const std::uint64_t here = bucket_end_ - token_;
      count(cells_[dataset], here, doubled);
      left -= here;
    }
    count(cells_[dataset], left, doubled);
    words_[held_++] = std::uint64_t{dataset} << sequence_bits | entry.sequence();
    ++entry_;
    if (held_ == words_.size()) flush();
  }
  void finish();

 private:
  struct Cell {
    std::uint64_t tokens, quality;
  };

  void count(Cell& cell, std::uint64_t tokens, std::uint64_t doubled_percentile) {
    cell.tokens += tokens;
    cell.quality += tokens * doubled_percentile;
    token_ += tokens;
  }
  void next_bucket();
  void add_cells();
  void flush();

  Output& output_;
  std::uint64_t entry_, token_;
  std::uint64_t bucket_ = 0, bucket_end_;  // token_ <= bucket_end_
  std::vector<Cell> cells_;  // of the current bucket
  std::vector<std::uint64_t> words_;
  std::size_t held_ = 0;
  std::vector<std::uint64_t> block_tokens_;  // before each block that begins among them
  std::vector<std::uint64_t> checks_;        // of each block that is whole among them
};

// The fold of one block's words: h = mix(h ^ word), from mix(number of the block).
std::uint64_t block_check(std::uint64_t block, const std::uint64_t* words, std::size_t count);

}  // namespace curriculum
