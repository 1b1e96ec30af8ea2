// Threads for loops. The result never depends on how many there are.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <future>
#include <vector>

namespace curriculum {

// Call task(i) for i in [0, tasks), each once, on at most `threads` threads; an exception reaches the caller. The calling
// thread takes the first task, so that it has one to report from.
template <typename Task>
void parallel_for(std::size_t tasks, unsigned threads, const Task& task) {
  if (tasks == 0) return;
  std::atomic<std::size_t> next{1};
  const auto work = [&] {
    for (std::size_t i = next++; i < tasks; i = next++) task(i);
  };
  std::vector<std::future<void>> helpers;
  for (std::size_t i = 1; i < std::min<std::size_t>(threads, tasks); ++i)
    helpers.push_back(std::async(std::launch::async, work));
  task(0);
  work();
  for (auto& helper : helpers) helper.get();
}

}  // namespace curriculum
