#include "output.h"

#include <algorithm>
#include <array>

#include "../common/hash.h"

namespace curriculum {
namespace {

constexpr std::size_t words_at_once = 16 * block_entries;
constexpr std::uint64_t no_end = ~std::uint64_t{0};

// The token after a bucket: ceil(total * (bucket + 1) / buckets), and none after the last one.
std::uint64_t bucket_end(std::uint64_t total, std::uint64_t buckets, std::uint64_t bucket) {
  const std::uint64_t next = bucket + 1;
  return next == buckets ? no_end : total / buckets * next + (total % buckets * next + buckets - 1) / buckets;
}

void write_words(const corpus_index::File& file, const std::uint64_t* words, std::size_t count, std::uint64_t at) {
  file.write(words, count * sizeof *words, at * sizeof *words);
}

}  // namespace

std::uint64_t block_check(std::uint64_t block, const std::uint64_t* words, std::size_t count) {
  std::uint64_t check = mix(block);
  for (std::size_t i = 0; i < count; ++i) check = mix(check ^ words[i]);
  return check;
}

Output::Output(const std::string& folder, std::uint64_t entries, std::uint64_t tokens, std::size_t datasets,
               std::uint64_t buckets)
    : entries_(entries),
      total_tokens_(tokens),
      order_(corpus_index::File::create(folder + "/order.bin")),
      tokens_(corpus_index::File::create(folder + "/tokens.bin")),
      checks_(corpus_index::File::create(folder + "/checks.bin")),
      profile_{buckets, std::vector<std::uint64_t>(datasets * buckets), std::vector<std::uint64_t>(datasets * buckets)} {
  write_words(tokens_, &total_tokens_, 1, (entries + block_entries - 1) / block_entries);
}

Profile Output::finish() {
  check_blocks_between_parts();
  order_.close();
  tokens_.close();
  checks_.close();
  return std::move(profile_);
}

void Output::check_blocks_between_parts() {
  std::array<std::uint64_t, block_entries> words;
  for (const std::uint64_t block : split_blocks_) {
    const std::uint64_t first = block * block_entries;
    const auto count = static_cast<std::size_t>(std::min(block_entries, entries_ - first));
    order_.read(words.data(), count * sizeof words[0], first * sizeof words[0]);
    const std::uint64_t check = block_check(block, words.data(), count);
    write_words(checks_, &check, 1, block);
  }
}

PartWriter::PartWriter(Output& output, std::size_t datasets, std::uint64_t first, std::uint64_t tokens_before)
    : output_(output), entry_(first), token_(tokens_before), cells_(datasets), words_(words_at_once - first % block_entries) {
  bucket_end_ = bucket_end(output.total_tokens_, output.profile_.buckets, 0);
  while (bucket_end_ < token_) bucket_end_ = bucket_end(output.total_tokens_, output.profile_.buckets, ++bucket_);
}

void PartWriter::next_bucket() {
  add_cells();
  bucket_end_ = bucket_end(output_.total_tokens_, output_.profile_.buckets, ++bucket_);
}

void PartWriter::add_cells() {
  const std::lock_guard lock(output_.mutex_);
  Profile& profile = output_.profile_;
  for (std::size_t dataset = 0; dataset < cells_.size(); ++dataset) {
    Cell& cell = cells_[dataset];
    profile.tokens[dataset * profile.buckets + bucket_] += cell.tokens;
    profile.quality[dataset * profile.buckets + bucket_] += cell.quality;
    cell = {};
  }
}

// Blocks that are here as a whole are checked now, several side by side: one alone waits for each product in turn.
void PartWriter::flush() {
  if (held_ == 0) return;
  const std::uint64_t first = entry_ - held_;
  write_words(output_.order_, words_.data(), held_, first);
  const std::uint64_t first_block = (first + block_entries - 1) / block_entries;
  const std::uint64_t last_block = entry_ / block_entries;
  write_words(output_.tokens_, block_tokens_.data(), block_tokens_.size(), first_block);
  block_tokens_.clear();
  checks_.clear();
  constexpr std::uint64_t side_by_side = 4;
  std::uint64_t block = first_block;
  for (; block + side_by_side <= last_block; block += side_by_side) {
    const std::uint64_t* words = words_.data() + (block * block_entries - first);
    std::array<std::uint64_t, side_by_side> checks;
    for (std::uint64_t b = 0; b < side_by_side; ++b) checks[b] = mix(block + b);
    for (std::uint64_t i = 0; i < block_entries; ++i)
      for (std::uint64_t b = 0; b < side_by_side; ++b) checks[b] = mix(checks[b] ^ words[b * block_entries + i]);
    checks_.insert(checks_.end(), checks.begin(), checks.end());
  }
  for (; block < last_block; ++block)
    checks_.push_back(block_check(block, words_.data() + (block * block_entries - first), block_entries));
  write_words(output_.checks_, checks_.data(), checks_.size(), first_block);
  const std::lock_guard lock(output_.mutex_);
  if (first % block_entries) output_.split_blocks_.push_back(first / block_entries);
  if (entry_ % block_entries) output_.split_blocks_.push_back(last_block);
  held_ = 0;
  words_.resize(words_at_once);
}

void PartWriter::finish() {
  flush();
  add_cells();
}

}  // namespace curriculum
