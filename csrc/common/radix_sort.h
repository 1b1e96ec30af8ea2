// Sorting by unsigned keys: most significant digit first, with digits that fit the keys at hand.
//
// The digit of a group is taken from where its keys lie, (key - lowest) >> shift, so that scores between 0 and 1 spread as
// well as hashes do. A group that the cache holds twice is distributed beside its place into more buckets than it has
// rows, after which an insertion sort finds nearly all of them in order. A larger one is distributed to a second place,
// by all threads, where there is memory for that; else in place, by the American flag sort (McIlroy, Bostic, McIlroy,
// Computing Systems 1993).
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel.h"

namespace curriculum {

// Keys: `static constexpr unsigned levels`, and operator()(row, level), the u64 that decides where all levels before
// are equal. Rows that are equal in every level must be interchangeable: only then are the bytes always the same.
// `static constexpr bool is_hash(level)`: keys that spread over all of 2^64, so that no pass needs to look where they lie.
// `static constexpr std::size_t buckets_for_each_row`: of a group that the cache holds.
template <typename Row, typename Keys>
class RadixSort {
 public:
  // Where a thread sorts small groups; it grows with the largest, up to `cached_rows`.
  struct Scratch {
    std::vector<Row> rows;
    std::vector<std::uint32_t> ends;
  };
  static constexpr std::size_t cached_rows = std::size_t{1} << 14;
  // What a scratch takes for groups of so many rows.
  static constexpr std::size_t scratch_bytes(std::size_t rows) {
    return std::min(rows, cached_rows) * (sizeof(Row) + Keys::buckets_for_each_row * sizeof(std::uint32_t));
  }

  explicit RadixSort(const Keys& keys) : keys_(keys) {}

  // In place.
  void operator()(Row* rows, std::size_t size, unsigned threads) const {
    Digits digits;
    Scratch scratch;
    if (size <= parallel_from || threads < 2 || !find_digits(rows, size, {}, most_buckets, digits))
      return sort(rows, size, {}, scratch);
    sort_buckets(rows, partition(rows, size, digits), digits, threads);
  }

  // In one thread, with memory that is kept for the next call.
  void operator()(Row* rows, std::size_t size, Scratch& scratch) const { sort(rows, size, {}, scratch); }

  // From one place to another. Each thread counts and moves a piece of the rows.
  void operator()(const Row* from, Row* to, std::size_t size, unsigned threads) const {
    const std::size_t pieces = size <= parallel_from ? 1 : threads;
    const auto each_piece = [&](const auto& task) {
      parallel_for(pieces, threads, [&](std::size_t piece) {
        task(piece, from + size * piece / pieces, from + size * (piece + 1) / pieces);
      });
    };
    Range all = everything;
    if (!Keys::is_hash(0)) {
      std::vector<Range> ranges(pieces);
      each_piece([&](std::size_t piece, const Row* first, const Row* last) { ranges[piece] = range(first, last, 0); });
      all = Range{};
      for (const Range& own : ranges) all = {std::min(all.lowest, own.lowest), std::max(all.highest, own.highest)};
    }
    if (all.lowest >= all.highest) {  // there is nothing to part them by yet
      std::copy_n(from, size, to);
      return (*this)(to, size, threads);
    }
    const Digits digits = make_digits(all, 0, most_buckets);
    std::vector<std::vector<std::size_t>> heads(pieces, std::vector<std::size_t>(digits.buckets));
    each_piece([&](std::size_t piece, const Row* first, const Row* last) {
      for (std::size_t* counts = heads[piece].data(); first < last; ++first) ++counts[digit(*first, digits)];
    });
    std::vector<std::size_t> starts(digits.buckets + 1);
    std::size_t total = 0;
    for (std::size_t b = 0; b < digits.buckets; ++b) {
      starts[b] = total;
      for (auto& own : heads) total += std::exchange(own[b], total);
    }
    starts[digits.buckets] = total;
    each_piece([&](std::size_t piece, const Row* first, const Row* last) {
      for (std::size_t* places = heads[piece].data(); first < last; ++first) to[places[digit(*first, digits)]++] = *first;
    });
    sort_buckets(to, starts, digits, threads);
  }

  bool less(const Row& a, const Row& b, unsigned level = 0) const {
    for (; level < Keys::levels; ++level)
      if (keys_(a, level) != keys_(b, level)) return keys_(a, level) < keys_(b, level);
    return false;
  }

 private:
  static constexpr std::size_t parallel_from = std::size_t{1} << 15;  // below, a thread costs more than it saves
  static constexpr std::size_t small_group = 32;
  static constexpr std::size_t most_buckets = 2048;  // their ends stay in the first two caches

  struct Range {  // of keys
    std::uint64_t lowest = ~std::uint64_t{0}, highest = 0;
  };
  static constexpr Range everything{0, ~std::uint64_t{0}};
  // What is known of a group: the level that decides, and where its keys can lie.
  struct Known {
    unsigned level = 0;
    Range range = everything;
  };
  struct Digits {
    unsigned level, shift;
    std::uint64_t lowest;
    std::size_t buckets;

    Known inside(std::size_t bucket) const {
      if (shift == 0) return {level + 1, everything};
      const std::uint64_t first = lowest + (std::uint64_t{bucket} << shift);
      return {level, {first, first + ((std::uint64_t{1} << shift) - 1)}};
    }
  };

  Range range(const Row* first, const Row* last, unsigned level) const {
    Range found;
    for (; first < last; ++first) {
      const std::uint64_t key = keys_(*first, level);
      found = {std::min(found.lowest, key), std::max(found.highest, key)};
    }
    return found;
  }

  static Digits make_digits(const Range& range, unsigned level, std::size_t buckets) {
    unsigned shift = 0;
    while ((range.highest - range.lowest) >> shift >= buckets) ++shift;
    return {level, shift, range.lowest, static_cast<std::size_t>((range.highest - range.lowest) >> shift) + 1};
  }

  // False when all rows are equal in every level from `level` on.
  bool find_digits(const Row* rows, std::size_t size, Known known, std::size_t buckets, Digits& digits) const {
    for (; known.level < Keys::levels; known = {known.level + 1, everything}) {
      const Range found = Keys::is_hash(known.level) ? known.range : range(rows, rows + size, known.level);
      if (found.lowest >= found.highest) continue;
      digits = make_digits(found, known.level, buckets);
      return true;
    }
    return false;
  }

  std::size_t digit(const Row& row, const Digits& digits) const {
    return static_cast<std::size_t>((keys_(row, digits.level) - digits.lowest) >> digits.shift);
  }

  // Moves every row into its bucket; bucket b is [starts[b], starts[b + 1]).
  std::vector<std::size_t> partition(Row* rows, std::size_t size, const Digits& digits) const {
    std::vector<std::size_t> starts(digits.buckets + 1);
    for (std::size_t i = 0; i < size; ++i) ++starts[digit(rows[i], digits) + 1];
    for (std::size_t b = 0; b < digits.buckets; ++b) starts[b + 1] += starts[b];
    std::vector<std::size_t> heads(starts.begin(), starts.end() - 1);
    for (std::size_t b = 0; b < digits.buckets; ++b)
      while (heads[b] < starts[b + 1]) {
        Row row = rows[heads[b]];
        for (std::size_t to = digit(row, digits); to != b; to = digit(row, digits)) {
          Row* place = rows + heads[to]++;
          __builtin_prefetch(place + ahead, 1);  // each bucket's next cache line, long before its turn comes
          std::swap(row, *place);
        }
        rows[heads[b]++] = row;
      }
    return starts;
  }

  void sort_buckets(Row* rows, const std::vector<std::size_t>& starts, const Digits& digits, unsigned threads) const {
    std::atomic<std::size_t> next{0};
    parallel_for(threads, threads, [&](std::size_t) {
      Scratch scratch;
      for (std::size_t b = next++; b < digits.buckets; b = next++)
        sort(rows + starts[b], starts[b + 1] - starts[b], digits.inside(b), scratch);
    });
  }

  void sort(Row* rows, std::size_t size, const Known& known, Scratch& scratch) const {
    if (size <= small_group) return insertion_sort(rows, size, known.level);
    if (size <= cached_rows) return sort_beside(rows, size, known, scratch);
    std::size_t buckets = 16;
    while (buckets < most_buckets && buckets * 8 < size) buckets *= 2;
    Digits digits;
    if (!find_digits(rows, size, known, buckets, digits)) return;
    const std::vector<std::size_t> starts = partition(rows, size, digits);
    for (std::size_t b = 0; b < digits.buckets; ++b)
      sort(rows + starts[b], starts[b + 1] - starts[b], digits.inside(b), scratch);
  }

  void sort_beside(Row* rows, std::size_t size, const Known& known, Scratch& scratch) const {
    Digits digits;
    if (!find_digits(rows, size, known, Keys::buckets_for_each_row * size, digits)) return;
    if (scratch.rows.size() < size) scratch.rows = std::vector<Row>(size);
    Row* sorted = scratch.rows.data();
    scratch.ends.assign(digits.buckets, 0);
    std::uint32_t* ends = scratch.ends.data();
    for (std::size_t i = 0; i < size; ++i) ++ends[digit(rows[i], digits)];
    std::uint32_t total = 0, largest = 0;
    for (std::size_t b = 0; b < digits.buckets; ++b) {
      largest = std::max(largest, ends[b]);
      total += std::exchange(ends[b], total);
    }
    for (std::size_t i = 0; i < size; ++i) sorted[ends[digit(rows[i], digits)]++] = rows[i];
    if (largest <= small_group) return insert(sorted, rows, size, digits.level);
    std::copy_n(sorted, size, rows);
    const std::vector<std::uint32_t> bounds(ends, ends + digits.buckets);  // of here: the groups use the scratch too
    for (std::size_t b = 0, first = 0; b < bounds.size(); first = bounds[b++])
      sort(rows + first, bounds[b] - first, digits.inside(b), scratch);
  }

  // Copies rows that are nearly in order, and puts them in order.
  void insert(const Row* from, Row* to, std::size_t size, unsigned level) const {
    std::uint64_t highest = 0;
    for (std::size_t i = 0; i < size; ++i) {
      const Row row = from[i];
      const std::uint64_t key = keys_(row, level);
      std::size_t at = i;
      if (key > highest)
        highest = key;
      else
        for (; at > 0 && less(row, to[at - 1], level); --at) to[at] = to[at - 1];
      to[at] = row;
    }
  }

  // Each key is made once: it may be a hash.
  void insertion_sort(Row* rows, std::size_t size, unsigned level) const {
    if (size < 2 || level == Keys::levels) return;
    std::array<std::uint64_t, small_group> keys;
    for (std::size_t i = 0; i < size; ++i) {
      const Row row = rows[i];
      const std::uint64_t key = keys_(row, level);
      std::size_t at = i;
      for (; at > 0 && (key < keys[at - 1] || (key == keys[at - 1] && less(row, rows[at - 1], level + 1))); --at) {
        keys[at] = keys[at - 1];
        rows[at] = rows[at - 1];
      }
      keys[at] = key;
      rows[at] = row;
    }
  }

  static constexpr std::size_t ahead = 128 / sizeof(Row);

  Keys keys_;
};

}  // namespace curriculum
