// A supervised fastText model applied to documents.
//
// The library averages the input rows of all words, word n-grams and character n-grams, and multiplies the average by
// the output matrix. Both are linear: the product of each input row with the output matrix is formed once, when the
// model is read, and a document costs one short sum a row (Joulin et al. 2017, "Bag of Tricks for Efficient Text
// Classification", has the model). In a softmax only differences count: two labels need one number a row. Where the
// labels are more than the columns, the rows stay as they are.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "fasttext_file.h"

namespace scores {

class LinearModel {
 public:
  explicit LinearModel(const std::string& path);

  const std::vector<std::string>& labels() const { return labels_; }

  // Probability of each label for one document, all its line breaks as spaces: `labels` numbers, NaN where it has
  // nothing that the model knows. As in the library, the word </s> ends a document, and words that begin with
  // __label__ are left out. A second thread waits.
  void probabilities(std::string_view text, double* into);

 private:
  struct Slot {
    std::uint32_t hash;
    std::int32_t word;          // -1: free; words first, then labels
    std::uint32_t start, size;  // in texts_
  };

  void collapse(FastTextFile& file);
  void add_entries(const FastTextFile& file);
  void sum_subwords(const std::vector<std::string>& words);
  std::int32_t find(std::string_view word, std::uint32_t hash) const;
  std::int64_t row_of_bucket(std::uint64_t hash) const;
  template <typename Visit>
  void for_each_subword(std::string_view word, Visit visit) const;
  void collect_rows(std::string_view text);
  bool add_word(std::string_view word, std::uint32_t hash);
  void add_word_ngrams();
  void finish(double* into) const;
  void finish_tree(double* into) const;
  void build_tree(const std::vector<std::int64_t>& counts);

  Settings settings_;
  std::vector<std::string> labels_;
  std::int64_t words_ = 0;
  bool is_pruned_ = false;
  std::unordered_map<std::int32_t, std::int32_t> kept_buckets_;

  // The dictionary: texts one after another, and a hash table with free slots.
  std::string texts_;
  std::vector<Slot> slots_;

  std::int64_t width_ = 0;             // numbers a row
  bool collapsed_ = false;             // rows are logits, else vectors of dim
  std::vector<float> rows_;            // [rows, width]; a word's row has its subwords' added
  std::vector<std::int32_t> weights_;  // by word, how many rows its row stands for
  std::vector<float> output_;          // [outputs, dim]
  struct Branch {
    std::int32_t left, right;
  };
  std::vector<Branch> tree_;  // inner nodes of the hierarchical softmax; children before parents, leaves are labels

  // Of the document at hand.
  std::mutex mutex_;
  std::vector<std::int64_t> found_;
  std::vector<std::uint32_t> hashes_;
  std::int64_t known_ = 0;
  std::vector<double> sums_;
  std::string bracketed_;
};

}  // namespace scores
