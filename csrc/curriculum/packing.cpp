#include "packing.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace curriculum {
namespace {

constexpr std::uint64_t nobody = ~std::uint64_t{0};

std::uint32_t highest_bit(std::uint64_t word) {
  std::uint32_t bit = 0;
  for (std::uint32_t step = 32; step > 0; step /= 2)
    if (word >> step) {
      word >>= step;
      bit += step;
    }
  return bit;
}

std::uint32_t checked_length(std::uint32_t pack_length, std::uint64_t window) {
  if (pack_length == 0 || pack_length > 1u << 26)
    throw std::invalid_argument("packs of " + std::to_string(pack_length) + " tokens; the length must be 1 to 2^26");
  if (window == 0) throw std::invalid_argument("a window of 0 packs; it must be 1 or more");
  return pack_length;
}

}  // namespace

LengthSet::LengthSet(std::uint32_t largest) {
  std::size_t members = std::size_t{largest} + 1;
  do {
    members = (members + 63) / 64;
    levels_.emplace_back(members);
  } while (members > 1);
}

void LengthSet::insert(std::uint32_t length) {
  for (auto& level : levels_) {
    level[length / 64] |= std::uint64_t{1} << length % 64;
    length /= 64;
  }
}

void LengthSet::erase(std::uint32_t length) {
  for (auto& level : levels_) {
    std::uint64_t& word = level[length / 64];
    word &= ~(std::uint64_t{1} << length % 64);
    if (word != 0) return;
    length /= 64;
  }
}

std::uint32_t LengthSet::largest_up_to(std::uint32_t limit) const {
  for (std::size_t up = 0; up < levels_.size(); ++up) {
    const std::uint64_t below = levels_[up][limit / 64] & (~std::uint64_t{0} >> (63 - limit % 64));
    if (below != 0) {
      std::uint32_t found = limit / 64 * 64 + highest_bit(below);
      for (std::size_t down = up; down-- > 0;) found = found * 64 + highest_bit(levels_[down][found]);
      return found;
    }
    if (limit < 64) return 0;
    limit = limit / 64 - 1;
  }
  return 0;
}

Packer::Packer(std::uint32_t pack_length, std::uint64_t window)
    : pack_length_(checked_length(pack_length, window)),
      window_tokens_(window * pack_length),
      queues_(std::size_t{pack_length} + 1, Queue{nobody, nobody}),
      lengths_(pack_length) {}

void Packer::add(const std::uint64_t* entries, const std::int32_t* lengths, std::size_t size,
                 std::vector<Piece>& packed) {
  for (std::size_t i = 0; i < size; ++i) {
    if (lengths[i] < 0) throw std::invalid_argument("a document of " + std::to_string(lengths[i]) + " tokens");
    const auto length = static_cast<std::uint32_t>(lengths[i]);
    for (std::uint32_t first = 0; first < length; first += pack_length_) {
      while (!waiting_.empty() && tokens_ - waiting_.front().offset >= window_tokens_) fill_pack(packed);
      push({entries[i], first, std::min(pack_length_, length - first)});
    }
  }
}

void Packer::finish(std::vector<Piece>& packed) {
  while (!waiting_.empty()) fill_pack(packed);
}

void Packer::push(const Piece& piece) {
  const std::uint64_t number = oldest_ + waiting_.size();
  waiting_.push_back({piece, tokens_, nobody});
  tokens_ += piece.tokens;
  Queue& queue = queues_[piece.tokens];
  if (queue.first == nobody) {
    lengths_.insert(piece.tokens);
    queue.first = number;
  } else {
    waiting(queue.last).next = number;
  }
  queue.last = number;
}

void Packer::fill_pack(std::vector<Piece>& packed) {
  std::uint32_t room = pack_length_;
  // The oldest of all is also the oldest of its length.
  std::uint32_t length = waiting_.front().piece.tokens;
  pack_.clear();
  while (length != 0) {
    room -= take(length);
    length = room == 0 ? 0 : lengths_.largest_up_to(room);
  }
  std::sort(pack_.begin(), pack_.end());
  for (const std::uint64_t number : pack_) {
    packed.push_back(waiting(number).piece);
    waiting(number).piece.tokens = 0;
  }
  if (room != 0) packed.push_back({padding_entry, 0, room});
  while (!waiting_.empty() && waiting_.front().piece.tokens == 0) {
    waiting_.pop_front();
    ++oldest_;
  }
  ++packs_;
  padding_ += room;
}

std::uint32_t Packer::take(std::uint32_t length) {
  Queue& queue = queues_[length];
  pack_.push_back(queue.first);
  queue.first = waiting(queue.first).next;
  if (queue.first == nobody) lengths_.erase(length);
  return length;
}

}  // namespace curriculum
