#include "write.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "../common/parallel.h"

namespace corpus_index {

namespace {

constexpr std::size_t piece_rows = std::size_t{1} << 18;

}  // namespace

IndexWriter::IndexWriter(const std::string& path, std::uint8_t code)
    : file_(File::create(path)), code_(code), item_size_(item_size(code)) {
  buffer_.reserve(piece_rows);
}

void IndexWriter::check(const std::int32_t* lengths, std::size_t count) const {
  std::uint64_t added = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (lengths[i] < 0) throw FormatError("document " + std::to_string(i) + " has length " + std::to_string(lengths[i]));
    added += static_cast<std::uint64_t>(lengths[i]);
  }
  multiply(corpus_index::add(tokens_, added, "tokens"), item_size_, "tokens");
}

void IndexWriter::add(const std::int32_t* lengths, std::size_t count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (finished_) throw std::logic_error("the index is finished");
  check(lengths, count);
  for (std::size_t i = 0; i < count; ++i) {
    if (lengths[i] == 0) {
      if (gaps_.empty() || gaps_.back().sequence != sequences_) gaps_.push_back({sequences_, empty_});
      gaps_.back().empty_so_far = ++empty_;
      continue;
    }
    if (buffer_.empty()) piece_tokens_.push_back(tokens_);
    buffer_.push_back(lengths[i]);
    tokens_ += static_cast<std::uint64_t>(lengths[i]);
    ++sequences_;
    if (buffer_.size() == piece_rows) flush();
  }
}

void IndexWriter::flush() {
  file_.write(buffer_.data(), 4 * buffer_.size(), header_size + 4 * (sequences_ - buffer_.size()));
  buffer_.clear();
}

void IndexWriter::finish(unsigned threads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (finished_) throw std::logic_error("the index is finished");
  finished_ = true;
  flush();
  const Header header{code_, sequences_, documents() + 1};
  const Layout at = layout(header);
  const auto raw = encode(header);
  file_.write(raw.data(), raw.size(), 0);
  curriculum::parallel_for(piece_tokens_.size(), threads, [&](std::size_t piece) {
    write_pointers(at, piece);
    write_documents(at, piece);
  });
  write_tail(at);
  file_.close();
}

void IndexWriter::write_pointers(const Layout& at, std::size_t piece) const {
  const std::uint64_t first = piece * piece_rows;
  const auto rows = static_cast<std::size_t>(std::min<std::uint64_t>(piece_rows, sequences_ - first));
  std::vector<std::int32_t> lengths(rows);
  file_.read(lengths.data(), 4 * rows, at.lengths + 4 * first);
  std::vector<std::uint64_t> pointers(rows);
  std::uint64_t end = piece_tokens_[piece] * item_size_;
  for (std::size_t i = 0; i < rows; ++i) {
    pointers[i] = end;
    end += static_cast<std::uint64_t>(lengths[i]) * item_size_;
  }
  file_.write(pointers.data(), 8 * rows, at.pointers + 8 * first);
}

namespace {

// Consecutive document indices, written a buffer at a time however many empty documents there are.
class Indices {
 public:
  Indices(const File& file, std::uint64_t offset) : file_(file), offset_(offset) { values_.reserve(piece_rows); }
  void put(std::uint64_t value) {
    values_.push_back(value);
    if (values_.size() == piece_rows) flush();
  }
  void flush() {
    file_.write(values_.data(), 8 * values_.size(), offset_);
    offset_ += 8 * values_.size();
    values_.clear();
  }

 private:
  const File& file_;
  std::uint64_t offset_;
  std::vector<std::uint64_t> values_;
};

}  // namespace

// For each sequence s of the piece: s once, and once more for each empty document before it.
void IndexWriter::write_documents(const Layout& at, std::size_t piece) const {
  const std::uint64_t first = piece * piece_rows;
  const std::uint64_t last = std::min<std::uint64_t>(first + piece_rows, sequences_);
  auto gap = std::lower_bound(gaps_.begin(), gaps_.end(), first,
                              [](const Gap& g, std::uint64_t sequence) { return g.sequence < sequence; });
  std::uint64_t empty = gap == gaps_.begin() ? 0 : std::prev(gap)->empty_so_far;
  Indices indices(file_, at.documents + 8 * (first + empty));
  for (std::uint64_t sequence = first; sequence < last; ++sequence) {
    indices.put(sequence);
    if (gap == gaps_.end() || gap->sequence != sequence) continue;
    for (; empty < gap->empty_so_far; ++empty) indices.put(sequence);
    ++gap;
  }
  indices.flush();
}

// The last document index, S, and the empty documents after the last sequence.
void IndexWriter::write_tail(const Layout& at) const {
  const bool open_end = !gaps_.empty() && gaps_.back().sequence == sequences_;
  const std::uint64_t before = !open_end ? empty_ : gaps_.size() == 1 ? 0 : gaps_[gaps_.size() - 2].empty_so_far;
  Indices indices(file_, at.documents + 8 * (sequences_ + before));
  for (std::uint64_t i = before; i <= empty_; ++i) indices.put(sequences_);
  indices.flush();
}

}  // namespace corpus_index
