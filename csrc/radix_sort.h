// Sorting in place by unsigned keys: most significant digit first, with digits that fit the keys at hand.
//
// The American flag sort (McIlroy, Bostic, McIlroy, Computing Systems 1993), except that the digit of a group is taken
// from where its keys lie, (key - lowest) >> shift, so that scores between 0 and 1 spread as well as hashes do.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace curriculum {

// Keys: `static constexpr unsigned levels`, and operator()(row, level), the u64 that decides where all levels before
// are equal. Rows that are equal in every level must be interchangeable: only then are the bytes always the same.
template <typename Row, typename Keys>
class RadixSort {
 public:
  explicit RadixSort(const Keys& keys) : keys_(keys) {}

  void operator()(Row* rows, std::size_t size, unsigned threads) const {
    Digits digits;
    if (size <= parallel_from || threads < 2 || !find_digits(rows, size, 0, most_buckets, digits))
      return sort(rows, size, 0);
    const std::vector<std::size_t> starts = partition(rows, size, digits);
    parallel_for(starts.size() - 1, threads,
                 [&](std::size_t b) { sort(rows + starts[b], starts[b + 1] - starts[b], digits.level); });
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

  struct Digits {
    unsigned level, shift;
    std::uint64_t lowest;
    std::size_t buckets;
  };

  // False when all rows are equal in every level from `level` on.
  bool find_digits(const Row* rows, std::size_t size, unsigned level, std::size_t buckets, Digits& digits) const {
    for (; level < Keys::levels; ++level) {
      std::uint64_t lowest = keys_(rows[0], level), highest = lowest;
      for (std::size_t i = 1; i < size; ++i) {
        const std::uint64_t key = keys_(rows[i], level);
        lowest = std::min(lowest, key);
        highest = std::max(highest, key);
      }
      if (lowest == highest) continue;
      unsigned shift = 0;
      while ((highest - lowest) >> shift >= buckets) ++shift;
      digits = {level, shift, lowest, static_cast<std::size_t>((highest - lowest) >> shift) + 1};
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

  void sort(Row* rows, std::size_t size, unsigned level) const {
    if (size <= small_group) return insertion_sort(rows, size, level);
    std::size_t buckets = 16;
    while (buckets < most_buckets && buckets * 8 < size) buckets *= 2;
    Digits digits;
    if (!find_digits(rows, size, level, buckets, digits)) return;
    const std::vector<std::size_t> starts = partition(rows, size, digits);
    for (std::size_t b = 0; b < digits.buckets; ++b)
      sort(rows + starts[b], starts[b + 1] - starts[b], digits.level);
  }

  // Each key is made once: it may be a hash.
  void insertion_sort(Row* rows, std::size_t size, unsigned level) const {
    if (size < 2) return;
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
