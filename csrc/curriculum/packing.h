// Best-fit packing: whole documents in packs of one length, as an alternative to cutting the stream anywhere.
//
// After "Fewer Truncations Improve Language Modeling" (Ding et al., arXiv 2404.10830), which packs by best fit
// decreasing over the whole corpus and so loses any order. Here the order of the phase is kept up to a window:
//
//   A pack begins with the oldest piece that waits, and is filled with the longest waiting piece that still fits, the
//   oldest of that length, until none does. The rest is padding. Inside a pack, pieces stand in their old order.
//
// A piece waits from the moment that fewer than `window` packs of tokens lie between it and the oldest waiting one, so
// that a piece only ever overtakes pieces less than `window` packs of tokens before it. A document of more than one
// pack is cut into whole packs and a rest; each is a piece of its own. The result is a function of the documents and
// their order alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "../common/phase_format.h"

namespace curriculum {

using phase_format::padding_entry;

struct Piece {
  std::uint64_t entry;  // dataset << 48 | sequence, or padding_entry
  std::uint32_t first;  // its first token in the sequence
  std::uint32_t tokens;
};

// A set of numbers from 0 to `largest`, which finds the largest member up to a limit in a few steps.
class LengthSet {
 public:
  explicit LengthSet(std::uint32_t largest);
  void insert(std::uint32_t length);
  void erase(std::uint32_t length);
  std::uint32_t largest_up_to(std::uint32_t limit) const;  // 0 when there is none

 private:
  std::vector<std::vector<std::uint64_t>> levels_;  // a bit says that a word of the level before it is not 0
};

// Takes documents in the order of the phase and gives packs as soon as they are certain.
//
// Holds the pieces of `window` packs: 32 bytes a piece, and 16 bytes for each length.
class Packer {
 public:
  // Throws std::invalid_argument for a length of 0 or above 2^26, or a window of 0.
  Packer(std::uint32_t pack_length, std::uint64_t window);

  // Documents without tokens have no piece. Throws std::invalid_argument for a negative length.
  void add(const std::uint64_t* entries, const std::int32_t* lengths, std::size_t size, std::vector<Piece>& packed);
  void finish(std::vector<Piece>& packed);

  std::uint64_t packs() const { return packs_; }
  std::uint64_t padding() const { return padding_; }  // tokens

 private:
  struct Waiting {
    Piece piece;           // of 0 tokens once it is taken
    std::uint64_t offset;  // tokens before it in the phase
    std::uint64_t next;    // the next piece of its length, by number
  };
  struct Queue {
    std::uint64_t first, last;
  };

  void push(const Piece& piece);
  void fill_pack(std::vector<Piece>& packed);
  std::uint32_t take(std::uint32_t length);
  Waiting& waiting(std::uint64_t number) { return waiting_[number - oldest_]; }

  std::uint32_t pack_length_;
  std::uint64_t window_tokens_;
  std::deque<Waiting> waiting_;  // in the order of the phase
  std::uint64_t oldest_ = 0;     // number of the first one; they are numbered as they come
  std::uint64_t tokens_ = 0;
  std::vector<Queue> queues_;  // by length
  LengthSet lengths_;          // those whose queue is not empty
  std::vector<std::uint64_t> pack_;
  std::uint64_t packs_ = 0, padding_ = 0;
};

}  // namespace curriculum
