#include "algorithm1.h"

namespace curriculum {

Builder::Builder(const std::string& folder, std::uint64_t memory, bool shuffle, unsigned threads)
    : workshop_{Memory(memory), threads, ScratchFile(folder + "/scratch.runs"), ScratchFile(folder + "/scratch.chosen"),
                ScratchFile(folder + "/scratch.ordered")},
      shuffle_(shuffle) {}

void Builder::begin(bool scored, std::uint64_t choice_seed, std::uint64_t order_seed, std::uint64_t expected) {
  if (datasets_.size() == most_datasets)
    throw std::invalid_argument("an order holds at most " + std::to_string(most_datasets) + " datasets");
  if (!datasets_.empty()) last().close();
  const DatasetSettings settings{scored, shuffle_, choice_seed, order_seed};
  datasets_.push_back(std::make_unique<Dataset>(workshop_, settings, expected));
}

void Builder::add(std::uint64_t first, const std::int32_t* lengths, const double* scores, std::size_t size,
                  bool drop_missing) {
  last().add(first, lengths, scores, size, drop_missing);
}

Dataset& Builder::last() const {
  if (datasets_.empty()) throw std::logic_error("no dataset has begun");
  return *datasets_.back();
}

Dataset& Builder::complete(std::size_t number) {
  last().close();
  return *datasets_.at(number);
}

Profile Builder::interleave(const std::string& folder, bool by_tokens, double perturb, std::uint64_t buckets,
                            std::size_t window_rows, const std::function<void(std::uint64_t)>& progress) {
  const RankBy rank_by = shuffle_ ? RankBy::draw : by_tokens ? RankBy::tokens : RankBy::documents;
  workshop_.memory.drop_spare();
  const InterleaveSettings settings{rank_by, perturb, workshop_.threads, window_rows, buckets};
  return curriculum::interleave(datasets_, workshop_.memory, settings, folder, progress);
}

}  // namespace curriculum
