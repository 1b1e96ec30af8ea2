#include "packing_output.h"

#include <algorithm>

#include "../common/hash.h"
#include "output.h"

namespace curriculum {
namespace {

std::uint64_t fold(std::uint64_t check, const std::uint64_t* words, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) check = mix(check ^ words[i]);
  return check;
}

}  // namespace

PackedPhase::PackedPhase(const std::string& folder, std::uint32_t pack_length, std::uint64_t window)
    : folder_(folder),
      packer_(pack_length, window),
      order_(corpus_index::File::create(folder + "/order.bin")),
      pieces_(corpus_index::File::create(folder + "/pieces.bin")) {}

void PackedPhase::add(const std::uint64_t* entries, const std::int32_t* lengths, std::size_t size) {
  packer_.add(entries, lengths, size, packed_);
  write_blocks(false);
}

void PackedPhase::finish() {
  packer_.finish(packed_);
  write_blocks(true);
  tokens_.push_back(total_);
  order_.close();
  pieces_.close();
  write_words("tokens.bin", tokens_);
  write_words("checks.bin", checks_);
}

// All whole blocks; and the last one, which may be shorter.
void PackedPhase::write_blocks(bool last) {
  const std::size_t count = last ? packed_.size() : packed_.size() / block_entries * block_entries;
  order_words_.resize(count);
  piece_words_.resize(count);
  for (std::size_t first = 0; first < count; first += block_entries) {
    const std::size_t size = std::min(block_entries, count - first);
    tokens_.push_back(total_);
    for (std::size_t i = first; i < first + size; ++i) {
      const Piece& piece = packed_[i];
      order_words_[i] = piece.entry;
      piece_words_[i] = std::uint64_t{piece.tokens} << 32 | piece.first;
      total_ += piece.tokens;
    }
    const std::uint64_t order_check = fold(mix(checks_.size()), &order_words_[first], size);
    checks_.push_back(fold(order_check, &piece_words_[first], size));
  }
  order_.write(order_words_.data(), count * sizeof order_words_[0], entries_ * sizeof order_words_[0]);
  pieces_.write(piece_words_.data(), count * sizeof piece_words_[0], entries_ * sizeof piece_words_[0]);
  entries_ += count;
  packed_.erase(packed_.begin(), packed_.begin() + static_cast<std::ptrdiff_t>(count));
}

void PackedPhase::write_words(const char* name, const std::vector<std::uint64_t>& words) const {
  auto file = corpus_index::File::create(folder_ + "/" + name);
  file.write(words.data(), words.size() * sizeof words[0], 0);
  file.close();
}

}  // namespace curriculum
