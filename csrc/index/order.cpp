#include "order.h"

#include <algorithm>
#include <string>

#include "check.h"
#include "../common/parallel.h"

namespace corpus_index {

namespace {

constexpr std::size_t piece_bytes = std::size_t{1} << 22;
constexpr std::size_t piece_rows = 2048;
constexpr unsigned sequence_bits = 48;

std::string name(std::uint64_t corpus, std::uint64_t sequence) {
  return "sequence " + std::to_string(sequence) + " of corpus " + std::to_string(corpus);
}

}  // namespace

OrderedWriter::OrderedWriter(const std::string& index, const std::string& tokens, std::uint64_t entries,
                             const std::vector<Corpus>& corpora)
    : entries_(entries), index_(File::create(index)) {
  if (corpora.empty()) throw FormatError("there is no corpus to take sequences from");
  if (tokens.empty() && corpora.size() > 1)
    throw FormatError("an index alone can point into one .bin, not into " + std::to_string(corpora.size()));
  const std::uint8_t code = check_header(corpora.front().index).code;
  item_size_ = item_size(code);
  for (const Corpus& corpus : corpora) {
    const Header header = check_header(corpus.index);
    if (header.code != code)
      throw FormatError("dtype code " + std::to_string(header.code) + " of " + corpus.index + " is not " +
                        std::to_string(code) + ", that of " + corpora.front().index);
    File bin = File::open(corpus.tokens);
    const std::uint64_t size = bin.size();
    corpora_.push_back({File::open(corpus.index), std::move(bin), layout(header), header.sequences, size});
  }
  const Header header{code, entries, corpus_index::add(entries, 1, "an index")};
  at_ = layout(header);
  const auto raw = encode(header);
  index_.write(raw.data(), raw.size(), 0);
  const std::uint64_t zero = 0;
  index_.write(&zero, 8, at_.documents);
  if (!tokens.empty()) tokens_.push_back(File::create(tokens));
}

void OrderedWriter::add(const std::uint64_t* entries, std::size_t count, unsigned threads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (count > entries_ - done_) throw FormatError("more than the " + std::to_string(entries_) + " entries announced");
  const std::vector<Row> rows = look_up(entries, count, threads);
  std::vector<std::uint64_t> offsets(count + 1, bytes_);  // in the new .bin
  for (std::size_t i = 0; i < count; ++i) offsets[i + 1] = corpus_index::add(offsets[i], bytes_of(rows[i]), "tokens");
  write_index(rows, offsets);
  if (!tokens_.empty()) copy_tokens(rows, offsets, threads);
  bytes_ = offsets[count];
  done_ += count;
}

void OrderedWriter::finish() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (done_ != entries_)
    throw FormatError(std::to_string(done_) + " entries where " + std::to_string(entries_) + " were announced");
  index_.close();
  for (File& tokens : tokens_) tokens.close();
}

std::vector<OrderedWriter::Row> OrderedWriter::look_up(const std::uint64_t* entries, std::size_t count,
                                                       unsigned threads) const {
  std::vector<Row> rows(count);
  curriculum::parallel_for((count + piece_rows - 1) / piece_rows, threads, [&](std::size_t piece) {
    const std::size_t last = std::min(count, (piece + 1) * piece_rows);
    for (std::size_t i = piece * piece_rows; i < last; ++i) rows[i] = row(entries[i]);
  });
  return rows;
}

OrderedWriter::Row OrderedWriter::row(std::uint64_t entry) const {
  const std::uint64_t number = entry >> sequence_bits;
  const std::uint64_t sequence = entry & ((std::uint64_t{1} << sequence_bits) - 1);
  if (number >= corpora_.size() || sequence >= corpora_[number].sequences)
    throw FormatError("the order names " + name(number, sequence) + ", which does not exist");
  const Opened& corpus = corpora_[number];
  Row found{static_cast<std::size_t>(number), 0, 0};
  corpus.index.read(&found.length, 4, corpus.at.lengths + 4 * sequence);
  corpus.index.read(&found.pointer, 8, corpus.at.pointers + 8 * sequence);
  const auto pointer = static_cast<std::uint64_t>(found.pointer);
  const bool inside = found.length >= 0 && found.pointer >= 0 && pointer % item_size_ == 0 &&
                      pointer <= corpus.token_bytes && bytes_of(found) <= corpus.token_bytes - pointer;
  if (!inside) throw FormatError(name(number, sequence) + " does not lie inside its .bin");
  return found;
}

void OrderedWriter::write_index(const std::vector<Row>& rows, const std::vector<std::uint64_t>& offsets) {
  std::vector<std::int32_t> lengths(rows.size());
  std::vector<std::uint64_t> numbers(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    lengths[i] = rows[i].length;
    numbers[i] = tokens_.empty() ? static_cast<std::uint64_t>(rows[i].pointer) : offsets[i];
  }
  index_.write(lengths.data(), 4 * lengths.size(), at_.lengths + 4 * done_);
  index_.write(numbers.data(), 8 * numbers.size(), at_.pointers + 8 * done_);
  for (std::size_t i = 0; i < rows.size(); ++i) numbers[i] = done_ + i + 1;
  index_.write(numbers.data(), 8 * numbers.size(), at_.documents + 8 * (done_ + 1));
}

void OrderedWriter::copy_tokens(const std::vector<Row>& rows, const std::vector<std::uint64_t>& offsets,
                                unsigned threads) const {
  std::vector<std::size_t> firsts{0};
  for (std::size_t i = 1; i < rows.size(); ++i)
    if (offsets[i] - offsets[firsts.back()] >= piece_bytes) firsts.push_back(i);
  firsts.push_back(rows.size());
  curriculum::parallel_for(firsts.size() - 1, threads, [&](std::size_t piece) {
    copy_piece(rows, firsts[piece], firsts[piece + 1], offsets[firsts[piece]]);
  });
}

void OrderedWriter::copy_piece(const std::vector<Row>& rows, std::size_t first, std::size_t last,
                               std::uint64_t to) const {
  std::vector<char> buffer(piece_bytes);
  std::size_t filled = 0;
  const auto flush = [&] {
    tokens_.front().write(buffer.data(), filled, to);
    to += filled;
    filled = 0;
  };
  for (std::size_t i = first; i < last; ++i) {
    auto from = static_cast<std::uint64_t>(rows[i].pointer);
    for (std::uint64_t left = bytes_of(rows[i]); left > 0;) {
      const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(left, buffer.size() - filled));
      corpora_[rows[i].corpus].tokens.read(buffer.data() + filled, size, from);
      filled += size;
      from += size;
      left -= size;
      if (filled == buffer.size()) flush();
    }
  }
  flush();
}

}  // namespace corpus_index
