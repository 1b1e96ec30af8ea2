#include "dataset.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../common/parallel.h"

namespace curriculum {
namespace {

// Gives rows, as they come in rising order from rank `start` on, their percentile, and says which stay.
class Ranks {
 public:
  Ranks(std::uint64_t rows, std::uint64_t first, std::uint64_t last, std::size_t group_count, std::uint64_t start = 0,
        std::uint64_t key_before = 0)
      : groups(group_count), rows_(rows), first_(first), last_(last), rank_(start), key_(key_before) {}

  std::vector<Group> groups;  // of all rows that came
  std::uint64_t tokens = 0;   // of those that stay

  // True when the row stays, which is then in `entry`.
  bool next(const ScoredRow& row, Entry& entry) {
    const std::uint64_t rank = rank_++;
    while (rank >= next_percentile_) {
      ++percentile_;
      next_percentile_ = ((percentile_ + 1) * rows_ + percentiles - 1) / percentiles;
    }
    Group& group = groups[percentile_ * groups.size() / percentiles];
    ++group.corpus_documents;
    group.corpus_tokens += row.tokens;
    if (rank < first_ || rank >= last_) return false;
    const bool tied = rank > first_ && row.key == key_;
    key_ = row.key;
    entry.word = percentile_ << (sequence_bits + copy_bits) | row.sequence;
    entry.tail = static_cast<std::uint32_t>(tied) << 31 | row.tokens;
    tokens += row.tokens;
    return true;
  }

 private:
  std::uint64_t rows_, first_, last_;
  std::uint64_t rank_, percentile_ = 0, key_;
  std::uint64_t next_percentile_ = (rows_ + percentiles - 1) / percentiles;
};

constexpr unsigned groups_of_scored = 10;
constexpr std::uint64_t parallel_from = std::uint64_t{1} << 12;  // rows; below, a thread costs more than it saves

// Calls task(piece, first, last) for pieces of [0, rows) side by side; each but the last begins at a multiple of `step`.
template <typename Task>
void in_pieces(std::uint64_t rows, std::size_t pieces, unsigned threads, std::uint64_t step, const Task& task) {
  const auto edge = [&](std::size_t piece) { return piece == pieces ? rows : rows / pieces * piece / step * step; };
  parallel_for(pieces, threads, [&](std::size_t piece) { task(piece, edge(piece), edge(piece + 1)); });
}

void add(std::vector<Group>& sums, const std::vector<Group>& groups) {
  for (std::size_t g = 0; g < groups.size(); ++g) {
    sums[g].corpus_documents += groups[g].corpus_documents;
    sums[g].corpus_tokens += groups[g].corpus_tokens;
    sums[g].documents += groups[g].documents;
    sums[g].tokens += groups[g].tokens;
  }
}

}  // namespace

Dataset::Dataset(Workshop& workshop, const DatasetSettings& settings, std::uint64_t expected)
    : workshop_(workshop),
      settings_(settings),
      tie_draws_(settings.choice_seed, Purpose::selection),
      row_draws_(settings.order_seed, Purpose::row),
      keep_draws_(settings.order_seed, Purpose::selection),
      repeat_draws_(settings.order_seed, Purpose::repetition),
      groups_(settings.scored ? groups_of_scored : 1) {
  if (settings.scored)
    sorter_ = std::make_unique<ScoreSorter>(workshop.memory, workshop.runs, ByScore{tie_draws_}, workshop.threads,
                                            expected);
  else
    store_ = std::make_unique<Store>(workshop.memory, workshop.chosen, expected);
}

void Dataset::add(std::uint64_t first, const std::int32_t* lengths, const double* scores, std::size_t size,
                  bool drop_missing) {
  if (settings_.scored != (scores != nullptr)) throw std::invalid_argument("scores are given, or not, for all documents");
  if (settings_.scored ? !sorter_ : indexed()) throw std::logic_error("the dataset is finished");
  if (first > sequence_mask || size > sequence_mask + 1 - first)
    throw std::invalid_argument("sequence " + std::to_string(first + size - 1) + " does not fit in 48 bits");
  if (std::any_of(lengths, lengths + size, [](std::int32_t length) { return length < 0; }))
    throw std::invalid_argument("a length is negative");
  std::uint64_t rows = size, all_tokens = 0, weight = 0;
  for (std::size_t i = 0; i < size; ++i) {
    const auto tokens = static_cast<std::uint32_t>(lengths[i]);
    if (scores) {
      const bool missing = std::isnan(scores[i]);
      missing_ += missing;
      sorter_->add({missing ? lowest_key : ascending_bits(scores[i]), first + i, tokens});
      if (missing && drop_missing) {
        --rows;
        ++dropped_;
        continue;
      }
    } else {
      store_->append({std::uint64_t{unscored} << (sequence_bits + copy_bits) | (first + i), tokens});
    }
    all_tokens += tokens;
    weight += std::max(1u, tokens);
  }
  rows_ += rows;
  tokens_ += all_tokens;
  weight_ += weight;
  if (!scores) {
    groups_[0].corpus_documents += rows;
    groups_[0].corpus_tokens += all_tokens;
  }
}

void Dataset::check_choice(const char* what, Span span, std::uint64_t total) const {
  if (!sorter_) throw std::logic_error("only a scored dataset has ranks, once");
  if (span.first > span.last || span.last > total)
    throw std::invalid_argument(std::string(what) + " " + std::to_string(span.first) + " to " +
                                std::to_string(span.last) + " of " + std::to_string(total));
}

void Dataset::keep(std::uint64_t first, std::uint64_t last) {
  check_choice("ranks", {first, last}, rows_);
  // Dropped rows are the lowest: tenths and percentiles are of the whole corpus, with them.
  first += dropped_;
  last += dropped_;
  rows_ += dropped_;
  if (sorter_->in_memory()) return keep_in_memory(first, last);
  Ranks ranks(rows_, first, last, groups_.size());
  rows_ = last - first;
  auto kept = std::make_unique<Store>(workshop_.memory, workshop_.chosen, rows_);
  Entry entry;
  sorter_->drain([&](const ScoredRow& row) {
    if (ranks.next(row, entry)) kept->append(entry);
  });
  sorter_.reset();
  store_ = std::move(kept);
  store_->finish();
  ::curriculum::add(groups_, ranks.groups);
  tokens_ = ranks.tokens;
}

// In place, as an entry is shorter than the row that it was made from, and so never reaches a row not yet read; or, into
// a block that the sort has left, by all threads.
void Dataset::keep_in_memory(std::uint64_t first, std::uint64_t last) {
  const std::uint64_t size = rows_;
  Buffer sorted = sorter_->take(), kept;
  sorter_.reset();
  rows_ = last - first;
  Memory& memory = workshop_.memory;
  const bool apart = size >= parallel_from && workshop_.threads > 1 && memory.spare_bytes() >= rows_ * sizeof(Entry);
  if (apart) {
    memory.hold(sorted.bytes());
    kept = memory.take(rows_ * sizeof(Entry));
  }
  const char* from = sorted.as<char>();
  char* to = (apart ? kept : sorted).as<char>();
  const auto key = [&](std::uint64_t rank) {
    ScoredRow row;
    std::memcpy(&row, from + rank * sizeof row, sizeof row);
    return row.key;
  };
  const std::size_t pieces = apart ? workshop_.threads : 1;
  std::vector<Ranks> found(pieces, Ranks(size, first, last, groups_.size()));
  in_pieces(size, pieces, workshop_.threads, 1, [&](std::size_t piece, std::uint64_t begin, std::uint64_t end) {
    Ranks ranks(size, first, last, groups_.size(), begin, begin ? key(begin - 1) : 0);
    char* place = to + (std::clamp(begin, first, last) - first) * sizeof(Entry);
    Entry entry;
    for (std::uint64_t rank = begin; rank < end; ++rank) {
      ScoredRow row;
      std::memcpy(&row, from + rank * sizeof row, sizeof row);
      if (!ranks.next(row, entry)) continue;
      std::memcpy(place, &entry, sizeof entry);
      place += sizeof entry;
    }
    found[piece] = ranks;
  });
  tokens_ = 0;
  for (const Ranks& ranks : found) {
    ::curriculum::add(groups_, ranks.groups);
    tokens_ += ranks.tokens;
  }
  if (apart) {
    memory.release(kept.bytes());
    memory.give_back(std::move(sorted));
  }
  store_ = std::make_unique<Store>(memory, workshop_.chosen, std::move(apart ? kept : sorted), rows_);
}

void Dataset::keep_tokens(Span span) {
  check_choice("tokens", span, weight_);
  const std::uint64_t all = rows_ + dropped_;
  Ranks ranks(all, dropped_, all, groups_.size());
  auto kept = std::make_unique<Store>(workshop_.memory, workshop_.chosen, all);
  std::uint64_t end = 0;
  tokens_ = 0;
  Entry entry;
  sorter_->drain([&](const ScoredRow& row) {
    if (!ranks.next(row, entry)) return;
    end += std::max(1u, row.tokens);
    if (end <= span.first || end > span.last) return;
    if (kept->size() == 0) entry.tail = row.tokens;  // tied with a row that went
    kept->append(entry);
    tokens_ += row.tokens;
  });
  sorter_.reset();
  store_ = std::move(kept);
  store_->finish();
  rows_ = store_->size();
  ::curriculum::add(groups_, ranks.groups);
}

std::vector<Measured> Dataset::measure(const std::vector<Span>& spans, bool by_tokens) {
  for (const Span& span : spans)
    check_choice(by_tokens ? "tokens" : "ranks", span, by_tokens ? weight_ : rows_);
  std::vector<Measured> found(spans.size());
  for (Measured& measured : found) measured.lowest = measured.highest = score_of(lowest_key);
  std::uint64_t rank = 0, end = 0;
  sorter_->drain([&](const ScoredRow& row) {
    if (rank++ < dropped_) return;
    const std::uint64_t begin = end;
    end += by_tokens ? std::max(1u, row.tokens) : 1;
    for (std::size_t i = 0; i < spans.size(); ++i) {
      if (end <= spans[i].first || end > spans[i].last) continue;
      Measured& measured = found[i];
      if (measured.documents++ == 0) {
        measured.begin = begin;
        measured.lowest = score_of(row.key);
      }
      measured.tokens += row.tokens;
      measured.end = end;
      measured.highest = score_of(row.key);
    }
  });
  sorter_.reset();
  store_ = std::make_unique<Store>(workshop_.memory, workshop_.chosen, 0);
  rows_ = tokens_ = 0;
  return found;
}

void Dataset::finish_adding() {
  if (sorter_) throw std::logic_error("keep comes first");
  if (indexed()) throw std::logic_error("the dataset has its copies already");
  store_->finish();
}

// Rows that `take` takes, in their order. Where the first of some equal scores goes, the next is first.
template <typename Take>
void Dataset::filter(std::uint64_t expected, const Take& take) {
  auto kept = std::make_unique<Store>(workshop_.memory, workshop_.chosen, expected);
  tokens_ = 0;
  bool follows = false;  // a row with the same score was taken
  store_->for_each([&](Entry entry) {
    follows = follows && entry.tied();
    if (!take(entry)) return;
    entry.tail = static_cast<std::uint32_t>(follows) << 31 | entry.tokens();
    follows = true;
    kept->append(entry);
    tokens_ += entry.tokens();
  });
  kept->finish();
  rows_ = kept->size();
  store_ = std::move(kept);
}

// The bound below which the draws of rows lie that together weigh `target`, or as little more as can be: the sums of
// 2^16 ranges of the draws show in which range the bound is, and the rows in that one are sorted.
template <typename Weight>
std::uint64_t Dataset::draw_below(const Draws& draw, std::uint64_t target, const Weight& weight) const {
  if (target == 0) return 0;
  constexpr unsigned range_bits = 16;
  std::vector<std::uint64_t> sums(std::size_t{1} << range_bits);
  store_->for_each([&](const Entry& entry) { sums[draw(entry.sequence()) >> (64 - range_bits)] += weight(entry); });
  std::size_t range = 0;
  for (; range < sums.size() && sums[range] < target; ++range) target -= sums[range];
  if (range == sums.size())
    throw std::invalid_argument("more is asked of the dataset than it holds, by " + std::to_string(target));
  std::vector<std::pair<std::uint64_t, std::uint64_t>> candidates;
  store_->for_each([&](const Entry& entry) {
    const std::uint64_t drawn = draw(entry.sequence());
    if (drawn >> (64 - range_bits) == range) candidates.emplace_back(drawn, weight(entry));
  });
  std::sort(candidates.begin(), candidates.end());
  for (const auto& [drawn, weighs] : candidates) {
    if (weighs >= target) return drawn + 1;  // only the very last draw of 2^64 would be lost
    target -= weighs;
  }
  return 0;
}

void Dataset::keep_random(std::uint64_t count) {
  finish_adding();
  if (count > rows_)
    throw std::invalid_argument(std::to_string(count) + " documents asked of " + std::to_string(rows_));
  const std::uint64_t below = draw_below(keep_draws_, count, [](const Entry&) { return std::uint64_t{1}; });
  filter(count, [&](const Entry& entry) { return keep_draws_(entry.sequence()) < below; });
}

void Dataset::repeat(std::uint64_t whole, double probability) {
  if (!(probability >= 0 && probability < 1))
    throw std::invalid_argument("probability is " + std::to_string(probability) + "; it must be in [0, 1)");
  finish_adding();
  // uniform(draw) < probability, as a bound of the draw: a whole number below x is one below the next whole number.
  const auto below = static_cast<std::uint64_t>(std::ceil(probability * 0x1.0p53)) << 11;
  const double expected = static_cast<double>(rows_) * (static_cast<double>(whole) + probability);
  expand(whole, below, static_cast<std::uint64_t>(expected) + 1);
}

void Dataset::repeat_to(std::uint64_t whole, std::uint64_t extra_tokens) {
  finish_adding();
  const std::uint64_t below = draw_below(repeat_draws_, extra_tokens, [](const Entry& e) { return std::uint64_t{e.tokens()}; });
  const double part = tokens_ ? static_cast<double>(extra_tokens) / static_cast<double>(tokens_) : 0;
  expand(whole, below, static_cast<std::uint64_t>(static_cast<double>(rows_) * (static_cast<double>(whole) + part)) + 1);
}

void Dataset::expand(std::uint64_t whole, std::uint64_t extra_below, std::uint64_t expected) {
  if (whole >= most_copies)
    throw std::invalid_argument(std::to_string(whole) + " copies; there can be " + std::to_string(most_copies - 1));
  if (by_score() && whole + (extra_below > 0) <= 1) {  // in order as they are
    if (!whole) filter(expected, [&](const Entry& e) { return repeat_draws_(e.sequence()) < extra_below; });
  } else {
    sort_copies(whole, extra_below, expected);
  }
  index();
}

// Copies of rows with equal scores come in the order of a hash of (sequence, copy); without scores, so do all.
void Dataset::sort_copies(std::uint64_t whole, std::uint64_t extra_below, std::uint64_t expected) {
  const bool grouped = by_score();
  std::unique_ptr<Store> ordered;
  const auto make_ordered = [&] {
    ordered = std::make_unique<Store>(workshop_.memory, workshop_.ordered, expected);
  };
  if (grouped) make_ordered();
  EntrySorter sorter(workshop_.memory, workshop_.runs, ByDraw{grouped ? tie_draws_ : row_draws_}, workshop_.threads,
                     grouped ? 0 : expected);
  const auto drain = [&] { sorter.drain([&](const Entry& entry) { ordered->append(entry); }); };
  const auto add_in_turn = [&](Entry entry) {
    if (grouped && !entry.tied()) drain();
    const std::uint64_t copies = whole + (repeat_draws_(entry.sequence()) < extra_below);
    for (std::uint64_t copy = 0; copy < copies; ++copy, entry.word += sequence_mask + 1) sorter.add(entry);
  };
  if (grouped || !add_copies(sorter, whole, extra_below)) store_->for_each(add_in_turn);
  store_.reset();
  if (!grouped && sorter.in_memory()) {
    const std::uint64_t size = sorter.size();
    store_ = std::make_unique<Store>(workshop_.memory, workshop_.ordered, sorter.take(), size);
    return;
  }
  if (!ordered) make_ordered();
  drain();
  ordered->finish();
  store_ = std::move(ordered);
}

// All copies by all threads, each those of its part of the rows; false where rows or copies are not in memory.
bool Dataset::add_copies(EntrySorter& sorter, std::uint64_t whole, std::uint64_t extra_below) {
  if (!store_->resident()) return false;
  const Entry* rows = store_->rows();
  const auto copies = [&](const Entry& entry) { return whole + (repeat_draws_(entry.sequence()) < extra_below); };
  const std::size_t pieces = store_->size() < parallel_from ? 1 : workshop_.threads;
  std::vector<std::uint64_t> starts(pieces + 1);
  const auto each_piece = [&](const auto& task) { in_pieces(store_->size(), pieces, workshop_.threads, 1, task); };
  each_piece([&](std::size_t piece, std::uint64_t first, std::uint64_t last) {
    std::uint64_t count = extra_below ? 0 : (last - first) * whole;
    if (extra_below)
      for (std::uint64_t row = first; row < last; ++row) count += copies(rows[row]);
    starts[piece + 1] = count;
  });
  for (std::size_t piece = 0; piece < pieces; ++piece) starts[piece + 1] += starts[piece];
  Entry* const to = sorter.extend(starts[pieces]);
  if (!to) return false;
  each_piece([&](std::size_t piece, std::uint64_t first, std::uint64_t last) {
    Entry* place = to + starts[piece];
    for (std::uint64_t row = first; row < last; ++row) {
      Entry entry = rows[row];
      const std::uint64_t count = extra_below ? copies(entry) : whole;
      for (std::uint64_t copy = 0; copy < count; ++copy, entry.word += sequence_mask + 1) *place++ = entry;
    }
  });
  return true;
}

// One pass over the finished rows.
void Dataset::index() {
  rows_ = store_->size();
  const std::uint64_t blocks = (rows_ + stride - 1) / stride;
  tokens_before_.assign(blocks + 1, 0);
  weight_before_.assign(blocks + 1, 0);
  const std::size_t pieces = store_->resident() && rows_ >= parallel_from ? workshop_.threads : 1;
  std::vector<std::vector<Group>> found(pieces, std::vector<Group>(groups_.size()));
  in_pieces(rows_, pieces, workshop_.threads, stride, [&](std::size_t piece, std::uint64_t first, std::uint64_t last) {
    std::vector<Group> groups(groups_.size());
    Reader reader(*store_, piece_rows);
    for (std::uint64_t row = first; row < last;) {
      const auto [entries, count] = reader.from(row);
      const std::uint64_t end = std::min({last, row + count, (row / stride + 1) * stride});
      std::uint64_t tokens = 0, weight = 0;
      for (std::uint64_t i = 0; i < end - row; ++i) {
        const Entry entry = entries[i];
        tokens += entry.tokens();
        weight += std::max(1u, entry.tokens());
        Group& group = groups[entry.percentile() == unscored ? 0 : entry.percentile() * groups.size() / percentiles];
        ++group.documents;
        group.tokens += entry.tokens();
      }
      tokens_before_[row / stride + 1] += tokens;
      weight_before_[row / stride + 1] += weight;
      row = end;
    }
    found[piece] = groups;
  });
  for (const auto& groups : found) ::curriculum::add(groups_, groups);
  for (std::uint64_t block = 0; block < blocks; ++block) {
    tokens_before_[block + 1] += tokens_before_[block];
    weight_before_[block + 1] += weight_before_[block];
  }
  tokens_ = tokens_before_.back();
  workshop_.memory.hold((tokens_before_.capacity() + weight_before_.capacity()) * sizeof tokens_);
}

}  // namespace curriculum
