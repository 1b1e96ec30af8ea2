#include "pairs.h"

#include <algorithm>

#include "../common/index_file.h"
#include "../common/sorter.h"

namespace dedup {
namespace {

using corpus_index::File;

constexpr std::size_t whole_group = 64, near_members = 32;
constexpr std::size_t pairs_at_once = std::size_t{1} << 15;

class PairWriter {
 public:
  // Pairs of two documents below `earlier` are left out.
  explicit PairWriter(const std::string& path, std::uint64_t earlier = 0)
      : file_(File::create(path)), earlier_(earlier) {
    held_.reserve(pairs_at_once);
  }
  void add(const Pair& pair) {
    if (pair.b < earlier_) return;
    held_.push_back(pair);
    if (held_.size() == pairs_at_once) flush();
  }
  std::uint64_t finish() {
    flush();
    file_.close();
    return written_;
  }

 private:
  void flush() {
    file_.write(held_.data(), held_.size() * sizeof(Pair), written_ * sizeof(Pair));
    written_ += held_.size();
    held_.clear();
  }

  File file_;
  std::uint64_t earlier_;
  std::vector<Pair> held_;
  std::uint64_t written_ = 0;
};

// The members of one key, ascending. The first 64 wait, until it is known whether there are more.
class Group {
 public:
  Group(PairWriter& writer, Pairing pairing) : writer_(writer), pairing_(pairing) {}

  void add(std::uint64_t ordinal) {
    if (pairing_ == Pairing::stars) {
      if (size_++ == 0) members_[0] = ordinal;
      else writer_.add({members_[0], ordinal});
      return;
    }
    if (size_ >= whole_group) pair_in_large(ordinal);
    members_[place(size_++)] = ordinal;
  }
  std::uint64_t size() const { return size_; }
  void finish() {
    if (pairing_ == Pairing::all && size_ <= whole_group) pair_all(size_);
    size_ = 0;
  }

 private:
  // The first 32 have places of their own; after 64 members the last 32 take turns in the others.
  static std::size_t place(std::uint64_t number) {
    return static_cast<std::size_t>(number < near_members ? number : near_members + number % near_members);
  }
  void pair_all(std::uint64_t size) {
    for (std::size_t b = 1; b < size; ++b)
      for (std::size_t a = 0; a < b; ++a) writer_.add({members_[a], members_[b]});
  }
  // Of the first 64 each pair has a member among the first 32, or two that are less than 32 apart: all pairs.
  void pair_in_large(std::uint64_t ordinal) {
    if (size_ == whole_group) pair_all(whole_group);
    for (const std::uint64_t member : members_) writer_.add({member, ordinal});
  }

  PairWriter& writer_;
  Pairing pairing_;
  std::array<std::uint64_t, whole_group> members_;
  std::uint64_t size_ = 0;
};

struct PairKeys {
  static constexpr unsigned levels = 2;
  static constexpr std::size_t buckets_for_each_row = 1;
  static constexpr bool is_hash(unsigned) { return false; }
  std::uint64_t operator()(const Pair& pair, unsigned level) const { return level == 0 ? pair.a : pair.b; }
};

std::uint64_t pairs_in(const std::string& path, const File& file) {
  const std::uint64_t bytes = file.size();
  if (bytes % sizeof(Pair) != 0) throw std::invalid_argument(path + ": its size is not that of whole pairs");
  return bytes / sizeof(Pair);
}

}  // namespace

Groups group_pairs(const std::vector<Run>& runs, const std::string& output, std::uint64_t memory, Pairing pairing,
                   const Omitted& omitted) {
  PairWriter writer(output, omitted.earlier);
  Group group(writer, pairing);
  Groups found;
  const auto finish_group = [&] {
    found.groups += group.size() > 1;
    found.largest = std::max(found.largest, group.size());
    group.finish();
  };
  std::uint64_t open = 0;
  const std::vector<std::uint8_t>& bits = omitted.documents;
  RunMerge(runs, memory)([&](std::uint64_t key, std::uint64_t ordinal) {
    if (ordinal / 8 < bits.size() && (bits[ordinal / 8] >> (ordinal % 8) & 1)) return;
    if (key != open) finish_group();
    open = key;
    group.add(ordinal);
  });
  finish_group();
  found.pairs = writer.finish();
  return found;
}

std::uint64_t unique_pairs(const std::vector<std::string>& inputs, const std::string& output, const std::string& scratch,
                           std::uint64_t memory) {
  std::uint64_t expected = 0;
  for (const std::string& path : inputs) expected += pairs_in(path, File::open(path));
  curriculum::Memory bound(memory);
  curriculum::ScratchFile file(scratch);
  curriculum::Sorter<Pair, PairKeys> sorter(bound, file, {}, 1, expected);
  std::vector<Pair> piece(pairs_at_once);
  for (const std::string& path : inputs) {
    const File input = File::open(path);
    const std::uint64_t pairs = pairs_in(path, input);
    for (std::uint64_t at = 0; at < pairs; at += piece.size()) {
      const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), pairs - at));
      input.read(piece.data(), count * sizeof(Pair), at * sizeof(Pair));
      for (std::size_t i = 0; i < count; ++i) sorter.add(piece[i]);
    }
  }
  PairWriter writer(output);
  bool is_first = true;
  Pair last{};
  sorter.drain([&](const Pair& pair) {
    if (!is_first && pair.a == last.a && pair.b == last.b) return;
    writer.add(pair);
    last = pair;
    is_first = false;
  });
  return writer.finish();
}

}  // namespace dedup
