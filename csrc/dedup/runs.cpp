#include "runs.h"

#include <stdexcept>
#include <vector>

#include "../common/hash.h"
#include "../common/radix_sort.h"

namespace dedup {
namespace {

struct Entry {
  std::uint64_t key;
  std::uint32_t row;
};

struct EntryKeys {
  static constexpr unsigned levels = 2;
  static constexpr std::size_t buckets_for_each_row = 2;
  static constexpr bool is_hash(unsigned level) { return level == 0; }
  std::uint64_t operator()(const Entry& entry, unsigned level) const { return level == 0 ? entry.key : entry.row; }
};

}  // namespace

template <typename Number>
void band_keys(const Number* signatures, std::size_t count, std::size_t permutations, std::size_t bands,
               std::size_t rows, std::uint64_t* keys) {
  if (rows == 0 || bands > permutations / rows)
    throw std::invalid_argument("signatures of " + std::to_string(permutations) + " numbers have no " +
                                std::to_string(bands) + " bands of " + std::to_string(rows));
  for (std::size_t i = 0; i < count; ++i)
    for (std::size_t band = 0; band < bands; ++band) {
      const Number* numbers = signatures + i * permutations + band * rows;
      std::uint64_t key = curriculum::mix(band);
      for (std::size_t row = 0; row < rows; ++row) key = curriculum::mix(key ^ numbers[row]);
      keys[band * count + i] = key;
    }
}

template void band_keys(const std::uint32_t*, std::size_t, std::size_t, std::size_t, std::size_t, std::uint64_t*);
template void band_keys(const std::uint64_t*, std::size_t, std::size_t, std::size_t, std::size_t, std::uint64_t*);

void sort_run(std::uint64_t* keys, std::uint32_t* rows, std::size_t count) {
  std::vector<Entry> entries(count);
  for (std::size_t i = 0; i < count; ++i) entries[i] = {keys[i], rows[i]};
  curriculum::RadixSort<Entry, EntryKeys>(EntryKeys{})(entries.data(), count, 1);
  for (std::size_t i = 0; i < count; ++i) {
    keys[i] = entries[i].key;
    rows[i] = entries[i].row;
  }
}

}  // namespace dedup
