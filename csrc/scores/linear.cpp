#include "linear.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace scores {
namespace {

constexpr std::string_view end_of_line = "</s>", label_prefix = "__label__";

// FNV-1a, with the library's fault: a byte is extended with its sign, so that letters beyond ASCII hash otherwise.
struct Hash {
  std::uint32_t value = 2166136261U;
  void add(char letter) { value = (value ^ static_cast<std::uint32_t>(static_cast<std::int8_t>(letter))) * 16777619U; }
};

std::uint32_t hash_of(std::string_view text) {
  Hash hash;
  for (const char letter : text) hash.add(letter);
  return hash.value;
}

bool is_space(char letter) { return letter == ' ' || (letter >= '\t' && letter <= '\r') || letter == '\0'; }

// Hashes are extended with their sign, as the library's int32 are.
std::uint64_t extended(std::uint32_t hash) {
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(static_cast<std::int32_t>(hash)));
}

// The library's sigmoid: a table of 512 steps over [-8, 8], rounded down to a step.
double stepped_sigmoid(double value) {
  constexpr int steps = 512, limit = 8;
  static const std::array<double, steps + 1> table = [] {
    std::array<double, steps + 1> made{};
    for (int step = 0; step <= steps; ++step)
      made[static_cast<std::size_t>(step)] = 1.0 / (1.0 + std::exp(limit - 2.0 * limit * step / steps));
    return made;
  }();
  if (value < -limit) return 0.0;
  if (value > limit) return 1.0;
  return table[static_cast<std::size_t>((static_cast<float>(value) + limit) * steps / limit / 2)];
}

}  // namespace

LinearModel::LinearModel(const std::string& path) {
  FastTextFile file = read_fasttext(path);
  settings_ = file.settings;
  labels_ = file.labels;
  words_ = static_cast<std::int64_t>(file.words.size());
  is_pruned_ = file.is_pruned;
  kept_buckets_ = std::move(file.kept_buckets);
  if (settings_.loss == Loss::hierarchical) build_tree(file.label_counts);
  add_entries(file);
  collapse(file);
  sum_subwords(file.words);
  sums_.resize(static_cast<std::size_t>(width_));
}

void LinearModel::collapse(FastTextFile& file) {
  const std::int64_t dim = settings_.dim;
  file.output->for_each(
      [&](std::int64_t, const float* values) { output_.insert(output_.end(), values, values + dim); });
  if (!std::all_of(output_.begin(), output_.end(), [](float value) { return std::isfinite(value); })) {
    throw FormatError("is damaged: a weight is not a number");
  }
  if (settings_.loss == Loss::softmax) {  // the first label's logit becomes 0
    for (std::size_t index = output_.size(); index-- > 0;)
      output_[index] -= output_[index % static_cast<std::size_t>(dim)];
    output_.erase(output_.begin(), output_.begin() + dim);
  }
  const auto outputs = static_cast<std::int64_t>(output_.size()) / dim;
  collapsed_ = outputs < dim;
  width_ = collapsed_ ? outputs : dim;
  rows_.reserve(static_cast<std::size_t>(file.input->count * width_));
  file.input->for_each([&](std::int64_t, const float* values) {
    double total = 0;
    for (std::int64_t column = 0; column < width_; ++column) {
      double value = 0;
      if (collapsed_) {
        const float* weights = output_.data() + column * dim;
        for (std::int64_t index = 0; index < dim; ++index) value += double{weights[index]} * double{values[index]};
      } else {
        value = double{values[column]};
      }
      total += value;
      rows_.push_back(static_cast<float>(value));
    }
    if (!std::isfinite(total)) throw FormatError("is damaged: a weight is not a number");
  });
}

void LinearModel::add_entries(const FastTextFile& file) {
  std::size_t size = 16;
  while (size < 2 * (file.words.size() + file.labels.size())) size *= 2;
  slots_.assign(size, Slot{0, -1, 0, 0});
  std::int32_t next = 0;
  for (const auto* entries : {&file.words, &file.labels}) {
    for (const std::string& text : *entries) {
      const std::uint32_t hash = hash_of(text);
      std::size_t slot = hash & (size - 1);
      while (slots_[slot].word >= 0) slot = (slot + 1) & (size - 1);
      slots_[slot] = {hash, next++, static_cast<std::uint32_t>(texts_.size()), static_cast<std::uint32_t>(text.size())};
      texts_ += text;
      if (texts_.size() > UINT32_MAX) throw FormatError("has a dictionary of more than 4 GiB, which is not read");
    }
  }
}

std::int32_t LinearModel::find(std::string_view word, std::uint32_t hash) const {
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t slot = hash & mask;; slot = (slot + 1) & mask) {
    const Slot& held = slots_[slot];
    if (held.word < 0) return -1;
    if (held.hash == hash && std::string_view(texts_).substr(held.start, held.size) == word) return held.word;
  }
}

std::int64_t LinearModel::row_of_bucket(std::uint64_t hash) const {
  const auto bucket = static_cast<std::int32_t>(hash % static_cast<std::uint64_t>(settings_.bucket));
  if (!is_pruned_) return words_ + bucket;
  const auto kept = kept_buckets_.find(bucket);
  return kept == kept_buckets_.end() ? -1 : words_ + kept->second;
}

// Calls visit(row) for the character n-grams of <word>, of min to max characters, but a single < or >.
template <typename Visit>
void LinearModel::for_each_subword(std::string_view word, Visit visit) const {
  const auto continues = [&](std::size_t at) { return (static_cast<unsigned char>(word[at]) & 0xC0U) == 0x80U; };
  for (std::size_t first = 0; first < word.size(); ++first) {
    if (continues(first)) continue;
    Hash hash;
    std::size_t at = first;
    for (std::int32_t length = 1; at < word.size() && length <= settings_.max_characters; ++length) {
      hash.add(word[at++]);
      while (at < word.size() && continues(at)) hash.add(word[at++]);
      if (length < settings_.min_characters || (length == 1 && (first == 0 || at == word.size()))) continue;
      if (const std::int64_t row = row_of_bucket(hash.value); row >= 0) visit(row);
    }
  }
}

void LinearModel::sum_subwords(const std::vector<std::string>& words) {
  weights_.assign(words.size(), 1);
  if (!settings_.has_subwords()) return;
  std::vector<double> sum(static_cast<std::size_t>(width_));
  for (std::size_t word = 0; word < words.size(); ++word) {
    if (words[word] == end_of_line) continue;
    float* row = rows_.data() + static_cast<std::int64_t>(word) * width_;
    std::copy(row, row + width_, sum.begin());
    for_each_subword('<' + words[word] + '>', [&](std::int64_t part) {
      const float* values = rows_.data() + part * width_;
      for (std::size_t column = 0; column < sum.size(); ++column) sum[column] += double{values[column]};
      ++weights_[word];
    });
    std::transform(sum.begin(), sum.end(), row, [](double value) { return static_cast<float>(value); });
  }
}

// False at the end of the line.
bool LinearModel::add_word(std::string_view word, std::uint32_t hash) {
  const std::int32_t index = find(word, hash);
  if (index >= words_) return true;  // a label
  if (index < 0 && word.substr(0, label_prefix.size()) == label_prefix) return true;
  hashes_.push_back(hash);
  if (index >= 0) {
    found_.push_back(index);
    known_ += weights_[static_cast<std::size_t>(index)];
  } else if (settings_.has_subwords() && word != end_of_line) {
    bracketed_.assign(1, '<').append(word).append(1, '>');
    for_each_subword(bracketed_, [&](std::int64_t row) {
      found_.push_back(row);
      ++known_;
    });
  }
  return word != end_of_line;
}

void LinearModel::add_word_ngrams() {
  if (is_pruned_ && kept_buckets_.empty()) return;
  const auto longest = static_cast<std::size_t>(std::max(settings_.word_ngrams, 1));
  for (std::size_t first = 0; first < hashes_.size(); ++first) {
    std::uint64_t hash = extended(hashes_[first]);
    const std::size_t end = std::min(hashes_.size(), first + longest);
    for (std::size_t at = first + 1; at < end; ++at) {
      hash = hash * 116049371U + extended(hashes_[at]);
      const std::int64_t row = row_of_bucket(hash);
      if (row < 0) continue;
      found_.push_back(row);
      ++known_;
    }
  }
}

void LinearModel::collect_rows(std::string_view text) {
  found_.clear();
  hashes_.clear();
  known_ = 0;
  bool open = true;
  for (std::size_t at = 0; open;) {
    while (at < text.size() && is_space(text[at])) ++at;
    if (at == text.size()) break;
    const std::size_t start = at;
    Hash hash;
    while (at < text.size() && !is_space(text[at])) hash.add(text[at++]);
    open = add_word(text.substr(start, at - start), hash.value);
  }
  if (open) add_word(end_of_line, hash_of(end_of_line));
  if (settings_.word_ngrams > 1) add_word_ngrams();
}

void LinearModel::probabilities(std::string_view text, double* into) {
  const std::lock_guard lock(mutex_);
  collect_rows(text);
  if (known_ == 0) {
    std::fill(into, into + labels_.size(), std::numeric_limits<double>::quiet_NaN());
    return;
  }
  std::fill(sums_.begin(), sums_.end(), 0.0);
  if (width_ == 1) {
    double sum = 0;
    for (const std::int64_t row : found_) sum += double{rows_[static_cast<std::size_t>(row)]};
    sums_[0] = sum;
  } else {
    for (const std::int64_t row : found_) {
      const float* values = rows_.data() + row * width_;
      for (std::int64_t column = 0; column < width_; ++column)
        sums_[static_cast<std::size_t>(column)] += double{values[column]};
    }
  }
  for (double& sum : sums_) sum /= static_cast<double>(known_);
  finish(into);
}

// From averages to probabilities.
void LinearModel::finish(double* into) const {
  const std::size_t outputs = output_.size() / static_cast<std::size_t>(settings_.dim);
  const bool softmax = settings_.loss == Loss::softmax;
  double* logits = into + (softmax ? 1 : 0);
  for (std::size_t label = 0; label < outputs; ++label) {
    logits[label] = 0;
    if (collapsed_) {
      logits[label] = sums_[label];
    } else {
      const float* weights = output_.data() + label * static_cast<std::size_t>(settings_.dim);
      for (std::size_t column = 0; column < sums_.size(); ++column)
        logits[label] += sums_[column] * double{weights[column]};
    }
  }
  if (softmax) {
    into[0] = 0;
    const double largest = *std::max_element(into, into + labels_.size());
    double total = 0;
    for (std::size_t label = 0; label < labels_.size(); ++label) total += into[label] = std::exp(into[label] - largest);
    for (std::size_t label = 0; label < labels_.size(); ++label) into[label] /= total;
  } else if (settings_.loss == Loss::hierarchical) {
    finish_tree(into);
  } else {
    for (std::size_t label = 0; label < labels_.size(); ++label) into[label] = stepped_sigmoid(into[label]);
  }
}

// A label's probability is the product over the branches from the root: the sigmoid of a node's logit to the right.
void LinearModel::finish_tree(double* into) const {
  const std::size_t leaves = labels_.size();
  std::vector<double> probability(leaves + tree_.size());
  probability.back() = 1.0;
  for (std::size_t node = tree_.size(); node-- > 0;) {
    const double right = 1.0 / (1.0 + std::exp(-into[node])), here = probability[leaves + node];
    probability[static_cast<std::size_t>(tree_[node].left)] = here * (1.0 - right);
    probability[static_cast<std::size_t>(tree_[node].right)] = here * right;
  }
  std::copy_n(probability.begin(), leaves, into);
}

// The Huffman tree of the labels' counts, which fall: the two smallest of the leaves and of the nodes made so far.
void LinearModel::build_tree(const std::vector<std::int64_t>& counts) {
  const auto leaves = static_cast<std::int64_t>(counts.size());
  std::vector<std::int64_t> node_counts(counts);
  std::int64_t leaf = leaves - 1, node = leaves;
  const auto smallest = [&] {
    const bool nodes_left = node < static_cast<std::int64_t>(node_counts.size());
    if (leaf >= 0 &&
        (!nodes_left || node_counts[static_cast<std::size_t>(leaf)] < node_counts[static_cast<std::size_t>(node)]))
      return leaf--;
    return node++;
  };
  for (std::int64_t made = 0; made + 1 < leaves; ++made) {
    const std::int64_t left = smallest(), right = smallest();
    tree_.push_back({static_cast<std::int32_t>(left), static_cast<std::int32_t>(right)});
    node_counts.push_back(node_counts[static_cast<std::size_t>(left)] + node_counts[static_cast<std::size_t>(right)]);
  }
}

}  // namespace scores
