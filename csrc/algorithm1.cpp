#include "algorithm1.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "hash.h"
#include "parallel.h"

namespace curriculum {
namespace {

// `key` is the score in step 2 and R in step 4, as ascending bits. `tie` decides between equal keys. `id` makes the
// order total in the 2^-64 case of equal ties; rows equal in all three are copies of one document with one draw.
struct Row {
  std::uint64_t key, tie, id;
  bool operator<(const Row& other) const {
    if (key != other.key) return key < other.key;
    if (tie != other.tie) return tie < other.tie;
    return id < other.id;
  }
};

using Offsets = std::vector<std::size_t>;  // rows of group g: [offsets[g], offsets[g + 1])

Offsets check_and_count(const std::vector<Dataset>& datasets, const Settings& settings) {
  if (datasets.size() > most_datasets)
    throw std::invalid_argument(std::to_string(datasets.size()) + " datasets; an order holds at most " +
                                std::to_string(most_datasets));
  if (!(settings.perturbation >= 0) || std::isinf(settings.perturbation))
    throw std::invalid_argument("perturb is " + std::to_string(settings.perturbation) + "; it must be 0 or more");
  Offsets offsets{0};
  for (const Dataset& dataset : datasets) {
    if (dataset.scores) refuse_nan(dataset.name, dataset.scores, dataset.size);
    std::size_t rows = dataset.copies ? 0 : dataset.size;
    for (std::size_t i = 0; i < dataset.size; ++i) {
      if (dataset.sequences[i] >> sequence_bits)
        throw std::invalid_argument("dataset " + dataset.name + ": sequence " + std::to_string(dataset.sequences[i]) +
                                    " does not fit in 48 bits");
      if (dataset.copies) rows += dataset.copies[i];
    }
    offsets.push_back(offsets.back() + rows);
  }
  return offsets;
}

// Step 1: a row's key is its score, or its own draw where the dataset has none or the phase is shuffled.
std::vector<Row> keyed_rows(const std::vector<Dataset>& datasets, const Offsets& offsets, const Settings& settings) {
  std::vector<Row> rows(offsets.back());
  const Draws draw(settings.seed, Purpose::row);
  parallel_for(datasets.size(), settings.threads, [&](std::size_t d) {
    const Dataset& dataset = datasets[d];
    const bool random = settings.shuffle || !dataset.scores;
    Row* row = rows.data() + offsets[d];
    for (std::size_t i = 0; i < dataset.size; ++i) {
      const std::uint64_t id = static_cast<std::uint64_t>(d) << sequence_bits | dataset.sequences[i];
      const std::uint32_t copies = dataset.copies ? dataset.copies[i] : 1;
      for (std::uint32_t copy = 0; copy < copies; ++copy) {
        const std::uint64_t tie = draw(id, copy);
        *row++ = {random ? tie : ascending_bits(dataset.scores[i]), tie, id};
      }
    }
  });
  return rows;
}

// Step 3, for the row of rank r. r, N_i and N_total are below 2^53, so they are exact as doubles and IEEE division
// rounds the true quotient: equal rationals of different datasets give equal R, and meet as ties in step 4.
double rescaled_rank(std::size_t rank, std::size_t rows, std::size_t total, double perturbation) {
  const double quotient = static_cast<double>(rank) / static_cast<double>(rows);
  // volatile: a fused multiply-add, which some compilers choose, would round differently on another machine.
  const volatile double rescaled = quotient * static_cast<double>(total);
  return rescaled + perturbation;
}

void rescale(std::vector<Row>& rows, const Offsets& offsets, const Settings& settings) {
  parallel_for(offsets.size() - 1, settings.threads, [&](std::size_t d) {
    const std::size_t count = offsets[d + 1] - offsets[d];
    for (std::size_t i = 0; i < count; ++i) {
      Row& row = rows[offsets[d] + i];
      const std::uint64_t draw = row.tie;
      const double perturbation =
          settings.perturbation * uniform(mix(draw ^ static_cast<std::uint64_t>(Purpose::perturbation)));
      row.key = ascending_bits(rescaled_rank(i + 1, count, rows.size(), perturbation));
      row.tie = mix(draw ^ static_cast<std::uint64_t>(Purpose::order_tie));
    }
  });
}

// Merge the groups' rows [firsts[g], lasts[g]), each ascending, into `order`.
void merge_groups(const std::vector<Row>& rows, const Offsets& firsts, const Offsets& lasts, std::uint64_t* order) {
  struct Cursor {
    const Row *row, *last;
    bool operator<(const Cursor& other) const { return *other.row < *row; }  // the heap's top is the smallest
  };
  std::vector<Cursor> heap;
  for (std::size_t g = 0; g < firsts.size(); ++g)
    if (firsts[g] < lasts[g]) heap.push_back({rows.data() + firsts[g], rows.data() + lasts[g]});
  std::make_heap(heap.begin(), heap.end());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    Cursor& cursor = heap.back();
    *order++ = cursor.row->id;
    if (++cursor.row == cursor.last)
      heap.pop_back();
    else
      std::push_heap(heap.begin(), heap.end());
  }
}

// Step 4, when every group is ascending in R: thread by thread, a range of R each.
std::vector<std::uint64_t> interleave(const std::vector<Row>& rows, const Offsets& offsets, const Settings& settings) {
  const std::size_t groups = offsets.size() - 1;
  const std::size_t ranges = rows.size() < 1u << 15 ? 1 : std::max(1u, settings.threads);
  const double highest = static_cast<double>(rows.size()) + settings.perturbation;
  std::vector<Offsets> cuts(ranges + 1, Offsets(groups));
  for (std::size_t g = 0; g < groups; ++g) {
    cuts.front()[g] = offsets[g];
    cuts.back()[g] = offsets[g + 1];
    for (std::size_t range = 1; range < ranges; ++range) {
      const Row bound{ascending_bits(highest * static_cast<double>(range) / static_cast<double>(ranges)), 0, 0};
      const Row* first = rows.data() + offsets[g];
      cuts[range][g] = offsets[g] + static_cast<std::size_t>(
                                        std::lower_bound(first, rows.data() + offsets[g + 1], bound) - first);
    }
  }
  std::vector<std::uint64_t> order(rows.size());
  parallel_for(ranges, settings.threads, [&](std::size_t range) {
    std::size_t written = 0;
    for (std::size_t g = 0; g < groups; ++g) written += cuts[range][g] - offsets[g];
    merge_groups(rows, cuts[range], cuts[range + 1], order.data() + written);
  });
  return order;
}

}  // namespace

std::vector<std::uint64_t> build_order(const std::vector<Dataset>& datasets, const Settings& settings) {
  Offsets offsets = check_and_count(datasets, settings);
  std::vector<Row> rows = keyed_rows(datasets, offsets, settings);
  if (settings.shuffle) {
    offsets = {0, rows.size()};  // one group: its sort by the draws is the whole order
  }
  sort_groups(rows, offsets, settings.threads);
  if (!settings.shuffle) {
    rescale(rows, offsets, settings);
    if (settings.perturbation > 0) sort_groups(rows, offsets, settings.threads);
  }
  return interleave(rows, offsets, settings);
}

void refuse_nan(const std::string& dataset, const double* scores, std::size_t size) {
  const auto count = std::count_if(scores, scores + size, [](double score) { return std::isnan(score); });
  if (count > 0)
    throw std::invalid_argument("dataset " + dataset + ": " + std::to_string(count) + " of " + std::to_string(size) +
                                " scores are NaN");
}

std::uint64_t ascending_bits(double value) {
  value += 0.0;  // -0.0 becomes 0.0
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint64_t sign = std::uint64_t{1} << 63;
  return bits & sign ? ~bits : bits | sign;
}

}  // namespace curriculum
