// Sorting more rows than memory holds: runs that are sorted in memory, written one after the other, and merged.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "radix_sort.h"
#include "store.h"

namespace curriculum {

template <typename Row, typename Keys>
class Sorter {
 public:
  // `expected`: rows that will be added, about; `scratch` is for this sorter alone while it holds rows.
  Sorter(Memory& memory, ScratchFile& scratch, const Keys& keys, unsigned threads, std::uint64_t expected)
      : memory_(memory),
        scratch_(scratch),
        sort_(keys),
        keys_(keys),
        threads_(memory.sort_threads(threads, Sort::scratch_bytes(Sort::cached_rows))),
        most_(memory.sort_rows(sizeof(Row))) {
    capacity_ = std::max<std::size_t>(static_cast<std::size_t>(std::min<std::uint64_t>(expected, most_)), 1);
    buffer_ = memory_.take(capacity_ * sizeof(Row));
    rows_ = buffer_.template as<Row>();
  }
  Sorter(const Sorter&) = delete;
  ~Sorter() { memory_.give_back(std::move(buffer_)); }

  void add(const Row& row) {
    if (held_ == capacity_) make_room();
    rows_[held_++] = row;
  }
  // Room for so many rows, to be written by the caller; null where they do not fit in memory.
  Row* extend(std::uint64_t rows) {
    if (rows > most_ - held_) return nullptr;
    if (rows > capacity_ - held_) grow(held_ + static_cast<std::size_t>(rows));
    held_ += static_cast<std::size_t>(rows);
    return rows_ + held_ - rows;
  }
  std::uint64_t size() const { return spilled_ + held_; }
  bool in_memory() const { return runs_.empty(); }

  // The sorted rows, when all of them are in memory; the sorter is of no use after this.
  Buffer take() {
    sort();
    memory_.release(buffer_.bytes());
    return std::exchange(buffer_, Buffer());
  }

  // Calls visit(row) for every row, ascending; the sorter is empty after this.
  template <typename Visit>
  void drain(const Visit& visit) {
    if (in_memory()) {
      sort();
      for (std::size_t i = 0; i < held_; ++i) visit(rows_[i]);
    } else {
      if (held_) spill();
      merge(visit);
      runs_.clear();
      scratch_.clear();
      spilled_ = 0;
    }
    held_ = 0;
  }

 private:
  using Sort = RadixSort<Row, Keys>;
  struct Run {
    std::uint64_t offset, rows;  // what is not yet read of it
  };
  // A run that is being merged: its part of the buffer, and the first key of its first row.
  struct Cursor {
    std::uint64_t key;
    const Row *row, *last;
    std::size_t run;
  };

  void make_room() {
    if (capacity_ >= most_) return spill();
    grow(std::min(most_, capacity_ + capacity_ / 4 + 1024));
  }

  void grow(std::size_t capacity) {
    capacity_ = capacity;
    memory_.release(buffer_.bytes());
    buffer_.resize(capacity_ * sizeof(Row));
    memory_.hold(buffer_.bytes());
    rows_ = buffer_.template as<Row>();
  }

  // From one buffer to another where the second one fits too.
  void sort() {
    const std::uint64_t bytes = held_ * sizeof(Row);
    if (held_ <= Sort::cached_rows || !memory_.has_room_for_two(held_, bytes)) return sort_(rows_, held_, threads_);
    Buffer sorted = memory_.take(bytes);
    sort_(rows_, sorted.template as<Row>(), held_, threads_);
    std::swap(buffer_, sorted);
    memory_.give_back(std::move(sorted));
    rows_ = buffer_.template as<Row>();
    capacity_ = held_;
  }

  void spill() {
    sort();
    runs_.push_back({scratch_.append(rows_, held_ * sizeof(Row)), held_});
    spilled_ += held_;
    held_ = 0;
  }

  // The buffer is cut into a part for each run.
  template <typename Visit>
  void merge(const Visit& visit) {
    const std::size_t part = capacity_ / runs_.size();
    if (part == 0)
      throw std::invalid_argument(std::to_string(runs_.size()) + " sorted runs of " + std::to_string(capacity_) +
                                  " rows cannot be merged in one pass; raise --memory");
    const auto fill = [&](Cursor& cursor) {
      Run& run = runs_[cursor.run];
      const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(part, run.rows));
      if (count == 0) return false;
      Row* rows = rows_ + cursor.run * part;
      scratch_.read(rows, count * sizeof(Row), run.offset);
      run.offset += count * sizeof(Row);
      run.rows -= count;
      cursor = {keys_(rows[0], 0), rows, rows + count, cursor.run};
      return true;
    };
    const auto later = [&](const Cursor& a, const Cursor& b) {  // the heap's top is the smallest
      return a.key != b.key ? a.key > b.key : sort_.less(*b.row, *a.row, 1);
    };
    std::vector<Cursor> heap(runs_.size());
    for (std::size_t run = 0; run < heap.size(); ++run) {
      heap[run].run = run;
      fill(heap[run]);
    }
    std::make_heap(heap.begin(), heap.end(), later);
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), later);
      Cursor& cursor = heap.back();
      visit(*cursor.row);
      if (++cursor.row == cursor.last && !fill(cursor)) {
        heap.pop_back();
        continue;
      }
      cursor.key = keys_(*cursor.row, 0);
      std::push_heap(heap.begin(), heap.end(), later);
    }
  }

  Memory& memory_;
  ScratchFile& scratch_;
  Sort sort_;
  Keys keys_;
  unsigned threads_;
  std::size_t most_, capacity_ = 0, held_ = 0;
  std::uint64_t spilled_ = 0;
  Buffer buffer_;
  Row* rows_ = nullptr;
  std::vector<Run> runs_;
};

}  // namespace curriculum
