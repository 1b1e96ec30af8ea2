// Where rows are held: in memory while they fit the bound, in a scratch file beyond. Explicit reads and writes, no maps,
// so that what the process holds is what the system says it holds.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "index_file.h"
#include "rows.h"

namespace curriculum {

// Bytes that may grow without a copy: the system moves the pages of a large block, and untouched ones cost nothing.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes) { resize(bytes); }
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  void resize(std::size_t bytes);  // keeps what is there; throws std::bad_alloc
  std::size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// The bound of one build, and what of it is held.
//
// Finished rows take at most half, so that there is room to sort the next dataset; what does not fit goes to a file. One
// block that was given back waits for the next who wants one: the system takes as long to clear fresh pages as a pass over
// them. Whoever wants one gets it before fresh pages, so the process never holds more for it.
class Memory {
 public:
  explicit Memory(std::uint64_t limit) : limit_(limit) {}

  std::uint64_t limit() const { return limit_; }
  std::uint64_t free() const { return limit_ > held_ ? limit_ - held_ : 0; }
  // Rows that a sort may hold: seven eighths of what is free, and never so few that runs could not be merged.
  std::size_t sort_rows(std::size_t row_bytes) const;
  // Threads that sort at once, of which each takes so much of what `sort_rows` leaves.
  unsigned sort_threads(unsigned threads, std::size_t thread_bytes) const {
    return static_cast<unsigned>(std::clamp<std::uint64_t>(free() / 8 / thread_bytes, 1, std::max(1u, threads)));
  }
  bool fits(std::uint64_t bytes) const { return held_ + bytes <= limit_ / 2; }
  // Whether rows that are held may lie in a second buffer as large for a moment: within the bound, and so that all rows,
  // these and the finished ones, take 24 bytes each at the most.
  bool has_room_for_two(std::uint64_t rows, std::uint64_t bytes) const {
    const std::uint64_t finished = (held_ - bytes) / sizeof(Entry);
    return fits(bytes) && held_ + bytes <= 2 * sizeof(Entry) * (rows + finished);
  }
  void hold(std::uint64_t bytes) {
    held_ += bytes;
    if (held_ + spare_.bytes() > limit_) drop_spare();
  }
  void release(std::uint64_t bytes) { held_ -= bytes; }

  // A block whose bytes are held from now on, with anything in it.
  Buffer take(std::uint64_t bytes) {
    Buffer taken = std::exchange(spare_, Buffer());
    taken.resize(static_cast<std::size_t>(bytes));
    hold(bytes);
    return taken;
  }
  void give_back(Buffer buffer) {
    release(buffer.bytes());
    if (buffer.bytes() > spare_.bytes()) spare_ = std::move(buffer);
  }
  std::uint64_t spare_bytes() const { return spare_.bytes(); }
  void drop_spare() { spare_ = Buffer(); }

 private:
  std::uint64_t limit_, held_ = 0;
  Buffer spare_;
};

// One file that is only appended to. Its name is gone at once, so a killed build leaves nothing of it.
class ScratchFile {
 public:
  explicit ScratchFile(std::string path) : path_(std::move(path)) {}

  std::uint64_t append(const void* data, std::size_t bytes);  // returns the offset
  void read(void* data, std::size_t bytes, std::uint64_t offset) const { file_->read(data, bytes, offset); }
  std::uint64_t size() const { return end_; }
  void clear() { end_ = 0; }  // what follows overwrites

 private:
  std::string path_;
  std::optional<corpus_index::File> file_;
  std::uint64_t end_ = 0;
};

// The rows of one dataset, appended once and then read.
class Store {
 public:
  // `expected` rows decide where they go; only one store may be appended to a scratch file at a time.
  Store(Memory& memory, ScratchFile& scratch, std::uint64_t expected);
  // Rows that are in memory, and stay there if they fit.
  Store(Memory& memory, ScratchFile& scratch, Buffer rows, std::uint64_t size);
  Store(const Store&) = delete;
  ~Store();

  void append(const Entry& entry) {
    if (tail_rows_ == tail_capacity_) make_room();
    tail_[tail_rows_++] = entry;
  }
  void finish();  // no more is appended
  std::uint64_t size() const { return written_ + tail_rows_; }
  bool resident() const { return resident_; }
  Entry* rows() const { return buffer_.as<Entry>(); }  // resident stores
  void read(std::uint64_t first, std::size_t count, Entry* rows) const;

  // Calls visit(entry) for every row, in order.
  template <typename Visit>
  void for_each(const Visit& visit) const;

 private:
  void make_room();
  void account();

  Memory& memory_;
  ScratchFile& scratch_;
  bool resident_;
  Buffer buffer_;  // all rows, or those not yet written
  Entry* tail_ = nullptr;
  std::size_t tail_rows_ = 0, tail_capacity_ = 0;
  std::uint64_t written_ = 0, offset_ = 0, accounted_ = 0;
};

// Reads a finished store from any row on, a piece at a time.
class Reader {
 public:
  // `piece`: rows read from a file at once.
  Reader(const Store& store, std::size_t piece) : store_(&store), piece_(piece) {}

  // Rows from `row` on, at least one; `row` is below the store's size.
  std::pair<const Entry*, std::size_t> from(std::uint64_t row);

 private:
  const Store* store_;
  std::size_t piece_;
  std::vector<Entry> rows_;
  std::uint64_t first_ = 0;
};

constexpr std::size_t piece_rows = std::size_t{1} << 13;

template <typename Visit>
void Store::for_each(const Visit& visit) const {
  Reader reader(*this, piece_rows);
  for (std::uint64_t row = 0; row < size();) {
    const auto [rows, count] = reader.from(row);
    for (std::size_t i = 0; i < count; ++i) visit(rows[i]);
    row += count;
  }
}

}  // namespace curriculum
