#include "interleave.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#include "output.h"
#include "../common/parallel.h"
#include "../common/radix_sort.h"

namespace curriculum {
namespace {

using Datasets = std::vector<std::unique_ptr<Dataset>>;

constexpr std::uint64_t no_limit = ~std::uint64_t{0};
constexpr double most_positions = 0x1.0p50;  // beyond, two rows of one dataset could get one R
constexpr std::size_t window_least = 1024, window_default = 1 << 13, window_most = 1 << 17;
constexpr double narrowest_window = 0x1.0p-48;  // of the range: a fraction of a token
constexpr std::size_t fewest_piece_rows = 16;
constexpr std::uint64_t least_memory = std::uint64_t{2} << 20;

struct WindowRow {
  std::uint64_t key;  // R with its perturbation, as ascending bits; in a shuffled phase the draw
  Entry entry;
  std::uint32_t dataset;
};

// R, then a hash; the last level decides between equal hashes of different rows.
struct ByPosition {
  static constexpr unsigned levels = 3;
  static constexpr std::size_t buckets_for_each_row = 1;  // their R lie evenly
  static constexpr bool is_hash(unsigned level) { return level == 1; }
  const Draws* draws;
  std::uint64_t operator()(const WindowRow& row, unsigned level) const {
    if (level == 0) return row.key;
    if (level == 1) return again(draws[row.dataset](row.entry.row()), Purpose::order_tie);
    return std::uint64_t{row.dataset} << sequence_bits | row.entry.sequence();
  }
};

using WindowSort = RadixSort<WindowRow, ByPosition>;

std::uint64_t bits_of(double position) {  // of one that is not negative
  std::uint64_t bits;
  std::memcpy(&bits, &position, sizeof bits);
  return bits;
}

// Step 3, for rank r of N_i rows. r, N_i and N_total are below 2^53, so they are exact as doubles and IEEE division
// rounds the true quotient: equal rationals of different datasets give equal R, and meet as ties in step 4.
double rescaled_rank(std::uint64_t rank, double rows, double total) { return static_cast<double>(rank) / rows * total; }

// What all threads know.
struct Plan {
  const Datasets& datasets;
  RankBy rank_by;
  double perturbation;
  std::vector<Draws> draws;
  double total = 0;         // rows or weight of all datasets: where R ends
  std::uint64_t rows = 0, tokens = 0;
  std::size_t window_rows = 0, piece_rows = 0;
  unsigned threads = 0;

  // R of the first row that lies beyond a fraction of the range.
  std::uint64_t limit(double fraction) const {
    if (fraction >= 1) return no_limit;
    return rank_by == RankBy::draw ? static_cast<std::uint64_t>(fraction * 0x1.0p64) : bits_of(fraction * total);
  }
};

// A place in one dataset: its next row, and the weight (RankBy::tokens) of those before.
struct Place {
  std::uint64_t row = 0, weight = 0;
};

// The rows of one dataset, with their R.
class Walk {
 public:
  Walk(const Plan& plan, std::size_t dataset)
      : plan_(&plan),
        dataset_(plan.datasets[dataset].get()),
        draws_(plan.draws[dataset]),
        reader_(dataset_->store(), plan.piece_rows),
        own_total_(static_cast<double>(plan.rank_by == RankBy::tokens ? dataset_->weight_before().back()
                                                                      : dataset_->rows())) {}

  Place place;

  // Calls visit(R, entry) for every row with R below `limit`, and stays at the first one beyond.
  template <typename Visit>
  void until(std::uint64_t limit, const Visit& visit) {
    switch (plan_->rank_by) {
      case RankBy::documents:
        return until<RankBy::documents>(limit, visit);
      case RankBy::tokens:
        return until<RankBy::tokens>(limit, visit);
      default:
        return until<RankBy::draw>(limit, visit);
    }
  }

  // Goes to the first row with R of `limit` or more; returns the tokens before it.
  std::uint64_t go_to(std::uint64_t limit) {
    std::uint64_t block = 0, beyond = dataset_->tokens_before().size();  // of the blocks whose first row may lie before
    while (block + 1 < beyond) {
      const std::uint64_t middle = block + (beyond - block) / 2;
      (starts_before(middle, limit) ? block : beyond) = middle;
    }
    place = {block * Dataset::stride, dataset_->weight_before()[block]};
    if (place.row > dataset_->rows()) place.row = dataset_->rows();
    std::uint64_t tokens = dataset_->tokens_before()[block];
    until(limit, [&](std::uint64_t, const Entry& entry) { tokens += entry.tokens(); });
    return tokens;
  }

 private:
  template <RankBy rank_by, typename Visit>
  void until(std::uint64_t limit, const Visit& visit) {
    const double own_total = own_total_, total = plan_->total;
    const auto position = [&](const Place& at, std::uint64_t weight, const Entry& entry) {
      if constexpr (rank_by == RankBy::documents) return bits_of(rescaled_rank(at.row + 1, own_total, total));
      if constexpr (rank_by == RankBy::tokens) return bits_of(rescaled_rank(at.weight + weight, own_total, total));
      return draws_(entry.row());
    };
    Place at = place;  // nothing else changes it while rows are visited
    for (bool beyond = false; !beyond && at.row < dataset_->rows();) {
      const auto [entries, count] = reader_.from(at.row);
      for (std::size_t i = 0; i < count; ++i) {
        const Entry entry = entries[i];
        const std::uint64_t weight = std::max(1u, entry.tokens());
        const std::uint64_t key = position(at, weight, entry);
        beyond = key >= limit && limit != no_limit;
        if (beyond) break;
        visit(key, entry);
        ++at.row;
        at.weight += weight;
      }
    }
    place = at;
  }

  // True when all rows before the block lie below the limit.
  bool starts_before(std::uint64_t block, std::uint64_t limit) const {
    const std::uint64_t row = block * Dataset::stride;
    if (row >= dataset_->rows()) return false;
    if (plan_->rank_by == RankBy::draw) {
      Entry entry;
      dataset_->store().read(row, 1, &entry);
      return draws_(entry.row()) < limit;
    }
    const std::uint64_t rank = plan_->rank_by == RankBy::tokens ? dataset_->weight_before()[block] : row;
    return bits_of(rescaled_rank(rank, own_total_, plan_->total)) < limit;
  }

  const Plan* plan_;
  const Dataset* dataset_;
  Draws draws_;
  Reader reader_;
  double own_total_;
};

// One thread's part of the range: fractions [first, last).
class Part {
 public:
  Part(const Plan& plan, double first, double last, Output& output)
      : plan_(plan), first_(first), last_(last), output_(output), sort_(ByPosition{plan.draws.data()}) {
    for (std::size_t dataset = 0; dataset < plan.datasets.size(); ++dataset) walks_.emplace_back(plan, dataset);
  }

  // Calls advance(rows) after each window; stops when that returns false.
  template <typename Advance>
  void run(const Advance& advance) {
    PartWriter writer = start();
    double width = std::max(narrowest_window, static_cast<double>(plan_.window_rows) / static_cast<double>(plan_.rows));
    for (double low = first_; low < last_;) {
      const double high = gather(low, width);
      sort_(rows_.data(), rows_.size(), scratch_);
      const std::uint64_t limit = plan_.limit(high);
      const auto end = limit == no_limit ? rows_.end() : std::partition_point(rows_.begin(), rows_.end(), [&](auto& row) {
        return row.key < limit;
      });
      for (auto row = rows_.begin(); row != end; ++row) writer.add(row->dataset, row->entry);
      if (!advance(static_cast<std::uint64_t>(end - rows_.begin()))) return;
      rows_.erase(rows_.begin(), end);
      low = high;
    }
    writer.finish();
  }

 private:
  // Goes to the first row, and finds what comes before it. With a perturbation, rows from a little before may lie in
  // this part, and those that do not count as written.
  PartWriter start() {
    std::uint64_t entries = 0, tokens = 0;
    const std::uint64_t limit = plan_.limit(first_);
    const double before = first_ - (2 * plan_.perturbation / plan_.total + 0x1.0p-50);
    const std::uint64_t band = plan_.perturbation > 0 ? plan_.limit(std::max(0.0, before)) : limit;
    for (std::size_t dataset = 0; dataset < walks_.size(); ++dataset) {
      tokens += walks_[dataset].go_to(band);
      entries += walks_[dataset].place.row;
      if (band < limit) take(dataset, limit);
    }
    const auto waiting = std::partition(rows_.begin(), rows_.end(), [&](auto& row) { return row.key >= limit; });
    for (auto row = waiting; row != rows_.end(); ++row, ++entries) tokens += row->entry.tokens();
    rows_.erase(waiting, rows_.end());
    return {output_, plan_.datasets.size(), entries, tokens};
  }

  // Adds the rows of all datasets from `low` on; returns where it stopped. Where short documents crowd together the
  // window is narrowed, so that it never holds many more rows than planned.
  double gather(double low, double& width) {
    const std::size_t waiting = rows_.size();
    std::vector<Place> places;
    if (plan_.rank_by == RankBy::tokens)
      for (const Walk& walk : walks_) places.push_back(walk.place);
    for (;;) {
      const double high = std::min(low + width, last_);
      const std::uint64_t limit = plan_.limit(high);
      const bool may_narrow = plan_.rank_by == RankBy::tokens && width > 4 * narrowest_window;
      bool crowded = false;
      for (std::size_t dataset = 0; dataset < walks_.size() && !crowded; ++dataset) {
        take(dataset, limit);
        crowded = may_narrow && rows_.size() > waiting + 2 * plan_.window_rows;
      }
      if (!crowded) {
        if (2 * (rows_.size() - waiting) <= plan_.window_rows) width *= 2;
        return high;
      }
      width /= 4;
      rows_.resize(waiting);
      for (std::size_t dataset = 0; dataset < walks_.size(); ++dataset) walks_[dataset].place = places[dataset];
    }
  }

  void take(std::size_t dataset, std::uint64_t limit) {
    const Draws draws = plan_.draws[dataset];
    const double perturbation = plan_.perturbation;
    const auto number = static_cast<std::uint32_t>(dataset);
    if (perturbation == 0)
      return walks_[dataset].until(limit, [&](std::uint64_t key, const Entry& entry) {
        rows_.push_back({key, entry, number});
      });
    walks_[dataset].until(limit, [&](std::uint64_t key, const Entry& entry) {
      double rescaled;
      std::memcpy(&rescaled, &key, sizeof rescaled);
      // volatile: a fused multiply-add, which some compilers choose, would round differently on another machine.
      const volatile double shift = perturbation * uniform(again(draws(entry.row()), Purpose::perturbation));
      rows_.push_back({bits_of(rescaled + shift), entry, number});
    });
  }

  const Plan& plan_;
  double first_, last_;
  Output& output_;
  WindowSort sort_;
  WindowSort::Scratch scratch_;
  std::vector<Walk> walks_;
  std::vector<WindowRow> rows_;
};

// Rows of a window, rows read at once from each file, and threads, so that all of it fits the memory.
void fit(Plan& plan, const Memory& memory, const InterleaveSettings& settings) {
  const auto datasets = plan.datasets.size();
  const std::uint64_t available = std::max(memory.free(), least_memory);
  const double shifted = std::min(1.0, 2 * plan.perturbation / plan.total) * static_cast<double>(plan.rows);
  const auto waiting = static_cast<std::uint64_t>(shifted);
  const auto on_disk = static_cast<std::uint64_t>(std::count_if(
      plan.datasets.begin(), plan.datasets.end(), [](const auto& dataset) { return !dataset->store().resident(); }));
  constexpr std::uint64_t window_bytes = 2 * 2 * sizeof(WindowRow);  // twice as planned, in an array that doubles
  const auto sort_bytes = [](std::uint64_t rows) { return WindowSort::scratch_bytes(2 * rows); };
  plan.window_rows = std::clamp<std::size_t>(2 * datasets, window_default, window_most);
  plan.window_rows = std::clamp<std::size_t>(available / 4 / window_bytes, window_least, plan.window_rows);
  if (settings.window_rows) plan.window_rows = settings.window_rows;
  const std::uint64_t fixed = datasets * (sizeof(Walk) + sizeof(Place) + 16) +
                              window_bytes * (plan.window_rows + waiting) + sort_bytes(plan.window_rows + waiting);
  const std::uint64_t least = fixed + on_disk * fewest_piece_rows * sizeof(Entry);
  plan.threads = std::max(1u, settings.threads);
  while (plan.threads > 1 && least > available / plan.threads) --plan.threads;
  if (waiting && least > available)
    throw std::invalid_argument("perturb moves up to " + std::to_string(waiting) + " rows, which needs " +
                                std::to_string(least) + " bytes, and --memory leaves " + std::to_string(available) +
                                "; lower perturb or raise --memory");
  const std::uint64_t left = available / plan.threads - std::min(available / plan.threads, fixed);
  const std::uint64_t piece = left / (std::max<std::uint64_t>(1, on_disk) * sizeof(Entry));
  plan.piece_rows = static_cast<std::size_t>(std::clamp<std::uint64_t>(piece, fewest_piece_rows, piece_rows));
  plan.window_rows = std::max<std::size_t>(plan.window_rows, static_cast<std::size_t>(waiting));
}

Plan make_plan(const Datasets& datasets, const Memory& memory, const InterleaveSettings& settings) {
  if (!(settings.perturbation >= 0) || std::isinf(settings.perturbation))
    throw std::invalid_argument("perturb is " + std::to_string(settings.perturbation) + "; it must be 0 or more");
  Plan plan{datasets, settings.rank_by, settings.rank_by == RankBy::draw ? 0.0 : settings.perturbation, {}};
  std::uint64_t weight = 0;
  for (const auto& dataset : datasets) {
    if (dataset->weight_before().empty()) throw std::logic_error("a dataset has not got its copies");
    plan.draws.push_back(dataset->row_draws());
    plan.rows += dataset->rows();
    plan.tokens += dataset->tokens();
    weight += dataset->weight_before().back();
  }
  plan.total = static_cast<double>(settings.rank_by == RankBy::tokens ? weight : plan.rows);
  if (plan.total >= most_positions)
    throw std::invalid_argument(std::to_string(weight) + " tokens in " + std::to_string(plan.rows) +
                                " rows; a phase holds less than 2^50 of what it ranks by");
  if (plan.rows) fit(plan, memory, settings);
  return plan;
}

}  // namespace

Profile interleave(const Datasets& datasets, const Memory& memory, const InterleaveSettings& settings,
                   const std::string& folder, const std::function<void(std::uint64_t)>& progress) {
  if (settings.buckets == 0) throw std::invalid_argument("a profile has one bucket or more");
  const Plan plan = make_plan(datasets, memory, settings);
  Output output(folder, plan.rows, plan.tokens, datasets.size(), settings.buckets);
  if (plan.rows == 0) return output.finish();
  std::atomic<std::uint64_t> done{0};
  std::atomic<bool> stop{false};
  const auto caller = std::this_thread::get_id();
  const auto advance = [&](std::uint64_t rows) {
    done += rows;
    if (std::this_thread::get_id() == caller && progress) progress(done);
    return !stop;
  };
  parallel_for(plan.threads, plan.threads, [&](std::size_t thread) {
    const auto edge = [&](std::size_t t) { return static_cast<double>(t) / static_cast<double>(plan.threads); };
    try {
      Part(plan, edge(thread), edge(thread + 1), output).run(advance);
    } catch (...) {
      stop = true;
      throw;
    }
  });
  return output.finish();
}

}  // namespace curriculum
