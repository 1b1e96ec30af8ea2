// The files of a packed phase, written as packs become certain.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../common/index_file.h"
#include "packing.h"

namespace curriculum {

// Packs documents into order.bin, pieces.bin, tokens.bin and checks.bin of `folder`; see megatron_kaiyuan/data/phase.py.
// tokens.bin and checks.bin, a thousandth of the others, are held until the end.
class PackedPhase {
 public:
  // Throws as Packer does, and corpus_index::FileError when a file cannot be written.
  PackedPhase(const std::string& folder, std::uint32_t pack_length, std::uint64_t window);

  // Documents in the order of the phase, as for Packer.
  void add(const std::uint64_t* entries, const std::int32_t* lengths, std::size_t size);
  void finish();

  const Packer& packer() const { return packer_; }

 private:
  void write_blocks(bool last);
  void write_words(const char* name, const std::vector<std::uint64_t>& words) const;

  std::string folder_;
  Packer packer_;
  corpus_index::File order_, pieces_;
  std::vector<Piece> packed_;  // not written yet
  std::vector<std::uint64_t> order_words_, piece_words_, tokens_, checks_;
  std::uint64_t entries_ = 0, total_ = 0;
};

}  // namespace curriculum
