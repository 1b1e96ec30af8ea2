// Threads for loops and sorts. The result never depends on how many there are.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <future>
#include <vector>

namespace curriculum {

// Call task(i) for i in [0, tasks), each once, on at most `threads` threads; an exception reaches the caller.
template <typename Task>
void parallel_for(std::size_t tasks, unsigned threads, const Task& task) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < tasks; i = next++) task(i);
  };
  std::vector<std::future<void>> helpers;
  for (std::size_t i = 1; i < std::min<std::size_t>(threads, tasks); ++i)
    helpers.push_back(std::async(std::launch::async, work));
  work();
  for (auto& helper : helpers) helper.get();
}

// Sort every group of rows, [offsets[g], offsets[g + 1]), by operator<, which must be a total order up to
// rows that are equal in every field: only then are the bytes the same for any number of threads.
template <typename Row>
void sort_groups(std::vector<Row>& rows, const std::vector<std::size_t>& offsets, unsigned threads) {
  constexpr std::size_t smallest_piece = std::size_t{1} << 15;  // below this a thread costs more than it saves
  const std::size_t piece = std::max(smallest_piece, rows.size() / std::max(1u, threads) + 1);

  struct Run {
    std::size_t first, middle, last;
    bool ends_group;
  };
  std::vector<Run> runs;
  for (std::size_t g = 0; g + 1 < offsets.size(); ++g)
    for (std::size_t first = offsets[g]; first < offsets[g + 1]; first += piece) {
      const std::size_t last = std::min(first + piece, offsets[g + 1]);
      runs.push_back({first, last, last, last == offsets[g + 1]});
    }
  const auto at = [&rows](std::size_t i) { return rows.begin() + static_cast<std::ptrdiff_t>(i); };
  parallel_for(runs.size(), threads, [&](std::size_t i) { std::sort(at(runs[i].first), at(runs[i].last)); });

  for (bool merging = true; merging;) {
    std::vector<Run> merged;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      Run run = {runs[i].first, runs[i].last, runs[i].last, runs[i].ends_group};
      if (!run.ends_group) {
        run.last = runs[++i].last;
        run.ends_group = runs[i].ends_group;
      }
      merged.push_back(run);
    }
    merging = merged.size() < runs.size();
    runs.swap(merged);
    parallel_for(merging ? runs.size() : 0, threads, [&](std::size_t i) {
      if (runs[i].middle < runs[i].last) std::inplace_merge(at(runs[i].first), at(runs[i].middle), at(runs[i].last));
    });
  }
}

}  // namespace curriculum
