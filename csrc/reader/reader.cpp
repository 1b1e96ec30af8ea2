#include "reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "../common/hash.h"

namespace reader {

namespace {

using curriculum::mix;

std::atomic<std::uint64_t> next_id{1};

std::string entries_name(std::uint64_t first, std::uint64_t last) {
  return "entries " + std::to_string(first) + " to " + std::to_string(last);
}

}  // namespace

// The last block that a thread walked: tokens before each of its entries, and after the last one.
struct Phase::Block {
  std::uint64_t phase = 0, first = 0;
  std::vector<std::uint64_t> starts;

  bool holds(std::uint64_t id, std::uint64_t offset) const {
    return phase == id && starts.front() <= offset && offset < starts.back();
  }
};

Phase::Block& Phase::last_block() {
  thread_local Block block;
  return block;
}

Phase::Phase(const PhaseFiles& files, std::vector<std::shared_ptr<const Corpus>> corpora)
    : files_(files),
      corpora_(std::move(corpora)),
      blocks_(files.entries / files.stride + (files.entries % files.stride != 0)),
      // No address: a new phase may lie where one was that a thread still remembers.
      id_(next_id++),
      checked_((blocks_ + 63) / 64) {
  for (const auto& corpus : corpora_) views_.push_back({corpus->lengths(), corpus->sequences()});
}

std::uint64_t Phase::entries_in(std::uint64_t number) const {
  return std::min(files_.stride, files_.entries - number * files_.stride);
}

void Phase::check_block(std::uint64_t number) const {
  std::atomic<std::uint64_t>& bits = checked_[number / 64];
  const std::uint64_t bit = std::uint64_t{1} << (number % 64);
  if (bits.load(std::memory_order_relaxed) & bit) return;
  const std::uint64_t first = number * files_.stride, last = first + entries_in(number);
  std::uint64_t check = mix(number);
  for (std::uint64_t i = first; i < last; ++i) check = mix(check ^ files_.order[i]);
  if (files_.pieces != nullptr)
    for (std::uint64_t i = first; i < last; ++i) check = mix(check ^ files_.pieces[i]);
  if (check != files_.checks[number])
    throw Damage(files_.pieces == nullptr ? "order.bin" : "order.bin or pieces.bin", -1,
                 "damaged between " + entries_name(first, last) + ": checks.bin has another checksum");
  bits.fetch_or(bit, std::memory_order_relaxed);
}

std::uint64_t Phase::length(std::uint64_t entry) const {
  const std::uint64_t dataset = files_.order[entry] >> sequence_bits, sequence = files_.order[entry] & sequence_mask;
  if (files_.pieces != nullptr && dataset == padding_dataset) return files_.pieces[entry] >> 32;
  const std::uint64_t known = dataset < views_.size() ? views_[dataset].sequences : 0;
  if (sequence >= known) refuse_entry(entry, known);
  // A piece is compared with its sequence when it is read.
  if (files_.pieces != nullptr) return files_.pieces[entry] >> 32;
  std::int32_t length;
  std::memcpy(&length, views_[dataset].lengths + 4 * sequence, 4);
  if (length < 0) refuse_length(dataset, sequence, length);
  return static_cast<std::uint64_t>(length);
}

void Phase::refuse_entry(std::uint64_t entry, std::uint64_t known) const {
  throw Damage("order.bin", -1,
               "damaged at entry " + std::to_string(entry) + ": it names sequence " +
                   std::to_string(files_.order[entry] & sequence_mask) + " of dataset " +
                   std::to_string(files_.order[entry] >> sequence_bits) + ", which has " + std::to_string(known));
}

void Phase::refuse_length(std::uint64_t dataset, std::uint64_t sequence, std::int32_t length) const {
  throw Damage(".idx", static_cast<std::int64_t>(dataset),
               "sequence " + std::to_string(sequence) + " has length " + std::to_string(length));
}

const Phase::Block& Phase::walk(std::uint64_t number, Block& block) const {
  check_block(number);
  const std::uint64_t entries = entries_in(number);
  block.phase = 0;  // until it is whole
  block.first = number * files_.stride;
  block.starts.resize(entries + 1);
  std::uint64_t total = files_.tokens[number];
  // The lengths lie anywhere in an index that is larger than any cache: ask for them ahead.
  constexpr std::uint64_t ahead = 16;
  std::uint64_t* const starts = block.starts.data();
  for (std::uint64_t i = 0; i < entries; ++i) {
    if (files_.pieces == nullptr && i + ahead < entries) prefetch(block.first + i + ahead);
    starts[i] = total;
    total += length(block.first + i);
  }
  starts[entries] = total;
  if (total != files_.tokens[number + 1])
    throw Damage("tokens.bin", -1,
                 entries_name(block.first, block.first + entries) + " of order.bin hold " +
                     std::to_string(total - files_.tokens[number]) + " tokens, but it says " +
                     std::to_string(files_.tokens[number + 1] - files_.tokens[number]) +
                     "; it is damaged, or the corpora are others");
  block.phase = id_;
  return block;
}

void Phase::prefetch(std::uint64_t entry) const {
  const std::uint64_t dataset = files_.order[entry] >> sequence_bits, sequence = files_.order[entry] & sequence_mask;
  if (dataset < views_.size() && sequence < views_[dataset].sequences)
    __builtin_prefetch(views_[dataset].lengths + 4 * sequence);
}

const Phase::Block& Phase::block_of(std::uint64_t offset) const {
  Block& last = last_block();
  if (last.holds(id_, offset)) return last;
  const std::uint64_t* const end = files_.tokens + blocks_ + 1;
  const std::uint64_t* const above = std::upper_bound(files_.tokens, end, offset);
  // A damaged tokens.bin may not rise, and then the search may end anywhere.
  if (above == files_.tokens || above == end || above[-1] > offset || *above <= offset)
    throw Damage("tokens.bin", -1, "damaged: it does not rise near token " + std::to_string(offset));
  return walk(static_cast<std::uint64_t>(above - files_.tokens) - 1, last);
}

void Phase::check(std::uint64_t first, std::uint64_t last, bool lengths) const {
  if (last > blocks_) throw std::out_of_range("no such block");
  for (std::uint64_t number = first; number < last; ++number) {
    if (lengths) {
      walk(number, last_block());
      continue;
    }
    check_block(number);
    if (files_.tokens[number] > files_.tokens[number + 1])
      throw Damage("tokens.bin", -1, "damaged: it falls after entry " + std::to_string(number * files_.stride));
  }
}

std::pair<std::uint64_t, std::uint64_t> Phase::locate(std::uint64_t offset) const {
  if (offset >= tokens()) throw std::out_of_range("no such token");
  const Block& block = block_of(offset);
  const auto above = std::upper_bound(block.starts.begin(), block.starts.end(), offset);
  const auto row = static_cast<std::uint64_t>(above - block.starts.begin()) - 1;
  return {block.first + row, offset - block.starts[row]};
}

void Phase::read_entry(std::uint64_t entry, std::uint64_t first, std::size_t count, std::uint64_t vocab_size,
                       std::int64_t* tokens) const {
  const std::uint64_t dataset = files_.order[entry] >> sequence_bits, sequence = files_.order[entry] & sequence_mask;
  if (files_.pieces != nullptr) {
    if (dataset == padding_dataset) {
      std::fill_n(tokens, count, 0);
      return;
    }
    first += files_.pieces[entry] & UINT32_MAX;
  }
  corpora_[dataset]->copy(sequence, first, count, vocab_size, tokens, static_cast<std::int64_t>(dataset));
}

void Phase::read(std::uint64_t offset, std::size_t count, std::uint64_t vocab_size, std::int64_t* tokens,
                 std::uint8_t* marks) const {
  while (count > 0) {
    const Block& block = block_of(offset);
    auto row = static_cast<std::size_t>(std::upper_bound(block.starts.begin(), block.starts.end(), offset) -
                                        block.starts.begin()) - 1;
    for (; count > 0 && row + 1 < block.starts.size(); ++row) {
      const std::uint64_t within = offset - block.starts[row];
      const auto part = static_cast<std::size_t>(std::min<std::uint64_t>(count, block.starts[row + 1] - offset));
      if (part == 0) continue;
      read_entry(block.first + row, within, part, vocab_size, tokens);
      if (marks != nullptr) {
        const bool padding = files_.pieces != nullptr && files_.order[block.first + row] >> sequence_bits == padding_dataset;
        std::memset(marks, padding ? is_padding : 0, part);
        if (within == 0) marks[0] |= starts_entry;
        marks += part;
      }
      tokens += part;
      offset += part;
      count -= part;
    }
  }
}

Stream::Stream(std::vector<std::shared_ptr<const Phase>> phases, std::uint64_t vocab_size)
    : phases_(std::move(phases)), starts_{0}, vocab_size_(vocab_size) {
  for (const auto& phase : phases_) starts_.push_back(starts_.back() + phase->tokens());
}

void Stream::read(const std::int64_t* positions, std::size_t n, std::size_t count, std::int64_t* tokens,
                  std::uint8_t* marks) const {
  for (std::size_t i = 0; i < n; ++i) {
    const auto position = static_cast<std::uint64_t>(positions[i]);
    if (position > starts_.back() || count > starts_.back() - position) throw std::out_of_range("outside the stream");
    read_one(position, count, tokens + i * count, marks == nullptr ? nullptr : marks + i * count);
  }
}

void Stream::read_one(std::uint64_t position, std::size_t count, std::int64_t* tokens, std::uint8_t* marks) const {
  while (count > 0) {
    const auto index = static_cast<std::size_t>(std::upper_bound(starts_.begin(), starts_.end(), position) -
                                                starts_.begin()) - 1;
    const auto part = static_cast<std::size_t>(std::min<std::uint64_t>(count, starts_[index + 1] - position));
    try {
      phases_[index]->read(position - starts_[index], part, vocab_size_, tokens, marks);
    } catch (Damage& damage) {
      damage.phase = static_cast<std::int64_t>(index);
      throw;
    }
    position += part;
    count -= part;
    tokens += part;
    if (marks != nullptr) marks += part;
  }
}

}  // namespace reader
