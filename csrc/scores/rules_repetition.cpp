// Repetition: Rae et al. 2021, appendix A.1.1 and table A1.
#include "rules.h"

namespace scores {

void RuleMeasures::measure_repetition(double* into) {
  const double characters = number(points_.size());
  repeated_lines_ = repeated_lines();
  std::size_t paragraphs = 0;
  for (const Line& line : lines_) paragraphs += line.after_blank ? 1 : 0;
  const Repeats repeated = repeated_paragraphs();
  into[0] = share(number(repeated_lines_.count), number(lines_.size()));
  into[1] = share(number(repeated_lines_.characters), characters);
  into[2] = share(number(repeated.count), number(paragraphs));
  into[3] = share(number(repeated.characters), characters);
  ngrams_.resize(tokens_.size());
  for (std::size_t index = 0; index < tokens_.size(); ++index) ngrams_[index] = mixed(1, tokens_[index].hash);
  for (std::size_t length = 2; length <= 10; ++length) {
    if (ngrams_.size() > 0) ngrams_.pop_back();
    for (std::size_t index = 0; index < ngrams_.size(); ++index)
      ngrams_[index] = mixed(ngrams_[index], tokens_[index + length - 1].hash);
    into[length + 2] = share(length <= 4 ? top_ngram(length) : repeated_ngrams(length), characters);
  }
}

// Lines that were there before.
RuleMeasures::Repeats RuleMeasures::repeated_lines() {
  Repeats found;
  clear_cells(lines_.size());
  for (const Line& line : lines_) {
    if (cell_of(line.hash).count++ == 0) continue;
    ++found.count;
    found.characters += line.end - line.begin;
  }
  return found;
}

RuleMeasures::Repeats RuleMeasures::repeated_paragraphs() {
  Repeats found;
  clear_cells(lines_.size());
  for (std::size_t first = 0; first < lines_.size();) {
    std::size_t last = first;
    std::uint64_t hash = 0;
    do {
      hash = mixed(hash, lines_[last++].hash);
    } while (last < lines_.size() && !lines_[last].after_blank);
    if (cell_of(hash).count++ > 0) {
      ++found.count;
      found.characters += lines_[last - 1].end - lines_[first].begin;
    }
    first = last;
  }
  return found;
}

void RuleMeasures::clear_cells(std::size_t entries) {
  std::size_t size = 16;
  while (size < 2 * entries) size *= 2;
  cells_.assign(size, Cell{0, 0, 0});
}

// The cell of a key, made if it is new. Keys are 64-bit hashes: two different texts meet with odds of 2^-64.
RuleMeasures::Cell& RuleMeasures::cell_of(std::uint64_t key) {
  key += key == 0 ? 1 : 0;
  std::size_t at = static_cast<std::size_t>(key) & (cells_.size() - 1);
  while (cells_[at].key != 0 && cells_[at].key != key) at = (at + 1) & (cells_.size() - 1);
  cells_[at].key = key;
  return cells_[at];
}

// Characters of the most frequent n-gram, its tokens joined by one space, times how often it is there; among equals, of
// the one that comes first. Overlapping ones count each.
double RuleMeasures::top_ngram(std::size_t length) {
  if (ngrams_.empty()) return 0.0;
  clear_cells(ngrams_.size());
  Cell best{0, 0, 0};
  for (std::size_t index = 0; index < ngrams_.size(); ++index) {
    Cell& cell = cell_of(ngrams_[index]);
    if (cell.count++ == 0) cell.first = index;
    if (cell.count > best.count || (cell.count == best.count && cell.first < best.first)) best = cell;
  }
  std::size_t characters = length - 1;
  for (std::size_t token = best.first; token < best.first + length; ++token)
    characters += tokens_[token].end - tokens_[token].begin;
  return number(characters) * number(best.count);
}

// Characters of the tokens in n-grams that were there before; what one has counted, another does not.
double RuleMeasures::repeated_ngrams(std::size_t length) {
  clear_cells(ngrams_.size());
  std::size_t characters = 0;
  for (std::size_t index = 0; index < ngrams_.size();) {
    if (cell_of(ngrams_[index]).count++ == 0) {
      ++index;
      continue;
    }
    for (std::size_t token = index; token < index + length; ++token)
      characters += tokens_[token].end - tokens_[token].begin;
    index += length;
  }
  return number(characters);
}

}  // namespace scores
