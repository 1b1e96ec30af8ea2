// One dataset of a phase, from its scores to its rows in rising order: steps 1 and 2 of Algorithm 1 (algorithm1.h), with
// the choice of documents and their repetition between them.
//
// The calls come in this order: add..., then keep (scored) and keep_random, then repeat.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "../common/hash.h"
#include "../common/sorter.h"
#include "../common/store.h"

namespace curriculum {

// What all datasets of a build share. Sorts write their runs to one scratch file, chosen rows go to a second one, and
// rows in their final order to a third: each is appended to by one at a time.
struct Workshop {
  Memory memory;
  unsigned threads;
  ScratchFile runs, chosen, ordered;
};

struct DatasetSettings {
  bool scored;
  bool shuffle;               // the phase's order takes no notice of scores
  std::uint64_t choice_seed;  // ties of scores: one for all phases, so that top fractions are nested
  std::uint64_t order_seed;   // everything else: of this phase alone
};

// Documents and tokens of one tenth of a corpus by score, once in the corpus and with every copy in the phase. Documents
// without a score are the lowest of the corpus, also where the phase drops them.
struct Group {
  std::uint64_t documents, tokens, corpus_documents, corpus_tokens;
};

// A row of a scored dataset ends where it and all rows before it, ascending by score, end: counted in rows, or in tokens,
// where an empty document counts one. It is in the span where its end is in (first, last].
struct Span {
  std::uint64_t first, last;
};

// The rows of a span: from where the first begins to where the last ends. Scores are NaN for an empty span.
struct Measured {
  std::uint64_t documents = 0, tokens = 0, begin = 0, end = 0;
  double lowest, highest;
};

class Dataset {
 public:
  Dataset(Workshop& workshop, const DatasetSettings& settings, std::uint64_t expected);

  // Documents first, first + 1, ... of the corpus. `scores` is null for an unscored dataset. A NaN is a missing score: it
  // is counted, and the document ranks below all scored ones; with `drop_missing` it is not kept either.
  // Throws std::invalid_argument for a negative length or a sequence of 2^48 or more.
  void add(std::uint64_t first, const std::int32_t* lengths, const double* scores, std::size_t size, bool drop_missing);

  // Nothing is added after this, so that another dataset may begin.
  void close() {
    if (store_) store_->finish();
  }

  // Rows of the dataset so far: what was added, less what was dropped; after a choice, what it left.
  std::uint64_t rows() const { return rows_; }
  std::uint64_t tokens() const { return tokens_; }
  std::uint64_t missing() const { return missing_; }
  // Their tokens, where an empty document counts one; until a choice is made.
  std::uint64_t weight() const { return weight_; }

  // Of a scored dataset: keeps ranks [first, last), from 0, ascending by score. Equal scores are in the order of a hash.
  void keep(std::uint64_t first, std::uint64_t last);
  // As keep, by tokens: the rows of a span of them.
  void keep_tokens(Span span);
  // Of a scored dataset: what each span holds. The dataset is empty after this.
  std::vector<Measured> measure(const std::vector<Span>& spans, bool by_tokens);
  // Keeps exactly `count` rows: those with the lowest draws.
  void keep_random(std::uint64_t count);

  // Takes every row `whole` times, and once more those whose draw is below the part `probability`, in [0, 1); then puts
  // the copies in their final order.
  void repeat(std::uint64_t whole, double probability);
  // As above, but once more those with the lowest draws, as few as hold `extra_tokens` together.
  void repeat_to(std::uint64_t whole, std::uint64_t extra_tokens);

  // From here on for finished datasets. `positions` reads: tokens (a document counts at least one) before every
  // stride-th row, and in all.
  static constexpr std::uint64_t stride = 1024;
  const Store& store() const { return *store_; }
  const std::vector<std::uint64_t>& tokens_before() const { return tokens_before_; }
  const std::vector<std::uint64_t>& weight_before() const { return weight_before_; }
  const std::vector<Group>& groups() const { return groups_; }  // ten, ascending; one of an unscored dataset
  const Draws& row_draws() const { return row_draws_; }

 private:
  // Score, then hash.
  struct ByScore {
    static constexpr unsigned levels = 2;
    static constexpr std::size_t buckets_for_each_row = 2;
    static constexpr bool is_hash(unsigned level) { return level == 1; }
    Draws tie;
    std::uint64_t operator()(const ScoredRow& row, unsigned level) const {
      return level == 0 ? row.key : tie(row.sequence);
    }
  };
  struct ByDraw {
    static constexpr unsigned levels = 2;
    static constexpr std::size_t buckets_for_each_row = 2;
    static constexpr bool is_hash(unsigned level) { return level == 0; }
    Draws draw;
    std::uint64_t operator()(const Entry& entry, unsigned level) const {
      return level == 0 ? draw(entry.row()) : entry.row();
    }
  };
  using ScoreSorter = Sorter<ScoredRow, ByScore>;
  using EntrySorter = Sorter<Entry, ByDraw>;

  bool indexed() const { return !tokens_before_.empty(); }
  bool by_score() const { return settings_.scored && !settings_.shuffle; }
  void check_choice(const char* what, Span span, std::uint64_t total) const;
  void finish_adding();
  template <typename Take>
  void filter(std::uint64_t expected, const Take& take);
  template <typename Weight>
  std::uint64_t draw_below(const Draws& draw, std::uint64_t target, const Weight& weight) const;
  void expand(std::uint64_t whole, std::uint64_t extra_below, std::uint64_t expected);
  void keep_in_memory(std::uint64_t first, std::uint64_t last);
  void sort_copies(std::uint64_t whole, std::uint64_t extra_below, std::uint64_t expected);
  bool add_copies(EntrySorter& sorter, std::uint64_t whole, std::uint64_t extra_below);
  void index();

  Workshop& workshop_;
  DatasetSettings settings_;
  Draws tie_draws_, row_draws_, keep_draws_, repeat_draws_;
  std::uint64_t rows_ = 0, tokens_ = 0, missing_ = 0, dropped_ = 0, weight_ = 0;
  std::unique_ptr<ScoreSorter> sorter_;  // until keep()
  std::unique_ptr<Store> store_;
  std::vector<Group> groups_;
  std::vector<std::uint64_t> tokens_before_, weight_before_;
};

}  // namespace curriculum
