// The token stream: find the block of a token, walk its entries, copy. See megatron_kaiyuan/data/phase.py for the files.
//
// Everything is read from memory maps that the caller opened and holds. What is read is checked first: a block of
// order.bin against checks.bin and tokens.bin, the place of a sequence against the size of its .bin, each id against
// the vocabulary. Any thread and any fork may read at the same time; the only state is the set of blocks whose checksum
// was compared, and the last block that each thread walked.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../common/phase_format.h"

namespace reader {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are read as they lie in memory");

using phase_format::padding_dataset;
using phase_format::sequence_bits;
using phase_format::sequence_mask;

// What stands in the mask of a position.
constexpr std::uint8_t starts_entry = 1, is_padding = 2;

// A file is not what the format asks for. `file` is the name of a file of the phase, or the suffix of one of a corpus;
// empty for an id outside the vocabulary.
struct Damage : std::runtime_error {
  Damage(std::string where, std::int64_t of_dataset, const std::string& what)
      : std::runtime_error(what), file(std::move(where)), dataset(of_dataset) {}
  std::string file;
  std::int64_t dataset;
  std::int64_t phase = -1;
};

// One `.bin/.idx` pair, version 1. The arrays of the `.idx` are unaligned.
class Corpus {
 public:
  // Throws std::invalid_argument for an index too small for its sequences, or an unknown type of tokens.
  Corpus(const unsigned char* index, std::uint64_t index_size, const unsigned char* tokens, std::uint64_t tokens_size,
         std::uint64_t sequences, unsigned code);

  std::uint64_t sequences() const { return sequences_; }
  const unsigned char* lengths() const { return lengths_; }

  // Copy `count` tokens from `first` of a sequence, widened. Throws Damage, with the dataset's number, when they do not
  // lie in the `.bin` or when an id is not below `vocab_size`.
  void copy(std::uint64_t sequence, std::uint64_t first, std::size_t count, std::uint64_t vocab_size, std::int64_t* to,
            std::int64_t dataset) const;

 private:
  std::int32_t length(std::uint64_t sequence) const;
  std::int64_t pointer(std::uint64_t sequence) const;

  const unsigned char *lengths_, *pointers_, *tokens_;
  std::uint64_t tokens_size_, sequences_, item_size_;
  unsigned code_;
};

// The files of a phase as they are mapped; `pieces` is null where the phase is not packed.
struct PhaseFiles {
  const std::uint64_t *order, *tokens, *checks, *pieces;
  std::uint64_t entries, stride;
};

class Phase {
 public:
  Phase(const PhaseFiles& files, std::vector<std::shared_ptr<const Corpus>> corpora);

  std::uint64_t blocks() const { return blocks_; }
  std::uint64_t tokens() const { return files_.tokens[blocks_]; }

  // Compare the blocks [first, last) with checks.bin and their entries with the corpora; with `lengths` also the
  // lengths of their sequences with tokens.bin, for which the indexes are read all over. Throws Damage.
  void check(std::uint64_t first, std::uint64_t last, bool lengths) const;

  // The entry that holds a token, and the token's offset in it.
  std::pair<std::uint64_t, std::uint64_t> locate(std::uint64_t offset) const;

  // Fill tokens, and marks unless it is null, with [offset, offset + count). Throws Damage.
  void read(std::uint64_t offset, std::size_t count, std::uint64_t vocab_size, std::int64_t* tokens,
            std::uint8_t* marks) const;

 private:
  struct Block;
  // What walking needs of a corpus, side by side.
  struct View {
    const unsigned char* lengths;
    std::uint64_t sequences;
  };

  static Block& last_block();
  const Block& block_of(std::uint64_t offset) const;
  const Block& walk(std::uint64_t number, Block& block) const;
  void check_block(std::uint64_t number) const;
  std::uint64_t length(std::uint64_t entry) const;
  void prefetch(std::uint64_t entry) const;
  [[noreturn]] void refuse_entry(std::uint64_t entry, std::uint64_t known) const;
  [[noreturn]] void refuse_length(std::uint64_t dataset, std::uint64_t sequence, std::int32_t length) const;
  void read_entry(std::uint64_t entry, std::uint64_t first, std::size_t count, std::uint64_t vocab_size,
                  std::int64_t* tokens) const;
  std::uint64_t entries_in(std::uint64_t number) const;

  PhaseFiles files_;
  std::vector<std::shared_ptr<const Corpus>> corpora_;
  std::vector<View> views_;
  std::uint64_t blocks_, id_;
  mutable std::vector<std::atomic<std::uint64_t>> checked_;  // one bit a block
};

// Phases one after the other.
class Stream {
 public:
  Stream(std::vector<std::shared_ptr<const Phase>> phases, std::uint64_t vocab_size);

  // For each of n positions the `count` tokens from there: tokens[n][count], and marks[n][count] unless null.
  // Throws Damage with its phase; std::out_of_range outside the stream.
  void read(const std::int64_t* positions, std::size_t n, std::size_t count, std::int64_t* tokens,
            std::uint8_t* marks) const;

 private:
  void read_one(std::uint64_t position, std::size_t count, std::int64_t* tokens, std::uint8_t* marks) const;

  std::vector<std::shared_ptr<const Phase>> phases_;
  std::vector<std::uint64_t> starts_;  // of each phase, then the total
  std::uint64_t vocab_size_;
};

}  // namespace reader
