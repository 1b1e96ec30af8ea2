#include "run_merge.h"

#include "../common/index_format.h"

namespace dedup {

RunMerge::RunMerge(const std::vector<Run>& runs, std::uint64_t memory) {
  constexpr std::uint64_t entry_bytes = 12, most = std::uint64_t{1} << 16;
  const std::uint64_t piece = memory / entry_bytes / std::max<std::size_t>(runs.size(), 1);
  for (const Run& run : runs) readers_.emplace_back(run, static_cast<std::size_t>(std::clamp<std::uint64_t>(piece, 1, most)));
}

bool RunMerge::Reader::fill() {
  const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(piece_, run_.count - read_));
  if (count == 0) return false;
  const std::uint64_t before = keys_.empty() ? 0 : keys_.back();
  keys_.resize(count);
  rows_.resize(count);
  try {
    const corpus_index::File file = corpus_index::File::open(run_.path);
    file.read(keys_.data(), count * 8, run_.offset + read_ * 8);
    file.read(rows_.data(), count * 4, run_.offset + run_.count * 8 + read_ * 4);
  } catch (const corpus_index::FormatError& error) {
    throw corpus_index::FormatError(run_.path + ": " + error.what());
  }
  if (keys_.front() < before || !std::is_sorted(keys_.begin(), keys_.end()))
    throw std::invalid_argument(run_.path + ": its keys are not sorted");
  read_ += count;
  at_ = 0;
  return true;
}

bool RunMerge::Reader::advance() {
  if (++at_ < keys_.size()) return true;
  return fill();
}

}  // namespace dedup
